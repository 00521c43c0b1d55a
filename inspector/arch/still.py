"""An address space at one moment: its page tables read once, as a few contiguous stretches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.arch.format import PagingFormat
from inspector.arch.scanner import U64
from inspector.arch.space import AddressSpace
from inspector.memory import PhysicalMemory
from inspector.units import PhysAddr, VirtAddr


class StillSpace(AddressSpace):
    """What `leaves` map, which are all leaf mappings (MAPPING or LEAF rows) of one root at one moment.

    For many questions about a guest that stands still: a bulk read looks its addresses up in the stretches
    and walks no tables. It knows nothing of what the guest maps later.
    """

    def __init__(
        self, memory: PhysicalMemory, format: PagingFormat, root: PhysAddr, leaves: NDArray[np.void]
    ) -> None:
        super().__init__(memory, format, root)
        stretches = _joined(*(np.ascontiguousarray(leaves[name]) for name in ("va", "pa", "size")))
        order = np.argsort(stretches[0], kind="stable")
        vas, pas, sizes = _joined(*(column[order] for column in stretches))
        # An empty one below all: then every address has one that begins at it or before.
        zero = np.zeros(1, U64)
        self._vas, self._pas, self._sizes = (np.concatenate((zero, each)) for each in (vas, pas, sizes))

    def stretches(self, start: int, end: int) -> list[tuple[VirtAddr, PhysAddr, int]]:
        """What is mapped of [start, end): (address, physical address, bytes), contiguous in both."""
        start, end = max(start, 0), min(end, 1 << 64)
        if start >= end:
            return []
        first = int(np.searchsorted(self._vas, U64.type(start), "right")) - 1
        last = int(np.searchsorted(self._vas, U64.type(end - 1), "right"))
        columns = (column[first:last].tolist() for column in (self._vas, self._pas, self._sizes))
        found = []
        for va, pa, size in zip(*columns, strict=True):
            low, high = max(va, start), min(va + size, end)
            if low < high:
                found.append((VirtAddr(low), PhysAddr(pa + low - va), high - low))
        return found

    def overlaps(
        self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
        """The same for many ranges: which of them, address, physical address and bytes, a place a piece."""
        first = np.searchsorted(self._vas, starts, "right") - 1
        counts = np.maximum(np.searchsorted(self._vas, ends) - first, 0)
        which = np.repeat(np.arange(len(starts)), counts)
        place = np.arange(len(which)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        vas = self._vas[place]
        low, high = np.maximum(vas, starts[which]), np.minimum(vas + self._sizes[place], ends[which])
        some = np.flatnonzero(low < high)
        low = low[some]
        return which[some], low, self._pas[place[some]] + (low - vas[some]), high[some] - low

    def locate(self, vas: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        place = np.searchsorted(self._vas, vas, "right") - 1
        skip = vas - self._vas[place]
        size = self._sizes[place]
        return self._pas[place] + skip, np.where(skip < size, size - skip, U64.type(0))

    def _lookup(self, va: int) -> int | None:
        page = va & ~self._page_mask
        found = self.stretches(page, page + 1)
        if not found:
            return None
        delta = found[0][1] - page
        self._cache[page] = delta
        return delta

    def _runs(self, va: VirtAddr, size: int) -> list[tuple[PhysAddr, int]]:
        runs: list[tuple[PhysAddr, int]] = []
        at = va
        for start, pa, length in self.stretches(va, va + size) if size else []:
            if start != at:
                break
            runs.append((pa, length))
            at = VirtAddr(start + length)
        if at != va + size:
            raise self._fault(at)
        return runs


def _joined(
    vas: NDArray[np.uint64], pas: NDArray[np.uint64], sizes: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Neighbours that follow one another in both memories are made one."""
    begins = np.ones(len(vas), np.bool_)
    np.logical_or(vas[1:] != vas[:-1] + sizes[:-1], pas[1:] != pas[:-1] + sizes[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    if not len(first):
        return vas, pas, sizes
    return vas[first], pas[first], np.add.reduceat(sizes, first)
