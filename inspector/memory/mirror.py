"""Guest RAM that cannot be mapped: copied page by page when asked for, forgotten once the guest has run."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.errors import UsageError
from inspector.memory.mapped import MappedRam
from inspector.memory.physical import RamBlock
from inspector.units import PhysAddr

PAGE = 4096
_MANY = 64
"""From so many pages on it is worth asking which of them exist."""


class RamSource(Protocol):
    """Where the copies come from. Offsets are those of the blocks."""

    @property
    def stride(self) -> int:
        """How many pages that nobody asked for may be read along, rather than ask twice."""

    def moment(self) -> int | None:
        """A number that is another one once the guest has run; None while it runs."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on. Raises MachineError."""

    def present(self, page: int, count: int) -> NDArray[np.bool_] | None:
        """Which of `count` pages from number `page` on may hold anything but zeros; None: all may."""


class MirroredRam(MappedRam):
    """A PhysicalMemory that holds copies of the pages that were asked for, read-only.

    Arrays that it gave out show the guest as it was, or as it was read again.
    """

    def __init__(self, source: RamSource, blocks: Iterable[RamBlock]) -> None:
        blocks = tuple(blocks)
        length = -(-max((block.offset + block.size for block in blocks), default=1) // PAGE) * PAGE
        self._copy = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        super().__init__(self._copy, blocks)
        self._mmap = self._copy  # closed with the rest
        self._source = source
        self._moment: int | None = None
        self._reading = 1
        self._read_at = np.zeros(length // PAGE, np.uint32)
        """The reading that each page's copy is of; 0: there is none yet."""
        self._filled = np.zeros(length // PAGE, np.bool_)
        """Which copies may hold anything but zeros."""

    def read(self, address: PhysAddr, size: int) -> bytes:
        """See MappedRam."""
        return b"".join(self._buffer[piece] for piece in self._pieces(address, size))

    def write(self, address: PhysAddr, data: bytes) -> None:
        """Raises UsageError: they are copies."""
        raise UsageError("guest RAM is a copy here, which cannot be written: the guest would not see it")

    def _pieces(self, address: int, size: int) -> Iterator[slice]:
        pieces = list(super()._pieces(address, size))
        self._refresh()
        for piece in pieces:
            first, last = piece.start // PAGE, -(-piece.stop // PAGE)
            missing = np.flatnonzero(self._read_at[first:last] != self._reading)
            self._fetch(missing + first)
        return iter(pieces)

    def _take(self, offsets: NDArray[np.uint64], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        self._refresh()
        first = (offsets // PAGE).astype(np.int64)
        last = (offsets + np.uint64(dtype.itemsize * count - 1)).astype(np.int64) // PAGE
        for step in range(int((last - first).max(initial=0)) + 1):  # an item lies on a page or two
            pages = np.minimum(first + step, last)
            self._fetch(np.unique(pages[self._read_at[pages] != self._reading]))
        return super()._take(offsets, dtype, count)

    def _refresh(self) -> None:
        """Forget what is no longer so."""
        moment = self._source.moment()
        if moment is None or moment != self._moment:
            self._moment = moment
            self._reading += 1

    def _fetch(self, pages: NDArray[np.int64]) -> None:
        """Copy these pages, given in order; short gaps between them too."""
        if not len(pages):
            return
        breaks = np.flatnonzero(np.diff(pages) > self._source.stride + 1)
        firsts = pages[np.concatenate(([0], breaks + 1))]
        lasts = pages[np.concatenate((breaks, [len(pages) - 1]))] + 1
        whole = memoryview(self._copy)
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            for start, end in self._existing(first, last):
                self._source.read(start * PAGE, whole[start * PAGE : end * PAGE])
                self._filled[start:end] = True
            self._read_at[first:last] = self._reading

    def _existing(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The runs of pages to copy; those that became zeros since are made so here."""
        present = self._source.present(first, last - first) if last - first >= _MANY else None
        if present is None:
            yield first, last
            return
        for start, end in _runs(~present & self._filled[first:last]):  # a balloon took them
            size = (end - start) * PAGE
            self._copy[(first + start) * PAGE : (first + end) * PAGE] = bytes(size)
            self._filled[first + start : first + end] = False
        for start, end in _runs(present):
            yield first + start, first + end


def _runs(marks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each run of marks."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marks, [False])).astype(np.int8)))
    return [(start, end) for start, end in edges.reshape(-1, 2).tolist()]
