"""Unmarked frames that the kernel has lost: nothing that it keeps points to them.

The question of mm/kmemleak.c, asked of frames: memory that the kernel uses is searched, word by word, for
addresses of them, in the direct map and of their struct pages. A pointer that somebody left behind hides a
loss; so free objects of slabs and the dead part of stacks do not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.kernel import slab_objects
from inspector.kernel.bulk import columns
from inspector.kernel.cpus import idle_tasks
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners import Owner, Owners
from inspector.kernel.owners.kernel_memory import stack_size
from inspector.kernel.tasks import task_views
from inspector.symbols import Kernel

_ROOTS = (
    Owner.KERNEL_IMAGE, Owner.RESERVED, Owner.VMALLOC, Owner.MODULE, Owner.PERCPU, Owner.DRIVER, Owner.MARKED,
)  # fmt: skip
_CODE = "code"  # as owners.boot labels it
_PART = 128  # frames whose words are looked at together: what a CPU's cache holds
_WORD = np.dtype(np.uint64)
_STACK_POINTERS = ("thread.sp", "thread.cpu_context.sp")  # x86, arm64


def forgotten(kernel: Kernel, owners: Owners, dead_stacks: frozenset[str]) -> NDArray[np.uint64]:
    """Their PFNs, sorted, u8. `dead_stacks` label the vmalloc areas of stacks whose tasks are gone.

    A block of several pages is pointed to where one of them is. What only a device knows, by its physical
    address, or a CPU, in a register, counts as lost.
    """
    search = _Search(kernel, owners)
    if len(search.pfns):
        passed = np.array([label == _CODE or label in dead_stacks for label in owners.labels], np.bool_)
        rows = owners.rows
        search.roots(np.flatnonzero(np.isin(rows["owner"], _ROOTS) & ~passed[rows["detail"]]))
        search.slabs(np.flatnonzero(rows["owner"] == Owner.SLAB))
        search.stacks()
        search.each_other()
    return search.lost()


class _Search:
    """Which unmarked blocks of pages are pointed to, by the blocks' numbers."""

    def __init__(self, kernel: Kernel, owners: Owners) -> None:
        self.kernel, self.memmap = kernel, MemMap(kernel)
        rows = owners.rows
        self.pfns = np.flatnonzero(rows["owner"] == Owner.UNMARKED)
        # The pages of a block behind its first have no references of their own; that may be another owner's,
        # as the first of the two pages that a PGD is where there may be KPTI.
        behind = rows["refcount"][self.pfns] == 0
        first = ~behind | (np.diff(self.pfns, prepend=-2) != 1)
        self.block = np.full(len(rows), -1, np.int64)
        self.block[self.pfns] = np.cumsum(first) - 1
        self.pointed = behind[first]
        places = (kernel.page_offset, self.memmap.page_size), (self.memmap.base, self.memmap.struct_size)
        self.spaces = [
            (np.uint64(base), np.uint64(unit), np.uint64(unit * len(rows))) for base, unit in places
        ]
        self.lowest = min(base for base, _, _ in self.spaces)

    def roots(self, pfns: NDArray[np.int64]) -> None:
        """Frames all of which counts."""
        for part in range(0, len(pfns), _PART):
            _, blocks = self._targets(self._words(pfns[part : part + _PART]))
            self.pointed[blocks] = True

    def slabs(self, pfns: NDArray[np.int64]) -> None:
        """Slabs: what lies in allocated objects counts."""
        objects = slab_objects.objects(self.kernel)
        size = self.memmap.page_size
        for part in range(0, len(pfns) if len(objects) else 0, _PART):
            here = pfns[part : part + _PART]
            places, blocks = self._targets(self._words(here))
            frame, skip = np.divmod(places * _WORD.itemsize, size)
            at = (here[frame] * size + skip).astype(np.uint64) + np.uint64(self.kernel.page_offset)
            row = np.maximum(np.searchsorted(objects["address"], at, "right") - 1, 0)
            self.pointed[blocks[objects["allocated"][row]]] = True

    def stacks(self) -> None:
        """Threads' kernel stacks from the stack pointer up; all of one whose thread runs."""
        kernel, types = self.kernel, self.kernel.types
        views = (*task_views(kernel, threads=True), *idle_tasks(kernel))
        tasks = np.array([view.address for view in views], np.uint64)
        stack, running = columns(kernel, "task_struct", tasks, "stack", "on_cpu")
        saved = next((path for path in _STACK_POINTERS if types.has("task_struct", path)), "stack")
        (pointer,) = columns(kernel, "task_struct", tasks, saved)
        size = stack_size(kernel)
        start = np.where((running == 0) & (pointer - stack < size), pointer, stack)
        at = stack[:, None] + np.arange(0, size, _WORD.itemsize, dtype=np.uint64)
        words, _ = kernel.space.gather(at[at >= start[:, None]], _WORD)
        self.pointed[self._targets(words)[1]] = True

    def each_other(self) -> None:
        """Unmarked frames and their struct pages: what they point to counts where they do."""
        words = self._words(self.pfns)
        at = self.memmap.addresses(self.pfns.astype(np.uint64))
        structs, _ = self.kernel.space.gather(at, _WORD, self.memmap.struct_size // _WORD.itemsize)
        links = []
        for found in (words, structs.reshape(-1)):
            places, targets = self._targets(found)
            links.append((self.block[self.pfns[places // (len(found) // len(self.pfns))]], targets))
        sources, targets = (np.concatenate(side) for side in zip(*links, strict=True))
        while True:
            reached = targets[self.pointed[sources]]
            if self.pointed[reached].all():
                return
            self.pointed[reached] = True

    def lost(self) -> NDArray[np.uint64]:
        """The PFNs of all blocks that were not found."""
        found: NDArray[np.uint64] = self.pfns[~self.pointed[self.block[self.pfns]]].astype(np.uint64)
        return found

    def _words(self, pfns: NDArray[np.int64]) -> NDArray[np.uint64]:
        size = self.memmap.page_size
        at = pfns.astype(np.uint64) * np.uint64(size)
        words, _ = self.kernel.memory.gather(at, _WORD, size // _WORD.itemsize)
        flat: NDArray[np.uint64] = words.reshape(-1)
        return flat

    def _targets(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Which of the words point to unmarked blocks, and to which."""
        places, blocks = [], []
        high = np.flatnonzero(words >= self.lowest)
        values = words[high]
        for base, unit, limit in self.spaces:
            skip = values - base
            inside = skip < limit
            block = self.block[(skip[inside] // unit).astype(np.int64)]
            places.append(high[inside][block >= 0])
            blocks.append(block[block >= 0])
        return np.concatenate(places), np.concatenate(blocks)
