"""What the painters paint on: an owner, a label and a place in a file for each frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.frames import NO_MIGRATETYPE, FrameState, frames
from inspector.kernel.mapcounts import entire_mapcounts, shared_mapcounts
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners.model import FRAME, Owner, Owners
from inspector.kernel.pageflags import flag_bits
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

_MAPPED = (Owner.ANON, Owner.SWAP_CACHE, Owner.SHMEM, Owner.PAGE_CACHE, Owner.HUGETLB)

UNCLAIMED = (Owner.UNMARKED, Owner.RESERVED)
"""What a painter may claim by default: a mark in struct page is not overruled."""


class Canvas:
    """The frames with what their struct pages say, to be painted over. Columns have a place a PFN."""

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        self.kernel = kernel
        self.memmap = memmap
        self.frames = frames(kernel, memmap)
        self.page_size: int = kernel.space.format.page_size
        # A translation of bytes is several times faster than an indexed table.
        owners = bytes(_FROM_STATE.get(FrameState(state), 0) for state in range(len(FrameState)))
        self.owner = np.frombuffer(
            bytearray(self.frames.state.tobytes().translate(owners.ljust(256))), np.uint8
        )
        self.detail = np.zeros(len(self.owner), np.uint32)
        self.index = np.zeros(len(self.owner), np.uint64)
        self._labels: dict[str, int] = {"": 0}

    def label(self, text: str) -> int:
        """The number of a label."""
        return self._labels.setdefault(text, len(self._labels))

    def labelled(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """The numbers of many."""
        return np.array([self.label(text) for text in texts], np.uint32)

    @property
    def labels(self) -> list[str]:
        """All labels, by number."""
        return list(self._labels)

    def owned(self, *owners: Owner) -> NDArray[np.int64]:
        """The PFNs in use that now have one of these owners."""
        used = self.frames.used
        return used[_any_of(owners)[self.owner[used]]]

    def compound(self, *owners: Owner) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Their frames in compound pages, the first PFN of each of these, and for every frame whose it is."""
        frames, flag = self.frames, np.uint64(1 << flag_bits(self.kernel)["head"])
        chosen = _any_of(owners)[self.owner[frames.used]] & (frames.flags[frames.head] & flag != 0)
        heads, which = np.unique(frames.head[chosen], return_inverse=True)
        return frames.used[chosen], heads, which

    def paint(
        self,
        pfns: NDArray[np.uint64],
        owner: Owner,
        details: NDArray[np.uint32] | int = 0,
        over: Sequence[Owner] = UNCLAIMED,
    ) -> None:
        """Give frames, with a label for all or one each, to an owner where they are one of `over` now."""
        inside = pfns < np.uint64(len(self.owner))
        chosen = pfns[inside].astype(np.int64)
        free = _any_of(over)[self.owner[chosen]]
        self.owner[chosen[free]] = owner
        self.detail[chosen[free]] = np.broadcast_to(details, pfns.shape)[inside][free]

    def paint_run(
        self, start: int, end: int, owner: Owner, label: str = "", over: Sequence[Owner] = UNCLAIMED
    ) -> None:
        """The same for a physical range: every frame that a byte of it lies in."""
        first, last = start // self.page_size, min(-(-end // self.page_size), len(self.owner))
        part = slice(first, max(first, last))
        free = np.zeros(len(self.owner[part]), np.bool_)
        for each in over:
            free |= self.owner[part] == each
        self.owner[part][free] = owner
        self.detail[part][free] = self.label(label)

    def paint_blocks(
        self, pfns: NDArray[np.uint64], orders: NDArray[np.uint8], owner: Owner, details: NDArray[np.uint32]
    ) -> None:
        """Label whole blocks of 2**order frames that already are the owner's."""
        sizes = np.left_shift(1, orders.astype(np.int64))
        self.paint(spread(pfns, sizes), owner, np.repeat(details, sizes), (owner,))

    def finished(self) -> Owners:
        """The rows, written part by part."""
        found, rows = self.frames, np.zeros(len(self.owner), FRAME)
        columns: dict[str, NDArray[Any]] = {
            "flags": found.flags,
            "index": self.index,
            "refcount": found.refcount,
            "detail": self.detail,
            "owner": self.owner,
            "state": found.state,
            "order": found.order,
            "migratetype": found.migratetype,
        }
        for first, end in self.memmap.parts():
            part = rows[first:end]
            part["pfn"] = np.arange(first, end)
            part["mapcount"] = np.maximum(found.word[first:end].view(np.int32) + 1, -1)  # types are below
            for name, column in columns.items():
                part[name] = column[first:end]
        for start, stop in self._holes():
            hole = rows[start:stop]
            hole["pfn"] = np.arange(start, stop)
            hole["owner"], hole["migratetype"] = self.owner[start:stop], NO_MIGRATETYPE
        self._count_huge_mappings(rows)
        return Owners(rows, tuple(self._labels))

    def _holes(self) -> Iterator[tuple[int, int]]:
        """The PFNs between the runs that have struct pages."""
        ends = [0, *(end for _, end in self.memmap.runs)]
        return zip(ends, (first for first, _ in self.memmap.runs), strict=False)

    def _count_huge_mappings(self, rows: NDArray[np.void]) -> None:
        """Add to each page's own mapcount the entries that map the huge page that it is in."""
        pfns, heads, which = self.compound(*_MAPPED)
        huge = self.owner[heads] == Owner.HUGETLB
        shared = np.empty(len(heads), np.int64)
        shared[~huge] = shared_mapcounts(self.memmap, heads[~huge])
        shared[huge] = entire_mapcounts(self.memmap, heads[huge])
        rows["mapcount"][pfns] = np.maximum(rows["mapcount"][pfns], 0) + shared[which]


def spread(firsts: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    """All the PFNs of runs of PFNs."""
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(firsts, sizes) + inside.astype(np.uint64)


def _any_of(owners: Sequence[Owner]) -> NDArray[np.bool_]:
    """A table by Owner: whether it is one of these."""
    table = np.zeros(len(Owner), np.bool_)
    table[list(owners)] = True
    return table
