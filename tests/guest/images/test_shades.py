"""A page with several memory types: what its entries say, by QEMU's walk and by the kernel's own log."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from inspector import Guest
from inspector.errors import LabFailed
from inspector.images.manifest import manifest
from inspector.kernel.rmap import Alias
from inspector.labs.actor import Actor
from inspector.units import Pfn, PhysAddr

pytestmark = pytest.mark.guest

Start = Callable[[Guest, str], int]

# What Linux has in the PAT (arch/x86/mm/pat/memtype.c, pat_bp_init), by PWT and PCD.
_INDEX = {"WB": 0, "WC": 1, "UC-": 2}


@pytest.fixture(scope="module", params=manifest().loaded_into)
def booted(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of each kernel that modules are built for."""
    with boot_guest(request.param, "512M", 1) as guest:
        yield guest


@pytest.fixture
def shades(booted: Guest) -> Iterator[Guest]:
    """The same while the module is loaded, and nothing in the log but what comes now."""
    booted.run("dmesg -c >/dev/null").check()
    booted.load_module("shades")
    yield booted
    booted.unload_module("shades")


@dataclass(frozen=True)
class Page:
    """A task's page, by the module's log."""

    pid: int
    place: PhysAddr

    @property
    def pfn(self) -> Pfn:
        """Its frame."""
        return Pfn(self.place >> 12)


Take = Callable[[str], Page]


@pytest.fixture
def take(shades: Guest, start: Start) -> Iterator[Take]:
    """Start a task with a page; it ends with the test."""
    pids: list[int] = []

    def run(options: str) -> Page:
        pids.append(start(shades, f"/labs/shades {options}"))
        (place,) = re.findall(r"shades: page at (0x\w+)", shades.run("dmesg").check().stdout)
        assert shades.read_phys(PhysAddr(int(place, 16)), 6) == b"shades"  # what the task wrote
        return Page(pids[-1], PhysAddr(int(place, 16)))

    yield run
    end(shades, *pids)


def end(guest: Guest, *pids: int) -> None:
    """End tasks, and wait until they are gone."""
    for pid in pids:
        guest.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done")


def modes(aliases: list[Alias]) -> dict[str, str]:
    """The memory type by where an alias is: user, direct map, vmalloc, kernel image."""
    return {alias.region: alias.cache_mode for alias in aliases}


def by_qemu(guest: Guest, address: int) -> int:
    """An entry's index into the PAT, without its PAT bit: PCD and PWT as QEMU's own walk shows them."""
    (flags,) = re.findall(rf"^{address:016x}: [0-9a-f]+ (\S+)", guest.machine.hmp("info tlb"), re.MULTILINE)
    return ("C" in flags) << 1 | ("T" in flags)


@pytest.mark.parametrize("direct", ["WB", "WC", "UC-"])
@pytest.mark.parametrize("alias", ["WB", "WC", "UC-"])
def test_the_kernels_entries_agree_with_qemu(shades: Guest, take: Take, alias: str, direct: str) -> None:
    page = take(f"wb {alias.lower()} {direct.lower()}")
    with shades.paused():
        found = shades.mapped_by(page.pfn)
        kernels = [entry for entry in found if entry.task is None]
        # Where the direct map has a huge page there, QEMU shows where that begins.
        assert {entry.va: by_qemu(shades, entry.va & -entry.size) for entry in kernels} == {
            entry.va: _INDEX[entry.cache_mode] for entry in kernels
        }
    assert modes(found)["direct map"] == direct
    assert modes(found)["vmalloc"] == alias
    # The second view of low memory, where there is one, is changed with the first (cpa_process_alias).
    assert modes(found).get("kernel image", direct) == direct


@pytest.mark.parametrize("user", ["WB", "WC", "UC-"])
def test_insert_takes_what_the_vma_says(shades: Guest, take: Take, user: str) -> None:
    page = take(f"{user.lower()} wb wb")
    found = modes(shades.mapped_by(page.pfn))
    assert (found["user"], found["direct map"]) == (user, "WB")
    assert "x86/PAT" not in shades.run("dmesg").stdout


