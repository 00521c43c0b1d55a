"""Types from a vmlinux's DWARF, read a compile unit at a time, as they are asked for (DWARF 4 and 5).

pyelftools takes minutes for all of a kernel's DWARF. So the unit that defines a type is found first, by its
name in the raw bytes of .debug_info, and only that unit is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from inspector.errors import BadFormat, NoSuchType, SymbolsError
from inspector.symbols.types import Kind, Member, Type, TypeTable

_COMPOSITES = {
    "DW_TAG_structure_type": Kind.STRUCT,
    "DW_TAG_class_type": Kind.STRUCT,
    "DW_TAG_union_type": Kind.UNION,
}
_ENUM, _TYPEDEF, _BASE = "DW_TAG_enumeration_type", "DW_TAG_typedef", "DW_TAG_base_type"
_FINDABLE = (*_COMPOSITES, _ENUM, _TYPEDEF, _BASE)  # what find() gives first where they share a name
_TRANSPARENT = (
    _TYPEDEF,
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
)
_SIGNED = (0x05, 0x06, 0x0D)  # DW_ATE_signed, signed_char, signed_fixed
_FLOATS = (0x03, 0x04)  # DW_ATE_complex_float, float
_MAX_CHAIN = 64
_CHUNK = 4 << 20  # bytes of .debug_info looked through at a time
_INLINE_NAME = 4  # a name with its NUL that is no longer than a reference to it stands in place


P = ParamSpec("P")
R = TypeVar("R")


def _damage_is_bad_format(method: Callable[P, R]) -> Callable[P, R]:
    """Pyelftools meets damaged data with whatever exception its parser runs into."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except SymbolsError:
            raise
        except Exception as error:
            raise BadFormat(f"DWARF: damaged: {type(error).__name__} {error}".rstrip()) from error

    return guarded


