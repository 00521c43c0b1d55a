"""The screens over a booted guest; what they show is compared with what the guest itself says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

from inspector.guest import Guest
from inspector.trace.ledger import FREED
from inspector.tui.guest_source import GuestSource
from inspector.tui.places import Place, ViewName
from inspector.tui.screenshots import take
from inspector.tui.views.allocations import AllocationsView
from inspector.tui.views.faults import FaultsView
from inspector.units import Pfn, format_size

if TYPE_CHECKING:
    from tests.tui.conftest import Screen

pytestmark = pytest.mark.guest
Play = Callable[..., None]
MOVABLE = 1  # MIGRATE_MOVABLE (include/linux/mmzone.h)
GROUP = "/sys/fs/cgroup/swapped"


@pytest.fixture(scope="module")
def guest(boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest with two CPUs."""
    with boot_guest("debian-6.1", "512M", 2) as booted:
        yield booted


@pytest.fixture(scope="module")
def pid(guest: Guest) -> int:
    """A task with 8 MiB of touched memory, ready."""
    pid = guest.spawn("/labs/touch 8M")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
    return pid


def test_the_guest_tells_the_same(play_live: Play, guest: Guest, pid: int) -> None:
    release = guest.run("uname -r").check().stdout.strip()
    maps = [line.split() for line in guest.run(f"cat /proc/{pid}/maps").check().stdout.splitlines()]
    threads = guest.run("ls -d /proc/[0-9]* | wc -l").check().stdout.strip()
    assert int(threads) > 20

    async def script(screen: Screen) -> None:
        await screen.shows("RUNNING", f"Linux {release}", "DMA32", "native_safe_halt")
        await screen.press("2")
        await screen.shows("touch", str(pid), "[kthreadd]")
        await screen.app.go(Place(ViewName.SPACE, pid=pid))
        text = await screen.shows(f"touch PID {pid}", f"{len(maps)} VMAs", "/labs/touch", "[stack]")
        for addresses, permissions, *_ in maps[:20]:
            start = f"0x{addresses.split('-')[0].lstrip('0')}"
            line = next(line for line in text.splitlines() if line.strip().startswith(f"{start} "))
            assert permissions in line
        await screen.press("home", "enter")
        await screen.shows("✔ physical", "4 KiB page", "/labs/touch")
        await screen.press("enter")
        await screen.shows("shared mem", "uptodate", "struct address_space")  # its root is a tmpfs
        await screen.press("5")
        await screen.shows("anonymous", "page table", "all shown")
        await screen.press("c", "enter")
        await screen.type("uname -r")
        await screen.press("enter")
        await screen.until(lambda: screen.text().count(release) > 1)

    play_live(GuestSource(guest), script, (120, 50))


def test_a_pause_by_the_user_outlives_the_reading(play_live: Play, guest: Guest) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("RUNNING", "DMA32")
        await screen.press("space")
        await screen.shows("PAUSED", "stopped")
        await screen.press("2")
        await screen.shows("[kthreadd]", "PAUSED")
        assert not guest.running
        await screen.press("space")
        await screen.shows("RUNNING")
        await screen.until(lambda: guest.running)

    play_live(GuestSource(guest), script)


def test_slabs_vmalloc_and_memory_are_the_guests(play_live: Play, guest: Guest) -> None:
    slabs = [line.split() for line in guest.run("cat /proc/slabinfo").check().stdout.splitlines()[2:]]
    name, _, _, size, per_slab = max(slabs, key=lambda line: int(line[14]) * int(line[5]))[:5]
    areas = (
        guest.run("echo 1 >/proc/sys/kernel/kptr_restrict; cat /proc/vmallocinfo").check().stdout.splitlines()
    )
    first = f"0x{areas[0].split('-')[0].removeprefix('0x')}"
    total = int(guest.run("grep MemTotal /proc/meminfo").check().stdout.split()[1])

    async def script(screen: Screen) -> None:
        await screen.press("7")
        await screen.shows(f"{len(slabs)} caches", f"A slab of {name}", f"{per_slab} objects of {size} bytes")
        await screen.press("enter")
        await screen.shows(f"s slab  {name}", "lit")
        await screen.press("enter")
        await screen.shows("Objects", f"{per_slab} in the slab that this frame is of", "allocated")
        await screen.press("8")
        await screen.shows(first, areas[0].split()[2])
        await screen.press("enter")
        await screen.shows("✔ physical")
        await screen.press("enter")
        await screen.shows(f"{first} rw- in the kernel: vmalloc")
        await screen.press("0")
        await screen.shows("MemTotal", format_size(total << 10))

    play_live(GuestSource(guest), script, (120, 50))


