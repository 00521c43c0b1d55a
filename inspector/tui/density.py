"""How full ranges are: resident bytes of address ranges, and the states of runs of frames. All vectorised."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Strip:
    """Address ranges laid out on a row of cells: where each begins and ends, in cells."""

    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    cells: int

    @classmethod
    def lay_out(cls, starts: NDArray[np.uint64], ends: NDArray[np.uint64], cells: int) -> Strip:
        """Each range gets a share by the square root of its size, so that a gigabyte does not hide a page.

        While there are cells enough each range gets one at least, and each hole between two exactly one.
        """
        gaps = np.concatenate(([0], np.cumsum(starts[1:] > ends[:-1]))) if starts.size else np.zeros(0)
        if starts.size * 2 > cells:
            gaps = np.zeros(starts.size)
        edges = _spread((ends - starts).astype(np.float64), cells - int(gaps[-1]) if starts.size else cells)
        return cls(starts, ends, edges[:-1] + gaps, edges[1:] + gaps, cells)

    def ranges(self) -> NDArray[np.int64]:
        """The range that most of each cell shows; -1 for a hole."""
        if not self.starts.size:
            return np.full(self.cells, -1)
        middle = np.arange(self.cells) + 0.5
        index = np.searchsorted(self.left, middle, "right") - 1
        return np.where((index >= 0) & (middle < self.right[index]), index, -1)

    def density(self, resident: Resident) -> NDArray[np.float64]:
        """How much of what each cell shows is mapped, 0 to 1; several ranges in one cell count together."""
        if not self.starts.size:
            return np.zeros(self.cells)
        edges = np.arange(self.cells + 1, dtype=np.float64)
        index = np.maximum(np.searchsorted(self.left, edges, "right") - 1, 0)
        sizes = (self.ends - self.starts).astype(np.int64)
        share = (edges - self.left[index]) / np.maximum(self.right[index] - self.left[index], 1e-12)
        into = (np.clip(share, 0.0, 1.0) * sizes[index]).astype(np.int64)
        at = self.starts[index] + into.astype(np.uint64)
        mapped = _before(resident.between(self.starts, self.ends))[index]
        mapped = mapped + resident.between(self.starts[index], at)
        covered = _before(sizes)[index] + into
        return np.clip(np.diff(mapped) / np.maximum(np.diff(covered), 1), 0.0, 1.0)


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of all counts before each."""
    return np.cumsum(counts) - counts


def _spread(sizes: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Where ranges of these sizes begin and end on so many cells: n + 1 positions, whole if there is room."""
    count = sizes.size
    if not count:
        return np.zeros(1)
    weights = np.sqrt(np.maximum(sizes, 1.0))
    if count > cells:
        return np.concatenate(([0.0], np.cumsum(weights) * (cells / weights.sum())))
    # Each its one cell, the rest by largest remainder: borders fall on whole cells.
    extra = weights / weights.sum() * (cells - count)
    widths = np.floor(extra)
    short = cells - count - int(widths.sum())
    widths[np.argsort(extra - widths, kind="stable")[::-1][:short]] += 1
    return np.concatenate(([0.0], np.cumsum(widths + 1)))


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
