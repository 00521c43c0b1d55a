"""Who holds which pages, as far as a trace of allocations has seen them come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inspector.trace.allocations import Allocation
from inspector.trace.telling import caller
from inspector.units import Pfn

UNSEEN = 0
"""A frame that the trace saw nothing of."""

FREED = 255
"""A frame that was taken back, and is not held by anyone since."""

_FIRST = 1 << 16
_MAX_ORDER = 20
_MAX_FRAMES = 1 << 28


@dataclass(frozen=True, slots=True)
class Holder:
    """What a caller has: pages that it allocated, and how many of them are `held`: not seen freed since."""

    name: str
    allocated: int
    held: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """The ledger at one moment, in pages.

    `held` were allocated, and not seen freed. `before` were freed, and had been held before the trace began.
    `unseen` were handed out again although nobody was seen to free them: a task that is not traced did, or
    the stop was lost. `frames` has for each PFN from 0 on UNSEEN, FREED, or, where it is held, 1 + the
    migratetype that it was asked for.
    """

    allocated: int
    freed: int
    held: int
    before: int
    unseen: int
    holders: tuple[Holder, ...]
    """Who holds most first."""
    frames: NDArray[np.uint8] = field(compare=False, repr=False)


class Ledger:
    """Follows records, each once and in order."""

    def __init__(self) -> None:
        self._frames = np.zeros(_FIRST, np.uint8)
        self._holders = np.zeros(_FIRST, np.int32)  # 1 + an index into what follows; 0 for nobody
        self._index: dict[str, int] = {}
        self._allocated: list[int] = []
        self._held: list[int] = []
        self._freed = self._before = self._unseen = 0

    def add(self, record: Allocation) -> None:
        """Pages come or go."""
        pages = 1 << min(record.order, _MAX_ORDER)
        span = self._span(record.pfn, pages)
        known = self._take_from_holders(span)
        if record.freed:
            self._freed += pages
            self._before += pages - known
            self._frames[span], self._holders[span] = FREED, 0
            return
        self._unseen += known
        who = self._index.setdefault(caller(record), len(self._index))
        if who == len(self._held):
            self._allocated.append(0)
            self._held.append(0)
        self._allocated[who] += pages
        self._held[who] += pages
        self._frames[span], self._holders[span] = 1 + (record.migratetype or 0), 1 + who

    def tally(self) -> Holdings:
        """How it stands."""
        rows = (
            Holder(name, self._allocated[index], self._held[index]) for name, index in self._index.items()
        )
        return Holdings(
            allocated=sum(self._allocated),
            freed=self._freed,
            held=sum(self._held),
            before=self._before,
            unseen=self._unseen,
            holders=tuple(sorted(rows, key=lambda row: (-row.held, -row.allocated, row.name))),
            frames=self._frames.copy(),
        )

    def _span(self, pfn: Pfn, pages: int) -> slice:
        """The frames in the arrays, which grow up to them."""
        if pfn >= _MAX_FRAMES:
            return slice(0, 0)
        end = min(pfn + pages, _MAX_FRAMES)
        if end > self._frames.size:
            more = max(end, 2 * self._frames.size) - self._frames.size
            self._frames = np.concatenate((self._frames, np.zeros(more, np.uint8)))
            self._holders = np.concatenate((self._holders, np.zeros(more, np.int32)))
        return slice(pfn, end)

    def _take_from_holders(self, span: slice) -> int:
        """Nobody holds these frames any more; how many somebody did."""
        who, counts = np.unique(self._holders[span], return_counts=True)
        known = 0
        for index, count in zip(who.tolist(), counts.tolist(), strict=True):
            if index:
                self._held[index - 1] -= count
                known += count
        return known


def other_half(records: tuple[Allocation, ...], record: Allocation) -> Allocation | None:
    """Who freed what a record allocated, or allocated what it freed; None where that is not among them."""

    def meets(other: Allocation) -> bool:
        return other.pfn < record.pfn + (1 << min(record.order, _MAX_ORDER)) and record.pfn < other.pfn + (
            1 << min(other.order, _MAX_ORDER)
        )

    near: Iterator[Allocation] = iter(records) if not record.freed else reversed(records)
    for other in near:
        beyond = other.number < record.number if record.freed else other.number > record.number
        if beyond and meets(other):  # the nearest event of these frames: no other half where it is alike
            return other if other.freed != record.freed else None
    return None
