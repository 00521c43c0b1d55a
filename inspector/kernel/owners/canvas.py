"""What the painters paint on: an owner, a label and a place in a file for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.bulk import spread
from inspector.kernel.frames import Columns, FrameState, frames
from inspector.kernel.mapcounts import folio_mapcounts
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners.model import FRAME, Owner, Owners
from inspector.symbols import Kernel

_FROM_STATE = {
    FrameState.HOLE: Owner.NO_PAGE,
    FrameState.RESERVED: Owner.RESERVED,
    FrameState.FREE: Owner.FREE,
    FrameState.PER_CPU: Owner.PER_CPU_FREE,
    FrameState.SLAB: Owner.SLAB,
    FrameState.PAGE_TABLE: Owner.PAGE_TABLE,
    FrameState.ANON: Owner.ANON,
    FrameState.FILE: Owner.PAGE_CACHE,
    FrameState.KERNEL: Owner.UNMARKED,
}

_FRAME_WORDS = np.dtype(
    [
        *((name, np.uint64) for name in ("pfn", "flags", "index", "counts", "paint")),
    ]
)
"""A FRAME, with the pairs of Columns."""

_PART = 1 << 13  # rows that fit a CPU's cache
_COUNTED = np.arange(_PART, dtype=np.uint64)
# To make mapcounts of each _mapcount, and leave the refcount beside it: a page type is no mapcount.
_ONE_MORE = np.tile(np.array([1, 0], np.int32), (_PART, 1))
_LEAST = np.tile(np.array([-1, np.iinfo(np.int32).min], np.int32), (_PART, 1))
_MAX_KEPT = 128 << 20  # bytes; larger ones the host gives in large pages, which is fast

_MAPPED = (Owner.ANON, Owner.SWAP_CACHE, Owner.SHMEM, Owner.PAGE_CACHE, Owner.HUGETLB)

UNCLAIMED = (Owner.UNMARKED, Owner.RESERVED)
"""What a painter may claim by default: a mark in struct page is not overruled."""


class Canvas:
    """The frames with what their struct pages say, to be painted over.

    `owner` and `detail` have a place a PFN, `index` one for each of the frames in use.
    """

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        self.kernel = kernel
        self.memmap = memmap
        states = range(len(FrameState))
        owners = np.array([_FROM_STATE.get(FrameState(state), 0) for state in states], np.uint8)
        columns = kernel.recalled.pop(Canvas, None)
        if columns is None or len(columns) != memmap.end:
            columns = Columns(memmap.end)
        self.frames = frames(kernel, memmap, owners, columns)
        self.page_size: int = kernel.space.format.page_size
        self.owner = self.frames.owner
        self.detail = columns.paint[:, 0]
        self.index = np.zeros(len(self.frames.used), np.uint64)
        self._labels: dict[str, int] = {"": 0}

    def label(self, text: str) -> int:
        """The number of a label."""
        return self._labels.setdefault(text, len(self._labels))

    def labelled(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """The numbers of many."""
        known = self._labels
        return np.array([known.setdefault(text, len(known)) for text in texts], np.uint32)

    @property
    def labels(self) -> list[str]:
        """All labels, by number."""
        return list(self._labels)

    def compound(self, *owners: Owner) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Their frames in compound pages, the first PFN of each of these, and for every frame whose it is."""
        places = self.frames.compound
        chosen = places[_any_of(owners)[self.owner[self.frames.used[places]]]]
        heads, which = np.unique(self.frames.head[chosen], return_inverse=True)
        return self.frames.used[chosen], heads, which

    def paint(
        self,
        pfns: NDArray[np.uint64],
        owner: Owner,
        details: NDArray[np.uint32] | int = 0,
        over: tuple[Owner, ...] = UNCLAIMED,
    ) -> None:
        """Give frames, with a label for all or one each, to an owner where they are one of `over` now."""
        inside = np.minimum(pfns, np.uint64(len(self.owner) - 1))
        chosen = inside.astype(np.int64)
        free = np.flatnonzero(_any_of(over)[self.owner[chosen]] & (inside == pfns))
        places = chosen[free]
        self.owner[places] = owner
        self.detail[places] = details if isinstance(details, int) else details[free]

    def paint_blocks(
        self, pfns: NDArray[np.uint64], orders: NDArray[np.int64], owner: Owner, details: NDArray[np.uint32]
    ) -> None:
        """Label whole blocks of 2**order frames that already are the owner's."""
        sizes = np.left_shift(1, orders)
        self.paint(spread(pfns, sizes), owner, np.repeat(details, sizes), (owner,))

    def finished(self) -> Owners:
        """The rows, written part by part. Nothing can be painted any more."""
        columns, rows = self.frames.columns, np.empty(len(self.owner), FRAME)
        words, pairs = rows.view(_FRAME_WORDS), columns.counts.view(np.int32)
        counts, paint = (each.view(np.uint64)[:, 0] for each in (columns.counts, columns.paint))
        for run, last in self.memmap.runs:
            for first in range(run, last, _PART):
                these = slice(first, min(first + _PART, last))
                part, both = words[these], pairs[these]
                both += _ONE_MORE[: len(both)]
                np.maximum(both, _LEAST[: len(both)], out=both)
                np.add(_COUNTED[: len(part)], np.uint64(first), out=part["pfn"])
                part["flags"], part["index"] = columns.flags[these], 0
                part["counts"], part["paint"] = counts[these], paint[these]
        for first, end in self.memmap.holes:
            hole = words[first:end]
            hole[:] = 0
            hole["pfn"], hole["paint"] = np.arange(first, end), paint[first:end]
        rows["index"][self.frames.used] = self.index
        self._count_huge_mappings(rows)
        if columns.nbytes <= _MAX_KEPT:  # fresh memory costs more than all that is written there
            self.kernel.recalled[Canvas] = columns
        return Owners(rows, tuple(self._labels))

    def _count_huge_mappings(self, rows: NDArray[np.void]) -> None:
        """Add to each page's own mapcount the entries that map the huge page that it is in."""
        pfns, heads, which = self.compound(*_MAPPED)
        if not len(pfns):
            return
        huge = self.owner[heads] == Owner.HUGETLB
        shared = folio_mapcounts(self.memmap, heads, huge)
        rows["mapcount"][pfns] = np.maximum(rows["mapcount"][pfns], 0) + shared[which]


@cache
def _any_of(owners: tuple[Owner, ...]) -> NDArray[np.bool_]:
    """A table by Owner: whether it is one of these."""
    table = np.zeros(len(Owner), np.bool_)
    table[list(owners)] = True
    return table
