from __future__ import annotations

from pathlib import Path
from typing import Any

from inspector import Guest, symbols
from inspector.machine import LocalMachine
from inspector.units import VirtAddr


def test_every_symbol_is_where_drgn_has_it(guest: Guest, program: Any) -> None:
    """All of kallsyms: functions, data, per-CPU variables. drgn leaves out what marks the image's end."""
    _, end = program.main_module().address_range
    theirs = {(symbol.name, symbol.address) for symbol in program.symbols()}
    missing = [s for s in guest.kernel.symbols if (s.name, s.address) not in theirs and s.address != end]
    assert missing == []
    assert len(guest.kernel.symbols) > 50_000


def test_addresses_lie_in_the_symbols_that_drgn_says(guest: Guest, program: Any) -> None:
    """Addresses spread over the kernel's text. Where symbols share a place either name will do."""
    start, end = guest.symbol("_stext"), guest.symbol("_etext")
    step = (end - start) // 4000 | 1
    compared = 0
    for address in range(start, end, step):
        found = [symbol.address for symbol in program.symbols(address) if symbol.size]
        if not found:
            continue  # between functions: drgn knows their sizes, kallsyms does not
        near = guest.symbol_at(VirtAddr(address))
        assert near is not None
        assert near[0].address == max(found), hex(address)
        assert near[0].address + near[1] == address
        compared += 1
    assert compared > 2000


def test_a_vmlinux_gives_the_same_names_and_places(guest: Guest, debug_vmlinux: Path) -> None:
    assert isinstance(guest.machine, LocalMachine)
    kernel = symbols.attach(guest.memory, guest.machine.registers(), vmlinux=debug_vmlinux)
    assert kernel.profile == "vmlinux"
    theirs = {(s.name, s.address) for s in kernel.symbols}
    assert [s.name for s in guest.kernel.symbols if (s.name, s.address) not in theirs] == []
