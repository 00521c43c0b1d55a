"""What the bench asks about the whole of memory, in guests of several sizes."""

from __future__ import annotations

import numpy as np

from inspector.cli.bench_drgn import NAME, Drgn
from inspector.cli.bench_rows import Effort, Row, seconds
from inspector.errors import KernelError
from inspector.guest import Guest
from inspector.kernel import slab_objects
from inspector.kernel.memmap import MemMap
from inspector.units import format_size

_PEER_CACHES = ("task_struct", "kmalloc-512", "mm_struct")  # the peer takes seconds for each


def memory_rows(guest: Guest, drgn: Drgn | None, effort: Effort) -> list[Row]:
    """Every frame's owner, every slab object, who maps each frame: the guest stands still for all."""
    size = format_size(guest.machine.memory_size).replace(" ", "").replace("iB", "")
    with guest.paused():
        return [
            _owners(guest, size, drgn, effort),
            _slab_objects(guest, size, drgn, effort),
            _reverse_map(guest, size, effort),
        ]


def _owners(guest: Guest, size: str, drgn: Drgn | None, effort: Effort) -> Row:
    memmap = MemMap(guest.kernel)
    space = guest.kernel.space
    count = len(guest.owners().rows)
    took = seconds(guest.owners, effort.repeats)

    def copy() -> None:
        for first, end in memmap.runs:
            space.array(memmap.address(first), (end - first) * memmap.struct_size).copy()

    floor = seconds(copy, effort.repeats)
    note = (
        f"guest.owners(), {took / floor:.1f} times the floor, a copy of mem_map; the peer reads flags alone"
    )
    row = Row(f"owners_{size}", count, took, floor_s=floor, note=note)
    if drgn is None:
        return row
    pfns = [pfn for first, end in memmap.runs for pfn in range(first, min(end, first + effort.sample))]
    return row.beside(len(pfns), seconds(lambda: drgn.page_flags(pfns), min(effort.repeats, 3)))


def _slab_objects(guest: Guest, size: str, drgn: Drgn | None, effort: Effort) -> Row:
    kernel = guest.kernel
    counts = slab_objects.allocated_count(kernel)
    took = seconds(lambda: slab_objects.allocated_count(kernel), effort.repeats)
    row = Row(
        f"slab_objects_{size}", int(counts.sum()), took, note="allocated objects of every cache, counted"
    )
    if drgn is None:
        return row
    ours = dict(zip((cache.name for cache in guest.slabs()), counts.tolist(), strict=True))
    names = [name for name in _PEER_CACHES if ours.get(name)]
    theirs: list[int] = []
    peer = seconds(lambda: theirs.extend(drgn.allocated_objects(names)), 1)
    if theirs != [ours[name] for name in names]:
        raise KernelError(f"{NAME} counts other objects in {', '.join(names)} than we do: one is wrong")
    return row.beside(sum(theirs), peer)


def _reverse_map(guest: Guest, size: str, effort: Effort) -> Row:
    rows = guest.reverse_map().rows
    took = seconds(guest.reverse_map, effort.repeats)
    large = int(np.count_nonzero(rows["size"] > guest.kernel.space.format.page_size))
    return Row(f"reverse_map_{size}", rows.size, took, note=f"every leaf entry, {large} of large pages")
