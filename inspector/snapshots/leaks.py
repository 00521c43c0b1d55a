"""What a stretch of work left behind: memory in use after it that was not in use before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.owners import Owner
from inspector.kernel.vmalloc import BUSY, VmallocArea
from inspector.snapshots.records import Holder
from inspector.units import VirtAddr, format_size

if TYPE_CHECKING:
    from inspector.snapshots.diff import Diff

KEPT = (Owner.PAGE_CACHE, Owner.SHMEM, Owner.SWAP_CACHE, Owner.PERCPU, Owner.HUGE_ZERO_PAGE)
"""Owners whose memory is kept for the next who asks, or is a file's: no leak, unless asked for."""

_KERNEL_TABLES = ", kernel"  # how owners.tables labels them
_INODES = "inode_cache"
_WORKER = "kworker/"
_AREAS = "vmap_area"
_RUNS = 6  # of PFNs, in a text


@dataclass(frozen=True, slots=True, eq=False)
class Leak:
    """A holder that has more than it had: so many frames, or, for a slab cache, so many objects.

    `pfns` (u8) are the frames that came to it, `freed` those that it had and that are free now: where there
    are some, more frames came than leaked. Nothing points any more to the `forgotten` ones, of the unmarked
    frames alone; they leaked whatever was freed, and may be the holder's since before the first snapshot.
    A cache's objects may lie in slabs that it had before: then no frames came.
    """

    holder: Holder
    count: int
    size: int
    pfns: NDArray[np.uint64]
    freed: NDArray[np.uint64]
    forgotten: NDArray[np.uint64]

    @property
    def unit(self) -> str:
        """What `count` counts: frames or objects; `size` is that of one, in bytes."""
        return "object" if self.holder.owner == Owner.SLAB else "frame"

    def __str__(self) -> str:
        plural = "s" if self.count != 1 else ""
        text = f"{self.count} {self.unit}{plural} ({format_size(self.count * self.size)}) of {self.holder}"
        told = [f"PFN {runs(self.pfns)}"] if len(self.pfns) else []
        if len(self.freed):
            told.append(f"{len(self.freed)} other{'s' * (len(self.freed) != 1)} freed meanwhile")
        if len(self.forgotten):
            same = np.array_equal(self.pfns, self.forgotten)
            told.append(f"nothing points to {'them' if same else f'PFN {runs(self.forgotten)}'}")
        return text + (f": {'; '.join(told)}" if told else "")


@dataclass(frozen=True, slots=True)
class Leaks:
    """What leaked between two snapshots; false where nothing did.

    The rule: for each holder of frames that are in use, how many more it has; for each slab cache, how many
    more objects are allocated. Frames are exchanged, one for another, by the kernel and by drivers; but an
    unmarked frame that nothing points to any more is lost, and counts whatever was given back elsewhere.
    Left out is what the kernel keeps by design, and what may be given back:

    - free frames, those on per-CPU lists too, and pages of tasks that are gone, in a CPU's batch for the LRU;
    - free objects in slabs, on CPUs' freelists and in sheaves;
    - files' pages, the swap cache, the huge zero page, the per-CPU allocator's memory (KEPT);
    - slab caches that are shrunk when memory is short (SLAB_RECLAIM_ACCOUNT), and what lives and dies with
      files, by name: `shmem_inode_cache`, `lsm_inode_cache`;
    - the slab cache `vmap_area`: a record for each hole between areas too, and for each freed one that
      waits to be purged; the pages of areas are counted by caller;
    - the kernel's own page tables, which are never given back;
    - the kernel stacks of tasks that are gone, of which each CPU keeps two for the next;
    - workers of the kernel's workqueues, which come as work comes: their stacks, and for each worker more one
      object of each cache.

    What is freed late, by RCU or by a worker, is in use till then: take the second snapshot anew, some
    moments later, before a leak is believed. What is made once, when something is done for the first time,
    stays: do it once before the first snapshot. Memory of a task that is still there counts as its.
    """

    found: tuple[Leak, ...]

    def __bool__(self) -> bool:
        return bool(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def nbytes(self) -> int:
        """Bytes of all together."""
        return sum(leak.count * leak.size for leak in self.found)

    def __str__(self) -> str:
        if not self.found:
            return "nothing leaked"
        return "\n".join([f"{format_size(self.nbytes)} leaked:", *(f"  {leak}" for leak in self.found)])


def leaked(diff: Diff, frames: int, objects: int, ignore: Collection[Owner]) -> Leaks:
    """The leaks of a diff: see Leaks for the rule."""
    workers = [task for task in diff.tasks if task.task.kernel_thread and task.task.comm.startswith(_WORKER)]
    more_workers = max(0, sum((task.before is None) - (task.after is None) for task in workers))

    def kept(holder: Holder) -> bool:
        return (
            not holder.used
            or (holder.owner == Owner.KERNEL_STACK and holder.label.startswith(_WORKER))
            or holder.owner in ignore
            or (holder.owner == Owner.PAGE_TABLE and holder.label.endswith(_KERNEL_TABLES))
            or (holder.owner == Owner.SLAB and (holder.label.endswith(_INODES) or holder.label == _AREAS))
            or (holder.owner == Owner.VMALLOC and holder.label in diff.stack_callers)
        )

    none = diff.forgotten[:0]
    grown = {each.holder: each.net for each in diff.balances if each.holder.owner != Owner.SLAB}
    lost = Holder(Owner.UNMARKED)
    grown[lost] = max(grown.get(lost, 0), len(diff.forgotten))
    found = [
        Leak(
            holder,
            count,
            diff.page_size,
            diff.gained(holder),
            diff.freed(holder),
            diff.forgotten if holder == lost else none,
        )
        for holder, count in grown.items()
        if count > frames and not kept(holder)
    ]
    for change in diff.caches:
        holder = Holder(Owner.SLAB, change.cache.name)
        if change.objects > objects + more_workers and not change.cache.reclaimable and not kept(holder):
            found.append(Leak(holder, change.objects, change.cache.size, diff.gained(holder), none, none))
    return Leaks(tuple(sorted(found, key=lambda leak: -leak.count * leak.size)))


def stack_callers(areas: Iterable[VmallocArea], stacks: Sequence[VirtAddr]) -> frozenset[str]:
    """The callers of the areas that hold these kernel stacks; none where stacks are not in vmalloc."""
    busy = [area for area in areas if area.kind == BUSY and area.caller]
    if not busy or not len(stacks):
        return frozenset()
    places = np.searchsorted(np.array([area.start for area in busy], np.uint64), stacks, "right") - 1
    pairs = zip(places.tolist(), stacks, strict=True)
    return frozenset(busy[place].caller for place, stack in pairs if place >= 0 and stack < busy[place].end)


def runs(pfns: NDArray[np.uint64], most: int = _RUNS) -> str:
    """PFNs, in their order, as a person reads them: `0x1a0-0x1a3, 0x200, ...`."""
    found = pfn_runs(pfns)
    texts = (f"{first:#x}" + (f"-{first + count - 1:#x}" if count > 1 else "") for first, count in found)
    return ", ".join(islice(texts, most)) + (
        f", and {len(found) - most} more runs" if len(found) > most else ""
    )


def pfn_runs(pfns: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """The runs of PFNs, in their order: each one's first and how many."""
    breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
    firsts = np.concatenate(([0], breaks)).astype(np.int64) if len(pfns) else breaks
    counts = np.diff(np.append(firsts, len(pfns)))
    return list(zip(pfns[firsts].tolist(), counts.tolist(), strict=True))
