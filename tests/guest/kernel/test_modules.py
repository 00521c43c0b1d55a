"""Modules against /proc/modules, and their memory against QEMU's own walk."""

from __future__ import annotations

import re
from typing import Any

import pytest

from inspector import Guest
from inspector.kernel import modules
from inspector.kernel.ksyms import module_symbols, symbolise
from inspector.kernel.modules import Module
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest

_PAGE = 4096


def line(module: Module) -> str:
    """As kernel/module/procfs.c prints it."""
    users = "".join(f"{name}," for name in module.used_by) + ("[permanent]," if module.permanent else "")
    text = f"{module.name} {module.size} {module.refcount} {users or '-'} {module.state} {module.base:#018x}"
    return text + (f" ({module.taints})" if module.taints else "")


def test_agrees_with_proc_modules(any_guest: Guest, witness: Any) -> None:
    path = "/proc/modules"
    witnessed, ours = witness(any_guest, [path], lambda: modules.modules(any_guest.kernel))
    assert witnessed.same(path)
    assert [line(module) for module in ours] == witnessed.text(path).splitlines()
    assert {"zram", "qemu_fw_cfg"} <= {module.name for module in ours}


def test_frames_agree_with_qemu(any_guest: Guest) -> None:
    """QEMU walks CPU 0's page tables with code of its own."""
    with any_guest.paused():
        loaded = modules.modules(any_guest.kernel)
        frames = modules.module_frames(any_guest.kernel, loaded)
        for index, module in enumerate(loaded):
            rows = frames[frames["index"] == index]
            pages = {
                page
                for part in module.parts
                for page in range(part.start // _PAGE, -(-(part.start + part.size) // _PAGE))
            }
            assert {int(va) // _PAGE for va in rows["va"]} == pages
            for row in rows[:: max(1, len(rows) // 8)]:
                answer = any_guest.machine.hmp(f"gva2gpa {int(row['va']):#x}")
                match = re.search(r"gpa: (0x[0-9a-f]+)", answer)
                assert match, answer
                assert int(match[1], 16) == int(row["pfn"]) * _PAGE


def test_symbols_of_modules_agree_with_kallsyms(any_guest: Guest) -> None:
    """Every function of a module, by its address in /proc/kallsyms, is found by name."""
    before = any_guest.run("cat /proc/sys/kernel/kptr_restrict").stdout
    restrict = "/proc/sys/kernel/kptr_restrict"
    listing = any_guest.run(f"echo 1 >{restrict}; grep zram /proc/kallsyms; echo {before} >{restrict}").stdout
    functions: dict[int, set[str]] = {}
    for address, kind, name in re.findall(r"^(\w+) (\w) (\S+)\t\[zram\]$", listing, re.MULTILINE):
        if kind in "tT":
            functions.setdefault(int(address, 16), set()).add(name)
    assert len(functions) > 20
    with any_guest.paused():
        kernel = any_guest.kernel
        found = symbolise(kernel, functions, modules.modules(kernel))
    for address, names in functions.items():
        match = re.fullmatch(r"(\S+)\+0x0/0x[0-9a-f]+ \[zram\]", found[address])
        assert match, found[address]
        assert match[1] in names


def test_every_module_symbol_is_in_kallsyms(any_guest: Guest) -> None:
    """All of them, data too, by name and by address; and nothing else is."""
    restrict = "/proc/sys/kernel/kptr_restrict"
    before = any_guest.run(f"cat {restrict}").stdout
    listing = any_guest.run(f"echo 1 >{restrict}; grep ']$' /proc/kallsyms; echo {before} >{restrict}").stdout
    theirs = sorted(
        (name, int(address, 16), kind.lower(), module)
        for address, kind, name, module in re.findall(r"^(\w+) (\w) (\S+)\t\[(\w+)\]$", listing, re.MULTILINE)
        if module not in ("bpf", "__builtin__ftrace", "__builtin__kprobes")
    )
    with any_guest.paused():
        kernel = any_guest.kernel
        ours = [symbol for module in modules.modules(kernel) for symbol in module_symbols(kernel, module)]
        assert sorted((each.name, each.address, each.kind.lower(), each.module) for each in ours) == theirs
        assert len(theirs) > 200
        names = [name for name, *_ in theirs]
        # The assembler's labels are listed, but no address is told by them.
        for name, address, _, module in [each for each in theirs if each[0][0] not in ".L$"][::97]:
            found = any_guest.symbol_at(VirtAddr(address))
            assert found
            symbol, offset = found
            assert (symbol.address, symbol.module, offset) == (address, module, 0)
            if names.count(name) == 1 and not kernel.symbols.has(name):
                assert any_guest.symbol(name) == address
        assert any_guest.symbol_at(VirtAddr(0xFFFF_FFFF_0000_0000)) is None
