"""The pictures of the documentation: `python -m inspector.tui.screenshots docs/pictures`.

Boots the default guest, gives it some tasks with something to look at, and saves each screen as SVG.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

import inspector
from inspector.errors import InspectorError, MachineError
from inspector.guest import Guest
from inspector.kernel.owners import Owner
from inspector.trace import Fault, FaultKind
from inspector.tui.app import InspectorApp
from inspector.tui.guest_source import GuestSource
from inspector.tui.places import Place, ViewName
from inspector.tui.svg import plain
from inspector.tui.tracing import Target
from inspector.tui.views.allocations import AllocationsView
from inspector.tui.views.devices import DevicesView
from inspector.tui.views.faults import FaultsView
from inspector.tui.views.frames import FramesView
from inspector.tui.views.labs import LabsView
from inspector.units import VirtAddr

SIZE = (120, 36)
_PATIENCE = 600.0  # seconds for a task to get ready, or a screen to fill
_GROUP = "/sys/fs/cgroup/small"
_SWAPPED = "/labs/touch 16M --no-thp"
_LAB = "copy-on-write"
_FAULTS = "/labs/faults /tmp"
_NEWCOMER = "/labs/touch 24M"
_PAGES, _EVENTS = "/labs/fork 2M --no-thp", 350
_BUFFERS = ("coherent", "kmalloc", "pinned", "stale")
_TOUCH, _FORK, _MAPS = "/labs/touch 32M", "/labs/fork 8M", "/labs/maps"


def take(guest: Guest, folder: Path) -> list[Path]:
    """Save a picture of each screen. Raises InspectorError where the guest does not play along."""
    pids = {command: _spawn(guest, command) for command in (_TOUCH, _FORK, _MAPS)}
    _swap_out(guest)
    _transfer(guest)
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_take(guest, folder, pids))


def _spawn(guest: Guest, command: str) -> int:
    """Start a lab program and wait until it says that it is ready."""
    pid = guest.spawn(command)
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.1; done", timeout=_PATIENCE).check()
    return pid


def _swap_out(guest: Guest) -> None:
    """Let the guest swap to compressed memory, and a task that may not have all it wants."""
    zram = "echo 64M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0"
    guest.run(zram).check()
    guest.run(f"mkdir {_GROUP}").check()
    _spawn(guest, f"sh -c 'echo 0 >{_GROUP}/cgroup.procs; exec {_SWAPPED}'")
    guest.run(f"echo 8M >{_GROUP}/memory.high; sleep 0.5").check()


def _transfer(guest: Guest) -> None:
    """Give a device buffers of each kind, and let one of them be written again and again."""
    guest.load_module("edu")
    busy, *_ = [_spawn(guest, f"/labs/dma {kind}") for kind in _BUFFERS]
    guest.spawn(f"sh -c 'while kill -USR1 {busy}; do sleep 0.5; done'")


async def _take(guest: Guest, folder: Path, pids: dict[str, int]) -> list[Path]:
    app = InspectorApp(GuestSource(guest))
    va = _written(guest, pids[_TOUCH])
    pfn = guest.task(pids[_TOUCH]).walk(va).pfn
    places = {
        "overview": Place(ViewName.OVERVIEW),
        "tasks": Place(ViewName.TASKS),
        "space": Place(ViewName.SPACE, pid=pids[_MAPS]),
        "walk": Place(ViewName.WALK, pid=pids[_TOUCH], va=va),
        "frames": Place(ViewName.FRAMES, pfn=pfn),
        "changed": Place(ViewName.FRAMES, changed=True),
        "lit": Place(ViewName.FRAMES, owner=int(Owner.SLAB), label=_largest_cache(guest)),
        "page": Place(ViewName.PAGE, pfn=pfn),
        "slabs": Place(ViewName.SLABS),
        "vmalloc": Place(ViewName.VMALLOC),
        "swap": Place(ViewName.SWAP),
        "memory": Place(ViewName.MEMORY),
        "devices": Place(ViewName.DEVICES),
        "console": Place(ViewName.CONSOLE),
        "faults": Place(ViewName.FAULTS, pid=pids[_FORK]),
        "allocations": Place(ViewName.ALLOCATIONS),
        "labs": Place(ViewName.LABS, label=_LAB),
    }
    saved = []
    async with app.run_test(size=SIZE) as pilot:
        for name, place in places.items():
            if name == "changed":
                await _marked(app, guest)
            await app.go(place)
            await _filled(pilot, app)
            if isinstance(app.view, DevicesView):
                await _written_to(pilot, app.view)
            if isinstance(app.view, FramesView) and place.changed:
                await _changed(pilot, app.view)
            if isinstance(app.view, FaultsView):
                await _traced(pilot, app.view)
            if isinstance(app.view, AllocationsView):
                await _allocated(pilot, app.view)
            if isinstance(app.view, LabsView):
                await _played(pilot, app.view)
            path = folder / f"{name}.svg"
            path.write_text(plain(app.export_screenshot(title=f"kmi: {name}")))
            saved.append(path)
    return saved


async def _filled(pilot: Pilot[Any], app: InspectorApp) -> None:
    """Wait until the view has its data and has drawn them."""
    end = time.monotonic() + _PATIENCE
    while app.view.data is None:
        if time.monotonic() > end:
            raise MachineError(f"the {app.place.view} screen got no data in {_PATIENCE:.0f} s")
        await pilot.pause(0.05)
    await pilot.pause(0.3)


async def _marked(app: InspectorApp, guest: Guest) -> None:
    """Mark a moment on the map of frames, and have a task take memory after it."""
    assert isinstance(app.view, FramesView)
    app.view.action_mark()
    await asyncio.to_thread(_spawn, guest, _NEWCOMER)


async def _written_to(pilot: Pilot[Any], view: DevicesView) -> None:
    """Look at a buffer when the device has just written it."""
    view.action_open()
    await _until(pilot, lambda: bool(view.lit) and view.holds_bytes, "a transfer")
    await pilot.pause(0.3)


async def _changed(pilot: Pilot[Any], view: FramesView) -> None:
    """Wait until the map knows what changed hands, and look at the first of it."""
    await _until(pilot, lambda: view.changes is not None and bool(len(view.changes.pfns)), "a change")
    view.action_next_state(1)
    await pilot.pause(0.3)


async def _traced(pilot: Pilot[Any], view: FaultsView) -> None:
    """Trace a program with faults of many kinds, and look at a copy-on-write."""
    view.begin(Target(_FAULTS), run=True)
    await _until(pilot, lambda: not view.traced.on and bool(_copies(view)), _FAULTS)
    view.table.move_to(_copies(view)[-1].number)
    await pilot.pause(0.3)


def _copies(view: FaultsView) -> list[Fault]:
    """Faults that the list has in which a page that was there was copied."""
    return [row for row in view.table.shown if row.kind is FaultKind.COW_COPY and row.before.pfn]


async def _allocated(pilot: Pilot[Any], view: AllocationsView) -> None:
    """Trace a program that takes memory and gives some back, and look at a page that it still has."""
    view.begin(Target(_PAGES), run=True)
    await _until(pilot, lambda: view.traced.total >= _EVENTS, _PAGES)
    await pilot.pause(0.3)


async def _played(pilot: Pilot[Any], view: LabsView) -> None:
    """Play a lab to its end."""
    view.action_rest()
    await _until(pilot, lambda: not view.on, f"lab {_LAB}")
    await pilot.pause(0.3)


async def _until(pilot: Pilot[Any], done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > end:
            raise MachineError(f"{what} did not end within {_PATIENCE:.0f} s")
        await pilot.pause(0.05)


def _largest_cache(guest: Guest) -> str:
    """The slab cache with most frames."""
    return next(iter(guest.owners().by_label(Owner.SLAB)))


def _written(guest: Guest, pid: int) -> VirtAddr:
    """An address in the middle of the largest VMA."""
    largest = max(guest.task(pid).vmas(), key=lambda vma: vma.size)
    return VirtAddr(largest.start + largest.size // 2 & ~0xFFF)


def main(arguments: list[str]) -> int:
    """`python -m inspector.tui.screenshots FOLDER`."""
    if len(arguments) != 1:
        print("usage: python -m inspector.tui.screenshots FOLDER", file=sys.stderr)
        return 2
    try:
        with inspector.boot(cpus=2) as guest:
            for path in take(guest, Path(arguments[0])):
                print(path)
    except InspectorError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
