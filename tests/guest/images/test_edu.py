"""QEMU's edu device driven by our module: real transfers, seen in guest RAM and where they should not be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from inspector import Guest
from inspector.images.manifest import manifest
from inspector.memory import MappedRam
from inspector.units import Pfn, PhysAddr

pytestmark = pytest.mark.guest

Start = Callable[[Guest, str], int]

TEXT = b"edu was here "  # what /labs/dma has the device carry
_FRAME = (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
_PIN = 1024  # GUP_PIN_COUNTING_BIAS (include/linux/mm.h): what a pin adds to the refcount


@pytest.fixture(scope="module", params=manifest().loaded_into)
def reachable(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest with no RAM beyond the 28 bits that the driver tells of unless it is told otherwise."""
    with boot_guest(request.param, "256M", 1) as guest:
        yield guest


@pytest.fixture
def edu(reachable: Guest) -> Iterator[Guest]:
    """The same with the driver loaded, and nothing in the log but what it says."""
    reachable.run("dmesg -c >/dev/null").check()
    reachable.load_module("edu")
    yield reachable
    reachable.unload_module("edu")


@dataclass(frozen=True)
class Transfer:
    """A buffer by the driver's log, and what /labs/dma last said of it."""

    guest: Guest
    pid: int
    place: PhysAddr
    bus: PhysAddr

    def said(self) -> tuple[Pfn, str]:
        """The frame of the task's own page, and whether the bytes came."""
        entry, word = self.guest.run(f"tail -n 1 /tmp/spawn-{self.pid}.log").check().stdout.split()[-2:]
        return Pfn(int(entry, 16) & _FRAME), word

    def again(self) -> None:
        """One more transfer from the device."""
        count = f"$(wc -l </tmp/spawn-{self.pid}.log)"
        wait = f"while [ {count} = $before ]; do sleep 0.05; done"
        self.guest.run(f"before={count}; kill -USR1 {self.pid}; {wait}").check()


Run = Callable[..., Transfer]


@pytest.fixture
def transfer(edu: Guest, start: Start) -> Iterator[Run]:
    """Send a buffer's bytes to the device and have them back; the task ends with the test."""
    pids: list[int] = []

    def run(kind: str, more: str = "") -> Transfer:
        pids.append(start(edu, f"/labs/dma {kind} {more}"))
        log = edu.run("dmesg").check().stdout
        place, bus = re.findall(rf"buffer \d+ {kind}(?: at (0x\w+))? bus (0x\w+)$", log, re.MULTILINE)[-1]
        return Transfer(edu, pids[-1], PhysAddr(int(place or bus, 16)), PhysAddr(int(bus, 16)))

    yield run
    for pid in pids:
        edu.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done")


@pytest.mark.parametrize("kind", ["pages", "kmalloc", "coherent", "pinned", "stale"])
def test_the_bytes_come_to_where_the_driver_says(edu: Guest, transfer: Run, kind: str) -> None:
    done = transfer(kind)
    frame, word = done.said()
    assert word == "came"
    assert edu.read_phys(done.place, len(TEXT)) == TEXT
    assert done.bus == done.place  # no IOMMU, nothing to bounce
    if kind in ("pinned", "stale"):
        assert frame == done.place >> 12


def interrupts(guest: Guest) -> int:
    """How often the device has interrupted: once a transfer."""
    (count,) = re.findall(r"^ *\d+: +(\d+) .*\bedu$", guest.run("cat /proc/interrupts").stdout, re.MULTILINE)
    return int(count)


def test_the_device_has_interrupted(edu: Guest, transfer: Run) -> None:
    transfer("pages").again()
    assert interrupts(edu) == 3  # there, back, and back again


def test_for_who_watches(edu: Guest, transfer: Run) -> None:
    done = transfer("kmalloc", "2048 3")
    done.again()  # when the three are over
    assert interrupts(edu) == 2 + 2 * 3 + 1
    assert done.said()[1] == "came"


@pytest.mark.parametrize(("mask", "zone"), [(24, "DMA"), (28, "DMA32")])
def test_the_mask_decides_the_zone(reachable: Guest, start: Start, mask: int, zone: str) -> None:
    reachable.run("dmesg -c >/dev/null").check()
    reachable.load_module("edu", mask=mask)
    pid = start(reachable, "/labs/dma coherent")
    (bus,) = re.findall(r"coherent bus (0x\w+)", reachable.run("dmesg").stdout)
    page = reachable.page(Pfn(int(bus, 16) >> 12))
    reachable.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done")
    reachable.unload_module("edu")
    assert page.zone == zone
    assert int(bus, 16) < 1 << mask


def move_away(guest: Guest, place: PhysAddr) -> int:
    """Have the kernel migrate a frame's page (Documentation/ABI/testing/sysfs-memory-page-offline)."""
    return guest.run(f"echo {place:#x} >/sys/devices/system/memory/soft_offline_page").returncode


def test_a_pinned_page_stays(edu: Guest, transfer: Run) -> None:
    done = transfer("pinned")
    # A CPU's batch for the LRU lists holds it too (C: lru_add_drain_all(), in compact_nodes()).
    edu.run("echo 1 >/proc/sys/vm/compact_memory").check()
    assert edu.page(Pfn(done.place >> 12)).refcount == _PIN + 1
    assert move_away(edu, done.place)
    done.again()
    assert done.said() == (done.place >> 12, "came")


def test_a_locked_page_moves_and_the_transfer_goes_astray(edu: Guest, transfer: Run) -> None:
    done = transfer("stale")
    assert edu.page(Pfn(done.place >> 12)).refcount == 1
    assert not move_away(edu, done.place)
    assert edu.machine.ram_fd is not None
    with closing(MappedRam.from_fd(edu.machine.ram_fd, edu.memory.blocks, writable=True)) as ram:
        ram.write(done.place, bytes(len(TEXT)))
    done.again()
    frame, word = done.said()
    assert (frame != done.place >> 12, word) == (True, "lost")
    assert edu.read_phys(done.place, len(TEXT)) == TEXT  # in a frame that is no longer the task's
    assert edu.read_phys(PhysAddr(frame << 12), len(TEXT)) == bytes(len(TEXT))


def test_leaves_no_warning_behind(edu: Guest, transfer: Run) -> None:
    transfer("pages")
    assert not int(edu.run("cat /proc/sys/kernel/tainted").stdout) & 1 << 9  # TAINT_WARN


def test_out_of_reach_is_refused(reachable: Guest) -> None:
    """Where there is no swiotlb the kernel refuses, and says so once a boot: the last test of this guest."""
    reachable.load_module("edu", mask=24)
    done = reachable.run("/labs/dma pinned")
    reachable.unload_module("edu")
    assert done.returncode
    assert "cannot take 2048 bytes: Input/output error" in done.stderr
    log = reachable.run("dmesg").stdout
    (address,) = re.findall(r"edu .*: DMA addr (0x\w+)\+2048 overflow \(mask ffffff,", log)
    assert int(address, 16) >= 1 << 24
