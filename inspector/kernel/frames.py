"""What struct pages and free lists say of every page frame, read in bulk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.kernel import buddy
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import NO_TYPE, PageTypes, flag_bits, flags_path
from inspector.symbols import Kernel


class FrameState(IntEnum):
    """What a frame is in use for, as far as its struct page and the free lists say it."""

    HOLE = 0  # no struct page
    RESERVED = 1  # never given to the page allocator: firmware, kernel image, mem_map itself
    FREE = 2  # in a block on a buddy free list
    PER_CPU = 3  # free, on a CPU's own list
    SLAB = 4
    PAGE_TABLE = 5
    ANON = 6  # anonymous user memory
    FILE = 7  # page cache, shared memory included
    KERNEL = 8  # allocated, and not marked as any of these


NO_MIGRATETYPE = 0xFF
"""The migratetype of a frame that is not free."""

_PART = 1 << 17  # PFNs: what is copied of those in use stays small
_MAPPING_ANON = 1
_WIDEST = 48  # an order that no memory has

# What is known of a frame, in a word of four bytes.
_OWNER, _STATE, _ORDER, _MIGRATETYPE = range(4)


def _mark(owner: int, state: int) -> np.uint32:
    """The word of a frame in no free block."""
    found: np.uint32 = np.array([owner, state, 0, NO_MIGRATETYPE], np.uint8).view(np.uint32)[0]
    return found


_SOME = _mark(0, 0xFF)  # not known yet


class Columns:
    """Room for what is known of each PFN: its flags; _mapcount and refcount; a number that frames() leaves 0
    for others, and the marks. The second and third are pairs as a FRAME has them.
    """

    def __init__(self, count: int) -> None:
        self.flags = np.empty(count, np.uint64)
        self.counts = np.empty((count, 2), np.uint32)
        self.paint = np.empty((count, 2), np.uint32)

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.flags.nbytes + self.counts.nbytes + self.paint.nbytes


@dataclass(slots=True)
class Frames:
    """Every struct page as columns, a place a PFN from 0 on; holes have state HOLE, NO_TYPE and zeros.

    `state` is a FrameState; `order` and `migratetype` are the free block's that holds the frame, 0 and
    NO_MIGRATETYPE elsewhere. `word` is _mapcount, which page types share.

    `reserved` are the PFNs in that state, `used` those that are neither holes, free nor reserved, in order.
    What follows has a place for each of the used: its flags and state once more, its mapping and index, and
    `head`, the first PFN of the compound page (the PFN itself where there is none). `compound` are the places
    of those in compound pages. `slabs` are the first PFNs of slabs, `slab_structs` the bytes of their struct
    pages.
    """

    columns: Columns
    reserved: NDArray[np.int64]
    used: NDArray[np.int64]
    used_flags: NDArray[np.uint64]
    used_state: NDArray[np.uint8]
    mapping: NDArray[np.uint64]
    index: NDArray[np.uint64]
    head: NDArray[np.int64]
    compound: NDArray[np.int64]
    slabs: NDArray[np.int64]
    slab_structs: NDArray[np.uint8]

    @property
    def flags(self) -> NDArray[np.uint64]:
        """Of each struct page."""
        return self.columns.flags

    @property
    def refcount(self) -> NDArray[np.int32]:
        """Of each struct page."""
        return self.columns.counts[:, 1].view(np.int32)

    @property
    def word(self) -> NDArray[np.uint32]:
        """Of each struct page."""
        return self.columns.counts[:, 0]

    @property
    def owner(self) -> NDArray[np.uint8]:
        """What frames() was told to put there."""
        return self._mark(_OWNER)

    @property
    def state(self) -> NDArray[np.uint8]:
        """What each frame is in use for."""
        return self._mark(_STATE)

    @property
    def order(self) -> NDArray[np.uint8]:
        """Of the free block that holds the frame."""
        return self._mark(_ORDER)

    @property
    def migratetype(self) -> NDArray[np.uint8]:
        """Of the free block that holds the frame."""
        return self._mark(_MIGRATETYPE)

    def used_as(self, state: FrameState) -> NDArray[np.bool_]:
        """Which of `used` are in use for this."""
        return np.asarray(self.used_state == int(state))  # against an IntEnum numpy compares in eight bytes

    def _mark(self, which: int) -> NDArray[np.uint8]:
        return self.columns.paint.view(np.uint8)[:, 4 + which]


def frames(
    kernel: Kernel,
    memmap: MemMap | None = None,
    owners: NDArray[np.uint8] | None = None,
    columns: Columns | None = None,
) -> Frames:
    """Read mem_map and the free lists; `owners` are what to put first in the marks, by FrameState.

    `columns` are where to put all this, for so many PFNs as there are. Raises CorruptGuest.
    """
    memmap = memmap or MemMap(kernel)
    owners = np.zeros(len(FrameState), np.uint8) if owners is None else owners
    table = np.array([_mark(owner, state) for state, owner in enumerate(owners.tolist())], np.uint32)
    columns = columns or Columns(memmap.end)
    flags, marks, path = columns.flags, columns.paint[:, 1], flags_path(kernel)
    counts_path = kernel.layout(_counts_path)
    word, refcount = columns.counts[:, 0], columns.counts.view(np.int32)[:, 1]
    counts, paint = columns.counts.view(np.uint64)[:, 0], columns.paint.view(np.uint64)[:, 0]
    unknown = np.array([0, _SOME], np.uint32).view(np.uint64)[0]
    paint[:] = unknown
    for first, end in memmap.holes:
        flags[first:end], refcount[first:end], word[first:end] = 0, 0, NO_TYPE
        marks[first:end] = table[FrameState.HOLE]
    for first, end, structs in memmap.pieces():
        flags[first:end] = memmap.member(structs, path, "<u8")
        counts[first:end] = memmap.member(structs, counts_path, "<u8")
    _spread(paint, buddy.free_blocks(kernel, memmap, counts), table[FrameState.FREE])
    used = np.flatnonzero(paint == unknown)
    bits = {name: np.uint64(1 << bit) for name, bit in flag_bits(kernel).items()}
    is_reserved = flags.take(used) & bits["reserved"] != 0
    reserved, used = used[is_reserved], used[~is_reserved]
    marks[reserved] = table[FrameState.RESERVED]
    used_flags, used_word = flags.take(used), word[used]
    are_slabs = _are_slabs(kernel, PageTypes(kernel), used_flags, used_word)
    paths = "mapping", _index_path(kernel), memmap.compound_word, "lru.next"
    members = np.empty((len(paths), len(used)), np.uint64)
    slab_structs = [np.empty((0, memmap.struct_size), np.uint8)]
    for first, end, structs in memmap.pieces(_PART):
        low, high = used.searchsorted((first, end))
        some = structs.take(used[low:high] - first, axis=0)
        for column, each in zip(members, paths, strict=True):
            column[low:high] = memmap.member(some, each, "<u8")
        slab_structs.append(some[are_slabs[low:high]])
    unused = np.flatnonzero(refcount[used] == 0)
    listed = buddy.per_cpu_pages(kernel, memmap, used[unused].astype(np.uint64), members[3, unused])
    _spread(paint, listed, table[FrameState.PER_CPU])
    kept = (paint.take(used) == unknown) | are_slabs  # no slab is on a list: slab_structs has them all
    used, used_flags, used_word, are_slabs = (each[kept] for each in (used, used_flags, used_word, are_slabs))
    mapping, index, words = (each[kept] for each in members[:3])
    head = memmap.heads_of(used, words)
    state = _states(kernel, used_flags, used_word, mapping)
    state[are_slabs] = FrameState.SLAB
    # A compound page's tails are what its head is.
    tails = np.flatnonzero(head != used)
    of_tails = head[tails]
    places = np.minimum(used.searchsorted(of_tails), len(used) - 1)
    known = used[places] == of_tails
    state[tails[known]] = state[places[known]]
    marks[used] = table.take(state)
    compound = used_flags & bits["head"] != 0
    compound[tails] = flags[of_tails] & bits["head"] != 0
    places = np.flatnonzero(are_slabs)
    first_pages = (state[places] == FrameState.SLAB) & (head[places] == used[places])
    return Frames(
        columns=columns,
        reserved=reserved,
        used=used,
        used_flags=used_flags,
        used_state=state,
        mapping=mapping,
        index=index,
        head=head,
        compound=np.flatnonzero(compound),
        slabs=used[places[first_pages]],
        slab_structs=np.concatenate(slab_structs)[first_pages],
    )


def _counts_path(kernel: Kernel) -> str:
    """Where _mapcount, which page_type shares, and _refcount lie side by side. Raises BadFormat."""
    if kernel.types.offsetof("page", "_refcount") != kernel.types.offsetof("page", "page_type") + 4:
        raise BadFormat("the types are corrupt: in struct page no _refcount follows the _mapcount")
    return "page_type"


def _index_path(kernel: Kernel) -> str:
    """acc53a0b4c15 (6.16) kept the place in a file for the folio alone."""
    return "index" if kernel.types.has("page", "index") else "__folio_index"


def _spread(paint: NDArray[np.uint64], blocks: NDArray[np.void], mark: np.uint32) -> None:
    """Mark the 2**order frames of each free block. Raises CorruptGuest."""
    pairs = np.zeros((len(blocks), 2), np.uint32)
    pairs[:, 1] = mark
    bytes_ = pairs.view(np.uint8)
    bytes_[:, 4 + _ORDER], bytes_[:, 4 + _MIGRATETYPE] = blocks["order"], blocks["migratetype"]
    words, orders, pfns = pairs.view(np.uint64), blocks["order"], blocks["pfn"]
    sizes = np.uint64(1) << np.minimum(orders, _WIDEST).astype(np.uint64)
    lost = np.flatnonzero((pfns & sizes - np.uint64(1) != 0) | (pfns + sizes > len(paint)))
    if lost.size:
        where = f"of order {orders[lost[0]]} cannot be at PFN {int(pfns[lost[0]]):#x}"
        raise CorruptGuest(f"a free block {where}: see its alignment and end")
    for order in np.flatnonzero(np.bincount(orders)).tolist():
        chosen = np.flatnonzero(orders == order)
        whole = paint[: len(paint) >> order << order].reshape(-1, 1 << order)
        whole[pfns[chosen] >> np.uint64(order)] = words[chosen]


def _states(
    kernel: Kernel, flags: NDArray[np.uint64], word: NDArray[np.uint32], mapping: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """The FrameState that struct pages tell by themselves; slabs are told apart before."""
    bits, types = flag_bits(kernel), PageTypes(kernel)

    def flagged(*names: str) -> NDArray[np.bool_]:
        mask = sum(1 << bits[name] for name in names if name in bits)
        return np.asarray((flags & np.uint64(mask)) != 0)

    states = np.full(len(flags), FrameState.KERNEL, np.uint8)
    states[(mapping != 0) & flagged("lru", "uptodate")] = FrameState.FILE
    states[(mapping & np.uint64(_MAPPING_ANON)) != 0] = FrameState.ANON
    states[types.are("table", word)] = FrameState.PAGE_TABLE
    return states


def _are_slabs(
    kernel: Kernel, types: PageTypes, flags: NDArray[np.uint64], word: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Which of these pages are the first of a slab: only those carry the mark."""
    if "slab" in types.names:  # 46df8e73a4a3 (6.10) made it a page type
        return types.are("slab", word)
    return np.asarray(flags & np.uint64(1 << flag_bits(kernel)["slab"]) != 0)