@pytest.mark.parametrize(
    ("user", "direct", "wanted", "got"),
    [("wb", "wc", "write-back", "write-combining"), ("uc-", "wb", "uncached-minus", "write-back")],
)
def test_remap_takes_the_frames_own(
    shades: Guest, take: Take, user: str, direct: str, wanted: str, got: str
) -> None:
    page = take(f"{user} wb {direct} --remap")
    assert modes(shades.mapped_by(page.pfn))["user"] == direct.upper()
    (line,) = re.findall(r"x86/PAT: (shades:.*)$", shades.run("dmesg").stdout, re.MULTILINE)
    assert f"req {wanted} for [mem {page.place:#010x}-" in line
    assert line.endswith(f"got {got}")


def test_the_direct_map_is_cached_again_afterwards(shades: Guest, take: Take) -> None:
    page = take("wb wb uc-")
    assert modes(shades.mapped_by(page.pfn))["direct map"] == "UC-"
    end(shades, page.pid)
    found = modes(shades.mapped_by(page.pfn))
    assert found["direct map"] == "WB"
    assert found.get("kernel image", "WB") == "WB"


# _IOW('S', ...) of qemu_images/modules/shades/shades.h
_TAKE, _PAINT, _IOREMAP = 0x40145301, 0x40045302, 0x40105303


@pytest.fixture
def asker(shades: Guest) -> Iterator[Actor]:
    """A task with /dev/shades open as `d`."""
    actor = Actor(shades)
    actor.open("d", "/dev/shades")
    yield actor
    actor.close()


def test_a_page_that_a_large_entry_covers(shades: Guest, asker: Actor) -> None:
    def kilobytes() -> int:
        return int(shades.run("sed -n 's/DirectMap4k: *//p' /proc/meminfo").check().stdout.split()[0])

    before = kilobytes()
    asker.ioctl("d", _TAKE, struct.pack("=5I", 0, 0, 0, 0, 1))
    (place,) = re.findall(r"shades: page at (0x\w+)", shades.run("dmesg").check().stdout)
    assert kilobytes() == before
    for shade, name in ((2, "UC-"), (0, "WB"), (1, "WC")):
        asker.ioctl("d", _PAINT, struct.pack("=I", shade))
        assert modes(shades.mapped_by(Pfn(int(place, 16) >> 12)))["direct map"] == name
        assert kilobytes() > before
    with pytest.raises(LabFailed, match="busy"):
        asker.ioctl("d", _PAINT, struct.pack("=I", 2))


def test_a_device_is_mapped_and_ram_is_not(shades: Guest, asker: Actor) -> None:
    (device,) = (each for each in shades.pci_devices() if (each.vendor, each.device) == (0x1234, 0x11E8))
    ram = re.findall(
        r"^([0-9a-f]+)-[0-9a-f]+ : System RAM", shades.run("cat /proc/iomem").stdout, re.MULTILINE
    )
    for place, shade, error in (
        (int(ram[-1], 16), 2, "busy"),
        (device.bars[0].start, 0, "Invalid"),
        (device.bars[0].start + 1, 2, "Invalid"),
    ):
        with pytest.raises(LabFailed, match=error):
            asker.ioctl("d", _IOREMAP, struct.pack("=QII", place, shade, 0))
    asker.ioctl("d", _IOREMAP, struct.pack("=QII", device.bars[0].start, 1, 0))
    listed = shades.run("cat /sys/kernel/debug/x86/pat_memtype_list").check().stdout
    assert re.search(rf"\[mem 0x0*{device.bars[0].start:x}-\w+\] write-combining", listed)


@pytest.mark.parametrize(
    ("request_", "data"),
    [(_TAKE, struct.pack("=5I", 0, 0, 0, 0, 2)), (_TAKE, struct.pack("=5I", 3, 0, 0, 0, 0)),
     (_PAINT, struct.pack("=I", 3))],
)  # fmt: skip
def test_what_makes_no_sense(asker: Actor, request_: int, data: bytes) -> None:
    with pytest.raises(LabFailed, match="Invalid argument"):
        asker.ioctl("d", request_, data)
