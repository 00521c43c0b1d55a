"""The facade: run control, commands, bytes and names of a live guest."""

from __future__ import annotations

import gzip
import threading

import pytest

from inspector import Guest
from inspector.errors import MachineError, NoSuchSymbol, OutsideRam, PageFault
from inspector.units import MIB, PhysAddr, VirtAddr

pytestmark = pytest.mark.guest


def test_paused_nests_and_runs_on(guest: Guest) -> None:
    with guest.paused():
        with guest.paused():
            assert not guest.running
        assert not guest.running
    assert guest.running


def test_a_guest_that_was_paused_stays_so(guest: Guest) -> None:
    guest.pause()
    try:
        with guest.paused():
            guest.tasks()
        assert not guest.running
    finally:
        guest.resume()
    assert guest.running


def test_a_command_for_a_guest_that_stands_still(guest: Guest) -> None:
    with guest.paused(), pytest.raises(MachineError, match="stands still"):
        guest.run("true")
    guest.pause()
    try:
        with pytest.raises(MachineError, match=r"stands still \(paused by user\)"):
            guest.spawn("true")
    finally:
        guest.resume()
    assert guest.run("echo well").stdout == "well\n"


def test_a_spawned_task_is_its_program_at_once(guest: Guest) -> None:
    for _ in range(10):
        pid = guest.spawn("/labs/touch 1M")
        assert guest.task(pid).comm == "touch"
        guest.run(f"kill {pid}")


def test_a_spawned_command_may_need_the_shell(guest: Guest) -> None:
    pid = guest.spawn("echo $((6 * 7)) > /tmp/answer; sleep 1000")
    guest.run("until [ -s /tmp/answer ]; do sleep 0.05; done", timeout=10).check()
    assert guest.run("cat /tmp/answer").stdout == "42\n"
    guest.run(f"kill {pid}")


def test_the_clock_stands_still_while_paused(guest: Guest) -> None:
    """The guest's own tick count does not move between two readings inside paused()."""
    with guest.paused():
        jiffies = guest.symbol("jiffies_64")
        assert guest.read_virt(jiffies, 8) == guest.read_virt(jiffies, 8)
        first = guest.read_virt(jiffies, 8)
        threading.Event().wait(0.1)
        assert guest.read_virt(jiffies, 8) == first
    guest.run("sleep 0.1")
    assert guest.read_virt(jiffies, 8) != first


def test_symbols_agree_with_kallsyms(guest: Guest) -> None:
    """Every symbol of the kernel's own list has the address that we give it."""
    theirs: dict[str, set[int]] = {}
    listing = gzip.decompress(
        guest.run("gzip -1 < /proc/kallsyms", timeout=120).check().stdout_bytes
    ).decode()
    for line in listing.splitlines():
        address, _, name, *module = line.split()
        if not module:
            theirs.setdefault(name, set()).add(int(address, 16))
    assert len(theirs) > 50_000
    assert len(guest.kernel.symbols) == sum(1 for line in listing.splitlines() if "[" not in line)
    for name in list(theirs)[::37]:
        assert {symbol.address for symbol in guest.kernel.symbols.all(name)} == theirs[name], name
    assert guest.symbol("init_task") in theirs["init_task"]


def test_symbol_at(guest: Guest) -> None:
    address = guest.symbol("do_exit")
    found = guest.symbol_at(VirtAddr(address + 5))
    assert found
    assert (found[0].name, found[1]) == ("do_exit", 5)


def test_errors_name_what_was_wrong(guest: Guest) -> None:
    with pytest.raises(NoSuchSymbol, match="init_tusk"):
        guest.symbol("init_tusk")
    with pytest.raises(OutsideRam, match="no RAM at physical address 0x40000000"):
        guest.read_phys(PhysAddr(1024 * MIB), 1)
    with pytest.raises(PageFault, match=r"#GP\(0\)") as fault:
        guest.read_virt(VirtAddr(0x0001_0000_0000_0000), 1)
    assert fault.value.walk.fault


def test_the_banner_is_at_its_symbol(guest: Guest) -> None:
    """Bytes, names and page tables together: the kernel's banner is what /proc/version was made of."""
    banner = guest.kernel.space.cstring(guest.symbol("linux_banner"), 200)
    assert banner == guest.run("cat /proc/version").stdout