def test_what_is_swapped_out(play_live: Play, guest: Guest) -> None:
    zram = "echo 64M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0"
    guest.run(f"{zram} && mkdir {GROUP}").check()
    pid = guest.spawn(f"sh -c 'echo 0 >{GROUP}/cgroup.procs; exec /labs/touch 8M --no-thp'")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
    swapped = f"grep VmSwap /proc/{pid}/status"
    settles = f'until was=$({swapped}); sleep 1; [ "$was" = "$({swapped})" ]; do :; done'
    guest.run(f"echo 1M >{GROUP}/memory.high; {settles}", timeout=60).check()
    try:
        swap = guest.run(swapped).check().stdout.split()[1]

        async def script(screen: Screen) -> None:
            await screen.press("9")
            await screen.shows("/dev/zram0", f"{pid} touch", str(int(swap) // 4))
            await screen.press("enter")
            await screen.shows("swapped out: slot", "of swap area 0 (/dev/zram0)")

        play_live(GuestSource(guest), script)
    finally:
        guest.run(
            f"kill {pid}; until rmdir {GROUP}; do sleep 0.1; done;"
            " swapoff /dev/zram0; echo 1 >/sys/block/zram0/reset"
        ).check()


def test_every_frame_can_be_opened(play_live: Play, guest: Guest) -> None:
    async def script(screen: Screen) -> None:
        for pfn in (0, 0x100, 0x1000, 0x1FFFF):
            await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(pfn)))
            await screen.shows(f"PFN {pfn:#x} ", "direct map", "_refcount")
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(1 << 40)))
        await screen.shows("has no struct page")

    play_live(GuestSource(guest), script)


def test_faults_are_the_programs(play_live: Play, guest: Guest) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("F", "i")
        await screen.type("/labs/faults /tmp")
        await screen.press("enter")
        await screen.shows("held", "1 fault,")
        await screen.press("g")
        await screen.shows("ended", "anonymous", "dirty_tracking")
        view = screen.app.view
        assert isinstance(view, FaultsView)
        said = guest.run(f"cat /tmp/spawn-{view.traced.pid}.log").check().stdout.splitlines()
        kind, _, _, address, entry = next(line.split() for line in said if line.startswith("COW_COPY"))
        await screen.press("f")
        await screen.type(f"{kind.lower()} {address}")
        await screen.press("enter")
        pfn = int(entry, 16) & (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
        await screen.shows(
            "copy-on-write, copied", f"{address} write by user code", f"✔ PFN {pfn:#x} 4 KiB rw-"
        )

    play_live(GuestSource(guest), script)


def test_quitting_at_a_fault_lets_the_task_run_on(play_live: Play, guest: Guest) -> None:
    traced: list[int] = []

    async def script(screen: Screen) -> None:
        await screen.press("F", "i")
        await screen.type("/labs/touch 1M --no-thp")
        await screen.press("enter")
        await screen.shows("held", "1 fault,")
        view = screen.app.view
        assert isinstance(view, FaultsView)
        traced.append(view.traced.pid)
        await screen.press("n", "q")

    play_live(GuestSource(guest), script)
    log = f"/tmp/spawn-{traced[0]}.log"
    guest.run(f"until [ -s {log} ]; do sleep 0.05; done; kill {traced[0]}", timeout=60).check()


def touched(guest: Guest, pid: int, pages: int) -> list[int]:
    """The frames of what a touch program touched, by its own pagemap."""
    log = f"/tmp/spawn-{pid}.log"
    said = guest.run(f"until [ -s {log} ]; do sleep 0.05; done; cat {log}", timeout=120).check().stdout
    first = int(said.split()[1], 16) >> 12
    raw = guest.run(f"dd if=/proc/{pid}/pagemap bs=8 skip={first} count={pages} 2>/dev/null").check()
    entries = np.frombuffer(raw.stdout_bytes, np.uint64)
    assert len(entries) == pages
    return [int(entry) & (1 << 55) - 1 for entry in entries]  # Documentation/admin-guide/mm/pagemap.rst


def test_allocations_are_the_programs(play_live: Play, guest: Guest) -> None:
    """Its pages light up while it has them, and go out when it is gone."""

    async def script(screen: Screen) -> None:
        await screen.press("A", "i")
        await screen.type("/labs/touch 128K --no-thp")
        await screen.press("enter")
        await screen.shows("held", "in 1 event", "#1 ")
        await screen.press("g")
        view = screen.app.view
        assert isinstance(view, AllocationsView)
        pfns = await asyncio.to_thread(touched, guest, view.traced.pid, 32)
        await screen.until(lambda: all(view.holdings.frames[pfn] == 1 + MOVABLE for pfn in pfns))
        await screen.press("f")
        await screen.type(f"alloc {pfns[7]:#x}")
        await screen.press("enter")
        await screen.shows(f"allocated PFN {pfns[7]:#x}, 1 page (4 KiB)", "__GFP_ZERO", "handle_mm_fault")
        await asyncio.to_thread(guest.run, f"kill {view.traced.pid}")
        await screen.shows("ended", "freed as #")
        assert all(view.holdings.frames[pfn] == FREED for pfn in pfns)
        assert view.traced.lost == 0

    play_live(GuestSource(guest), script, (160, 45))


def test_who_frees_a_frame(play_live: Play, guest: Guest) -> None:
    pid = guest.spawn("/labs/touch 128K --no-thp")
    pfn = touched(guest, pid, 32)[7]

    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(pfn)))
        await screen.shows(f"touch ({pid})")
        await screen.press("w")
        await screen.shows(f"frame {pfn:#x} now  a  anonymous")
        await screen.press("g")
        await screen.shows("running")
        await asyncio.to_thread(guest.run, f"kill {pid}")
        await screen.press("home")
        await screen.shows(f"#1 freed PFN {pfn:#x}", f"by touch ({pid})", "· held from before", "do_exit+")

    play_live(GuestSource(guest), script, (120, 45))