class Dwarf(TypeTable):
    """The types of an ELF file with .debug_info. A type's id is the offset of its entry there.

    Raises BadFormat where the DWARF is damaged or keeps its names in a table (clang's DWARF 5).
    """

    def __init__(self, elf: ELFFile) -> None:
        super().__init__()
        # Linked with --emit-relocs, a vmlinux has relocations that are applied already.
        self._dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
        self._info = _bytes(self._dwarf.debug_info_sec)
        self._strings = _bytes(self._dwarf.debug_str_sec)
        self._pointer_size = elf.elfclass // 8
        self._units = _unit_offsets(self._info)
        self._indexes: dict[int, dict[str, DIE]] = {}
        self._enumerators: dict[int, dict[str, int]] = {}
        self._types: dict[int, Type] = {}
        self._found: dict[str, Type | None] = {}

    @_damage_is_bad_format
    def find(self, name: str) -> Type:
        """The struct, union, enum, typedef or base type of that name. Raises NoSuchType."""
        if name not in self._found:
            die = next(self._definitions(name), None)
            self._found[name] = self._type(die) if die is not None else None
        found = self._found[name]
        if found is None:
            raise NoSuchType(f"the kernel has no type {name!r}")
        return found

    @_damage_is_bad_format
    def members(self, type_: Type) -> tuple[Member, ...]:
        """What a struct or union declares; one without a body is looked up by name. Raises NoSuchType."""
        die = self._die(type_.id)
        if die.tag not in _COMPOSITES:
            return ()
        if "DW_AT_declaration" in die.attributes:
            return self.members(self.find(type_.name))
        return tuple(self._declared(child) for child in die.iter_children() if child.tag == "DW_TAG_member")

    @_damage_is_bad_format
    def enumerators(self, type_: Type) -> Mapping[str, int]:
        """The names and values of an enum, in order; empty for any other type."""
        die = self._die(type_.id)
        return _values(die) if die.tag == _ENUM else {}

    @_damage_is_bad_format
    def constant(self, enumerator: str) -> int:
        """The value of an enumerator of any enum. Raises NoSuchType."""
        for unit in self._units_with(enumerator, ("DW_TAG_enumerator",)):
            if unit not in self._enumerators:
                top = self._unit(unit).get_top_DIE().iter_children()
                self._enumerators[unit] = {n: v for d in top if d.tag == _ENUM for n, v in _values(d).items()}
            if enumerator in self._enumerators[unit]:
                return self._enumerators[unit][enumerator]
        raise NoSuchType(f"the kernel has no enumerator {enumerator!r}")

    def _definitions(self, name: str) -> Iterator[DIE]:
        """The entries that define `name`: one a unit, first those of units read before."""
        for index in list(self._indexes.values()):
            if name in index:
                yield index[name]
        for unit in self._units_with(name, _FINDABLE):
            if unit not in self._indexes:
                index = self._index(unit)
                if name in index:
                    yield index[name]

    def _index(self, unit: int) -> dict[str, DIE]:
        """A unit's outermost types by name."""
        found: dict[str, DIE] = {}
        for die in self._unit(unit).get_top_DIE().iter_children():
            if die.tag in _FINDABLE and "DW_AT_declaration" not in die.attributes and (name := _name(die)):
                other = found.get(name)
                if other is None or _FINDABLE.index(die.tag) < _FINDABLE.index(other.tag):
                    found[name] = die
        self._indexes[unit] = found
        return found

    def _units_with(self, name: str, tags: tuple[str, ...]) -> Iterator[int]:
        """The units with bytes that look like an entry of that name and of one of the tags."""
        done = -1
        for at in self._references(name):
            number = bisect_right(self._units, at) - 1
            unit = self._units[number]
            if number == done:
                continue
            if any(self._info.startswith(code, at - back) for code, back in self._codes(unit, tags)):
                done = number
                yield unit

    def _codes(self, unit: int, tags: tuple[str, ...]) -> set[tuple[bytes, int]]:
        """How entries with those tags begin: the code of the abbreviation, and its distance to the name."""
        table = self._unit(unit).get_abbrev_table()
        return {
            (code, back)
            for abbreviation in table._abbrev_map.items()
            for code, back in _before_name(*abbreviation, tags)
        }

    def _references(self, name: str) -> Iterator[int]:
        """Every place in .debug_info, in rising order, that could hold that name as a DW_AT_name."""
        wanted = name.encode() + b"\0"
        if len(wanted) <= _INLINE_NAME:
            yield from _occurrences(self._info, wanted)
            return
        # The linker lets a string be the end of a longer one, so there may be many candidates: look for all.
        offsets = list(_occurrences(self._strings, wanted))
        if not offsets:
            return
        wanted_at = np.zeros(len(self._strings) + 1, np.bool_)
        wanted_at[offsets] = True
        for start in range(0, len(self._info), _CHUNK):
            yield from _words_in(self._info[start : start + _CHUNK + 3], wanted_at, start)

    def _unit(self, offset: int) -> CompileUnit:
        return self._dwarf.get_CU_at(offset)

    def _die(self, offset: int) -> DIE:
        return self._dwarf.get_DIE_from_refaddr(offset)

    def _declared(self, die: DIE) -> Member:
        type_ = self._target(die) or Type(Kind.VOID, "", 0, 0)
        place = _number(die, "DW_AT_data_member_location") * 8
        bits = _number(die, "DW_AT_bit_size")
        if bits and "DW_AT_data_bit_offset" in die.attributes:
            place = _number(die, "DW_AT_data_bit_offset")
        elif (
            bits and "DW_AT_bit_offset" in die.attributes
        ):  # DWARF 3 and before count from the top of the unit
            unit = (_number(die, "DW_AT_byte_size") or type_.size) * 8
            place += unit - _number(die, "DW_AT_bit_offset") - bits
        return Member(_name(die), type_, place, bits)

    def _type(self, die: DIE, depth: int = 0) -> Type:
        if die.offset not in self._types:
            self._types[die.offset] = self._build(die, depth)
        return self._types[die.offset]

    def _build(self, die: DIE, depth: int) -> Type:
        if depth > _MAX_CHAIN:
            raise BadFormat(f"DWARF: the type at {die.offset:#x} goes on for ever")
        name, size = _name(die), _number(die, "DW_AT_byte_size")
        match die.tag:
            case tag if tag in _COMPOSITES:
                return Type(_COMPOSITES[tag], name, size, die.offset)
            case tag if tag in _TRANSPARENT:
                return self._target(die, depth) or Type(Kind.VOID, "", 0, 0)
            case "DW_TAG_base_type":
                encoding = _number(die, "DW_AT_encoding")
                kind = Kind.FLOAT if encoding in _FLOATS else Kind.INT
                return Type(kind, name, size, die.offset, signed=encoding in _SIGNED)
            case "DW_TAG_enumeration_type":
                signed = any(value < 0 for value in _values(die).values())
                return Type(Kind.ENUM, name, size, die.offset, signed=signed)
            case "DW_TAG_pointer_type":
                target = self._target(die, depth) or Type(Kind.VOID, "", 0, 0)
                return Type(Kind.POINTER, "", size or self._pointer_size, die.offset, target=target)
            case "DW_TAG_array_type":
                return self._array(die, depth)
            case "DW_TAG_subroutine_type":
                return Type(Kind.FUNCTION, name, 0, die.offset)
        return Type(Kind.VOID, name, size, die.offset)

    def _array(self, die: DIE, depth: int) -> Type:
        """One Type a dimension, the innermost first."""
        type_ = self._target(die, depth) or Type(Kind.VOID, "", 0, 0)
        ranges = [child for child in die.iter_children() if child.tag == "DW_TAG_subrange_type"]
        for dimension in reversed(ranges):
            count = _number(dimension, "DW_AT_count")
            if "DW_AT_upper_bound" in dimension.attributes:
                count = _number(dimension, "DW_AT_upper_bound") + 1
            count = count if 0 <= count < 1 << 32 else 0  # gcc gives a flexible array the upper bound -1
            type_ = Type(Kind.ARRAY, "", count * type_.size, die.offset, target=type_, count=count)
        return type_

    def _target(self, die: DIE, depth: int = 0) -> Type | None:
        if "DW_AT_type" not in die.attributes:
            return None
        return self._type(die.get_DIE_from_attribute("DW_AT_type"), depth + 1)


