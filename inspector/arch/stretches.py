"""Contiguous stretches of memory: many leaf mappings as a few pieces, to look addresses and ranges up in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.arch.scanner import U64

Pieces = tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
"""What is mapped of ranges, a place a piece: which range, address, physical address, bytes."""


class Stretches:
    """The mappings of one root, in any order, joined where they follow one another in both memories."""

    def __init__(self, leaves: NDArray[np.void]) -> None:
        """Of MAPPING or LEAF rows."""
        stretches = _joined(*(np.ascontiguousarray(leaves[name]) for name in ("va", "pa", "size")))
        order = np.argsort(stretches[0], kind="stable")
        vas, pas, sizes = _joined(*(column[order] for column in stretches))
        # An empty one below all: then every address has one that begins at it or before.
        zero = np.zeros(1, U64)
        self._vas, self._pas, self._sizes = (np.concatenate((zero, each)) for each in (vas, pas, sizes))

    def between(self, start: int, end: int) -> list[tuple[int, int, int]]:
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
                found.append((low, pa + low - va, high - low))
        return found

    def overlaps(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Pieces:
        """The same for many ranges."""
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
        """Of each address the physical one, and how many bytes from there on lie behind it: 0 for none."""
        place = self._vas.searchsorted(vas, "right") - 1
        skip = vas - self._vas[place]
        size = self._sizes[place]
        return self._pas[place] + skip, np.where(skip < size, size - skip, U64.type(0))


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
