"""What the bench asks about the whole of memory, in guests of several sizes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from inspector.cli.bench_drgn import NAME, Drgn
from inspector.cli.bench_rows import Effort, Row, by_turns, seconds
from inspector.errors import KernelError
from inspector.guest import Guest
from inspector.kernel import slab_objects
from inspector.kernel.memmap import MemMap
from inspector.units import format_size

_FIRST = 2  # askings that meet memory which the host has not given to us yet
_IN_A_ROW = 5  # askings in one turn: the peer reads its thousands of frames in a row too
_WHOLE = 1 << 30  # guests of more are too large for the peer to count all objects of


def memory_rows(guest: Guest, drgn: Drgn | None, effort: Effort) -> list[Row]:
    """Every frame's owner, every slab object, who maps each frame: the guest stands still for all."""
    size = format_size(guest.machine.memory_size).replace(" ", "").replace("iB", "")
    busy = _frames_after_a_command(guest, effort)
    with guest.paused():
        return [
            _frames(guest, size, drgn, effort, busy),
            _slab_objects(guest, size, drgn, effort),
            _reverse_map(guest, size, effort),
            *_snapshots(guest, size, effort),
        ]


def _frames_after_a_command(guest: Guest, effort: Effort) -> float:
    """The median time in seconds where a program has just run: less of what was kept holds then."""
    times = []
    for _ in range(_FIRST):
        guest.frames()
    for _ in range(effort.repeats):
        guest.run("ls /proc >/dev/null").check()
        with guest.paused():
            times.append(seconds(guest.frames, 1))
    return median(times)


def _frames(guest: Guest, size: str, drgn: Drgn | None, effort: Effort, busy: float) -> Row:
    memmap = MemMap(guest.kernel)
    rows, count = guest.frames(), sum(end - first for first, end in memmap.runs)
    every = (pfn for first, end in memmap.runs for pfn in range(first, end))
    pfns = list(islice(every, effort.sample))
    if drgn is not None and drgn.page_flags(len(pfns)) != rows["flags"][pfns].tolist():
        raise KernelError(f"{NAME} reads other page flags than we do: one is wrong")
    timers = [partial(seconds, guest.frames, _IN_A_ROW), partial(_copying, guest, memmap)]
    if drgn is not None:
        timers.append(partial(seconds, partial(drgn.page_flags, len(pfns)), 1))
    took, floor, *peer = by_turns(effort.repeats, *timers)
    note = (
        f"guest.frames(), owners and all, {took / floor:.1f} times the floor, a copy of mem_map; "
        f"{busy * 1000:.1f} ms when a program has just run; the peer reads flags alone"
    )
    row = Row(f"frames_{size}", count, took, floor_s=floor, note=note)
    return row.beside(len(pfns), *peer) if peer else row


def _copying(guest: Guest, memmap: MemMap) -> float:
    """The floor under all questions about every frame: the median time of some copies of mem_map."""

    def copy() -> None:
        for first, end in memmap.runs:
            guest.kernel.space.array(memmap.address(first), (end - first) * memmap.struct_size).copy()

    return seconds(copy, _IN_A_ROW)


def _slab_objects(guest: Guest, size: str, drgn: Drgn | None, effort: Effort) -> Row:
    """The peer reads all of memory for each cache: it is asked for all of a small guest, one of a large."""
    kernel = guest.kernel
    counts = slab_objects.allocated_count(kernel)
    took = seconds(lambda: slab_objects.allocated_count(kernel), effort.repeats)
    note = "allocated objects of every cache, counted"
    row = Row(f"slab_objects_{size}", int(counts.sum()), took, note=note)
    caches = effort.caches
    if guest.machine.memory_size > _WHOLE:
        caches = 1 if caches is None else 0
    if drgn is None or caches == 0:
        return row
    ours = dict(zip((cache.name for cache in guest.slabs()), counts.tolist(), strict=True))
    names = sorted(ours, key=lambda name: -ours[name])[:caches]
    theirs: list[int] = []
    peer = seconds(lambda: theirs.extend(drgn.allocated_objects(names)), 1)
    wrong = [name for name, count in zip(names, theirs, strict=True) if count != ours[name]]
    if wrong:
        raise KernelError(f"{NAME} counts other objects in {', '.join(wrong)} than we do: one is wrong")
    note += f"; the peer counted as many in {len(names)} of {len(ours)} caches"
    return replace(row, note=note).beside(sum(theirs), peer)


def _reverse_map(guest: Guest, size: str, effort: Effort) -> Row:
    rows = guest.reverse_map().rows
    took = seconds(guest.reverse_map, effort.repeats)
    large = int(np.count_nonzero(rows["size"] > guest.kernel.space.format.page_size))
    return Row(f"reverse_map_{size}", rows.size, took, note=f"every leaf entry, {large} of large pages")


def _snapshots(guest: Guest, size: str, effort: Effort) -> list[Row]:
    """A snapshot of all memory, and what two of them differ in."""
    taken, memmap = guest.snapshot(), MemMap(guest.kernel)
    took, floor = by_turns(
        effort.repeats, partial(seconds, guest.snapshot, 1), partial(_copying, guest, memmap)
    )
    again = guest.snapshot()
    compared = seconds(lambda: again.diff(taken), effort.repeats)
    with tempfile.TemporaryDirectory(prefix="kmi-bench-") as folder:
        path = Path(folder) / "snapshot"
        saved = seconds(lambda: taken.save(path), min(effort.repeats, 3))
        on_disk = format_size(path.stat().st_size)
    note = (
        f"guest.snapshot(), {took / floor:.1f} times the floor, a copy of mem_map; "
        f"{format_size(taken.nbytes)}, {on_disk} in a file, which takes {saved:.2f} s"
    )
    return [
        Row(f"snapshot_{size}", len(taken.frames), took, floor_s=floor, note=note),
        Row(f"snapshot_diff_{size}", len(taken.frames), compared, note="of two, a moment apart"),
    ]