def _bytes(section: Any) -> bytes:
    """What pyelftools read of a debug section: it keeps them in memory."""
    return bytes(section.stream.getvalue()) if section else b""


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode(errors="replace") if attribute else ""


def _number(die: DIE, attribute: str) -> int:
    """An attribute's constant; 0 where it is missing or an expression."""
    found = die.attributes.get(attribute)
    return found.value if found and isinstance(found.value, int) else 0


def _values(die: DIE) -> dict[str, int]:
    children = (child for child in die.iter_children() if child.tag == "DW_TAG_enumerator")
    return {_name(child): _number(child, "DW_AT_const_value") for child in children}


def _unit_offsets(info: bytes) -> list[int]:
    """Where each unit begins, by their lengths. Raises BadFormat."""
    offsets: list[int] = []
    at = 0
    while at + 4 <= len(info):
        offsets.append(at)
        length = int.from_bytes(info[at : at + 4], "little")
        if length >= 0xFFFF_FFF0 or not length:
            raise BadFormat("DWARF: 64-bit DWARF, or a damaged .debug_info")
        at += 4 + length
    return offsets


# Sizes of the forms that may stand before a name (DWARF 5, 7.5.6); behind any other its place is not fixed.
_FORM_SIZES = {
    "DW_FORM_data1": 1,
    "DW_FORM_data2": 2,
    "DW_FORM_data4": 4,
    "DW_FORM_data8": 8,
    "DW_FORM_flag": 1,
    "DW_FORM_flag_present": 0,
    "DW_FORM_implicit_const": 0,
    "DW_FORM_ref4": 4,
    "DW_FORM_sec_offset": 4,
}


def _before_name(code: int, declaration: Any, tags: tuple[str, ...]) -> Iterator[tuple[bytes, int]]:
    """For an abbreviation that defines one of the tags: its code in an entry, and how far before the name."""
    attributes = declaration["attr_spec"]
    if declaration["tag"] not in tags or any(spec.name == "DW_AT_declaration" for spec in attributes):
        return
    encoded = bytearray()
    rest = code
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    distance = len(encoded)
    for spec in attributes:
        if spec.name == "DW_AT_name":
            if spec.form.startswith("DW_FORM_strx"):
                raise BadFormat(
                    "DWARF: names in a table (clang's DWARF 5) are not read; give a vmlinux with BTF"
                )
            yield bytes(encoded), distance
            return
        if spec.form not in _FORM_SIZES:
            return
        distance += _FORM_SIZES[spec.form]


def _occurrences(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _words_in(chunk: bytes, wanted: NDArray[np.bool_], start: int) -> list[int]:
    """The places, at any alignment, of the 32-bit words that index a true element of `wanted`."""
    found: list[int] = []
    last = np.uint32(len(wanted) - 1)
    for shift in range(4):
        words = np.frombuffer(chunk, "<u4", max(len(chunk) - shift, 0) // 4, shift)
        hits = np.flatnonzero(wanted[np.minimum(words, last)])
        found.extend((hits * 4 + shift + start).tolist())
    return sorted(found)