def test_a_lab_is_played(play_live: Play, guest: Guest) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("L")
        await screen.shows("zero-page", "copy-on-write")
        await screen.app.go(Place(ViewName.LABS, label="zero-page"))
        await screen.shows("⏎ does it")
        await screen.press("g")
        await screen.shows("✔ As expected.", "/proc/self/pagemap")
        await screen.press("escape")
        await screen.shows("✔ passed")

    play_live(GuestSource(guest), script)
    assert guest.run("ls -d /tmp/lab.*").returncode, "its folder is left"


def test_a_buffer_followed_as_its_page_goes(play_live: Play, guest: Guest) -> None:
    """The device's own bytes are shown; a page that is moved away under a device is another's then."""
    guest.load_module("edu", mask=32)
    holder = guest.spawn("/labs/dma stale")
    try:
        guest.run(f"until [ -s /tmp/spawn-{holder}.log ]; do sleep 0.05; done", timeout=60).check()
        (entry,) = guest.run(f"cut -d ' ' -f 3 /tmp/spawn-{holder}.log").stdout.split()
        pfn = int(entry, 16) & (1 << 55) - 1

        async def script(screen: Screen) -> None:
            await screen.press("D")
            await screen.shows("1 known buffers", "edu", "32 bits, to 4 GiB", f"{pfn << 12:#x}")
            await screen.press("enter")
            await screen.shows(f"{pfn:#x}", f"dma ({holder})", "mapcount 1", "edu was here")
            guest.run(f"echo {pfn << 12:#x} >/sys/devices/system/memory/soft_offline_page").check()
            await screen.shows(f"was anonymous dma ({holder})", "mapcount 0")

        play_live(GuestSource(guest), script)
    finally:
        guest.run(f"kill {holder}; while [ -e /proc/{holder} ]; do sleep 0.05; done")
        guest.unload_module("edu")


def test_pictures_are_taken(guest: Guest, tmp_path: Path) -> None:
    pictures = take(guest, tmp_path)
    assert {picture.stem for picture in pictures} == {*ViewName, "lit", "changed"}
    for picture in pictures:
        ElementTree.parse(picture)  # well-formed
        text = picture.read_text()
        assert "RUNNING" in text.replace("&#160;", " ")
        assert "https://" not in text
        assert str(Path.home()) not in text
