"""Every type, member, enum and constant that the readers of Linux objects ask for, as drgn has it from DWARF.

What they ask for is recorded while everything that a guest can tell is read, so that the list cannot rot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from inspector import Guest, symbols
from inspector.errors import NoSuchType
from inspector.machine import LocalMachine
from inspector.symbols import Field, Kernel, Kind, Type, TypeTable
from inspector.symbols.dwarf import Dwarf
from inspector.units import Pfn


class Asked:
    """What was asked of a TypeTable, and what it said: None where this kernel has no such thing."""

    def __init__(self, types: TypeTable) -> None:
        self.types: dict[str, Type | None] = {}
        self.fields: dict[tuple[str, str], Field | None] = {}
        self.enums: dict[str, dict[str, int]] = {}
        self.constants: dict[str, int] = {}
        self._find, self._field_of = types.find, types.field_of
        self._enumerators, self._constant = types.enumerators, types.constant
        self._names: dict[int, str] = {}
        for name in ("find", "field_of", "enumerators", "constant"):
            setattr(types, name, getattr(self, name))

    def find(self, name: str) -> Type:
        self.types[name] = None
        self.types[name] = found = self._find(name)
        self._names[found.id] = name
        return found

    def field_of(self, type_: Type, path: str) -> Field | None:
        found = self._field_of(type_, path)
        name = type_.name or self._names.get(type_.id)
        assert name, f"a member {path!r} of a type without a name was asked for: nobody can check it"
        self.fields[name, path] = found
        return found

    def enumerators(self, type_: Type) -> Any:
        found = self._enumerators(type_)
        self.enums[type_.name] = dict(found)
        return found

    def constant(self, enumerator: str) -> int:
        found = self._constant(enumerator)
        self.constants[enumerator] = found
        return found


def everything(guest: Guest) -> None:
    """Ask the guest for all that it can tell."""
    guest.info()
    guest.cpus()
    guest.zones()
    guest.buddy()
    for task in guest.tasks(threads=True):
        task.vmas()
        task.mappings()
    rows = guest.frames()
    _, firsts = np.unique(rows["state"], return_index=True)
    for pfn in (*firsts.tolist(), *range(0, len(rows), len(rows) // 2000)):
        guest.page(Pfn(pfn))


@pytest.fixture(scope="module")
def asked(guest: Guest) -> Iterator[Asked]:
    """What was asked for while everything was read."""
    assert isinstance(guest.machine, LocalMachine)
    before: Kernel = guest.kernel
    guest.kernel = symbols.attach(guest.memory, guest.machine.registers())
    recorder = Asked(guest.kernel.types)
    everything(guest)
    yield recorder
    guest.kernel = before


def drgn_type(program: Any, name: str, found: Type | None) -> Any:
    """Their type for a name of ours; LookupError where there is none."""
    if found and found.kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM) and found.name == name:
        return program.type(f"{found.kind.name.lower()} {name}")
    for prefix in ("", "struct ", "union ", "enum "):
        try:
            return program.type(prefix + name)
        except (LookupError, SyntaxError):
            continue
    raise LookupError(name)


def test_the_recording_saw_something(asked: Asked) -> None:
    """The readers need the core types; without them the other tests would compare nothing."""
    assert {"task_struct", "page", "zone", "vm_area_struct", "mm_struct"} <= {
        name for name, _ in asked.fields
    }
    assert len([found for found in asked.fields.values() if found]) > 50


def test_sizes(asked: Asked, drgn: Any, program: Any) -> None:
    theirs: dict[str, int | None] = {}
    for name, found in asked.types.items():
        try:
            theirs[name] = drgn.sizeof(drgn_type(program, name, found))
        except LookupError:
            theirs[name] = None
    assert {name: found.size if found else None for name, found in asked.types.items()} == theirs


def test_members(asked: Asked, drgn: Any, program: Any) -> None:
    """Offset, size and place of bits of every member, and which members there are not."""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for (name, path), found in asked.fields.items():
        key = f"{name}.{path}"
        ours[key] = (
            None if found is None else (found.offset * 8 + found.bit_shift, found.bit_size, found.type.size)
        )
        value = drgn.Object(program, drgn_type(program, name, asked.types.get(name)), address=0)
        try:
            for step in re.findall(r"\w+", path):
                value = value[int(step)] if step.isdigit() else value.member_(step)
        except (LookupError, TypeError):
            theirs[key] = None
            continue
        place = value.address_ * 8 + (value.bit_offset_ or 0)
        flexible = value.type_.kind == drgn.TypeKind.ARRAY and not value.type_.is_complete()
        size = 0 if flexible else drgn.sizeof(value.type_)
        theirs[key] = (place, value.bit_field_size_ or 0, size)
    assert ours == theirs


def test_enums(asked: Asked, program: Any) -> None:
    theirs = {name: dict(program.type(f"enum {name}").enumerators) for name in asked.enums}
    assert asked.enums == theirs
    assert asked.constants == {name: program.constant(name).value_() for name in asked.constants}


def test_our_reading_of_dwarf(asked: Asked, debug_vmlinux: Path) -> None:
    """The same from the vmlinux's DWARF by our own reader, which else prefers the BTF section beside it."""
    with debug_vmlinux.open("rb") as file:
        dwarf = Dwarf(ELFFile(file))
        for name, found in asked.types.items():
            if found is None:
                with pytest.raises(NoSuchType):
                    dwarf.find(name)
                continue
            theirs = dwarf.find(name)
            assert (theirs.kind, theirs.size) == (found.kind, found.size), name
        for (name, path), member in asked.fields.items():
            theirs_member = dwarf.field_of(dwarf.find(name), path)
            assert _plain(theirs_member) == _plain(member), f"{name}.{path}"
        for name, values in asked.enums.items():
            assert dwarf.enum(name) == values


def _plain(field: Field | None) -> Any:
    if field is None:
        return None
    type_ = field.type
    return field.offset, field.bit_shift, field.bit_size, type_.kind, type_.size, type_.count, type_.signed
