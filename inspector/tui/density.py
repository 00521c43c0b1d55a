"""How full ranges are: resident bytes of address ranges, and the states of runs of frames. All vectorised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Resident:
    """How much of an address space below any address is mapped, from its MAPPING rows sorted by va."""

    def __init__(self, mappings: NDArray[np.void]) -> None:
        self._starts = np.ascontiguousarray(mappings["va"])
        self._sizes = np.ascontiguousarray(mappings["size"]).astype(np.int64)
        self._sums = np.concatenate(([0], np.cumsum(self._sizes)))

    def below(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Mapped bytes below each address."""
        if not self._starts.size:
            return np.zeros(addresses.shape, np.int64)
        index = np.searchsorted(self._starts, addresses, "right") - 1
        inside = np.maximum(index, 0)
        part = np.minimum((addresses - self._starts[inside]).astype(np.int64), self._sizes[inside])
        return np.where(index < 0, 0, self._sums[inside] + part)

    def between(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Mapped bytes of each range [start, end)."""
        return self.below(ends) - self.below(starts)

    def first(self, start: int, end: int) -> int | None:
        """The lowest mapped address of [start, end)."""
        index = int(np.searchsorted(self._starts, np.uint64(start), "right")) - 1
        if index >= 0 and start < int(self._starts[index]) + int(self._sizes[index]):
            return start
        if index + 1 < self._starts.size and int(self._starts[index + 1]) < end:
            return int(self._starts[index + 1])
        return None


def spread(sizes: NDArray[np.int64], cells: int) -> NDArray[np.float64]:
    """Where ranges of these sizes begin and end on a strip of `cells` cells, holes left out: n + 1 positions.

    Each range gets a share by the square root of its size, so that a gigabyte does not hide a page; while
    there are cells enough, each gets at least one.
    """
    count = sizes.size
    if not count:
        return np.zeros(1)
    weights = np.sqrt(np.maximum(sizes, 1).astype(np.float64))
    if count > cells:
        return np.concatenate(([0.0], np.cumsum(weights) * (cells / weights.sum())))
    # Largest-remainder rounding of what is left once each has its cell: borders fall on whole cells.
    extra = weights / weights.sum() * (cells - count)
    widths = np.floor(extra).astype(np.int64)
    short = cells - count - int(widths.sum())
    widths[np.argsort(extra - widths, kind="stable")[::-1][:short]] += 1
    return np.concatenate(([0], np.cumsum(widths + 1))).astype(np.float64)


def cell_ranges(
    starts: NDArray[np.uint64], ends: NDArray[np.uint64], edges: NDArray[np.float64], cells: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
    """For each cell of a strip the range that most of it shows, and the addresses [from, to) that it covers.

    A cell that several ranges share covers from its first address to its last.
    """
    left = np.arange(cells, dtype=np.float64)
    first = np.clip(np.searchsorted(edges, left, "right") - 1, 0, starts.size - 1)
    last = np.clip(np.searchsorted(edges, left + 1, "left") - 1, first, starts.size - 1)
    middle = np.clip(np.searchsorted(edges, left + 0.5, "right") - 1, 0, starts.size - 1)
    return middle, _address(starts, ends, edges, first, left), _address(starts, ends, edges, last, left + 1)


def _address(
    starts: NDArray[np.uint64],
    ends: NDArray[np.uint64],
    edges: NDArray[np.float64],
    ranges: NDArray[np.int64],
    at: NDArray[np.float64],
) -> NDArray[np.uint64]:
    width = np.maximum(edges[ranges + 1] - edges[ranges], 1e-12)
    share = np.clip((at - edges[ranges]) / width, 0.0, 1.0)
    size = (ends[ranges] - starts[ranges]).astype(np.float64)
    return starts[ranges] + (share * size).astype(np.uint64)


class FrameCounts:
    """How many frames of each state any aligned block of frames holds; quick for all memory at once.

    Blocks of 64 frames are counted once, so that a map of 4 million frames needs no second look at each.
    """

    SHIFT = 6

    def __init__(self, states: NDArray[np.uint8], kinds: int) -> None:
        self.states = states
        self.kinds = kinds
        self._blocks = _count(states, self.SHIFT, kinds)

    def __len__(self) -> int:
        return self.states.size

    def totals(self) -> NDArray[np.int64]:
        """Frames by state."""
        totals: NDArray[np.int64] = self._blocks.sum(axis=0)
        return totals

    def cells(self, first: int, count: int, shift: int) -> NDArray[np.int64]:
        """counts[cell, state] of `count` cells of 2**shift frames from PFN `first` on, a cell's first frame.

        Cells past the end hold zeros.
        """
        if shift >= self.SHIFT:
            blocks, step = self._blocks, shift - self.SHIFT
            part = blocks[first >> self.SHIFT : (first >> self.SHIFT) + (count << step)]
            edges = np.arange(0, part.shape[0], 1 << step)
            found = np.add.reduceat(part, edges, axis=0) if part.size else part
        else:
            found = _count(self.states[first : first + (count << shift)], shift, self.kinds)
        cells = np.zeros((count, self.kinds), np.int64)
        cells[: len(found)] = found[:count]
        return cells


def _count(states: NDArray[np.uint8], shift: int, kinds: int) -> NDArray[np.int64]:
    blocks = (states.size + (1 << shift) - 1) >> shift
    keys = np.arange(states.size, dtype=np.int64) >> shift
    keys *= kinds
    keys += states
    counts: NDArray[np.int64] = np.bincount(keys, minlength=blocks * kinds).reshape(blocks, kinds)
    return counts
