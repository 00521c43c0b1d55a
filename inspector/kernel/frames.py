"""What struct pages and free lists say of every page frame, read in bulk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
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

_MAPPING_ANON = 1
_UNKNOWN = 0xFF
_WIDEST = 48  # an order that no memory has


@dataclass(slots=True)
class Frames:
    """Every struct page as columns, a place a PFN from 0 on; holes have state HOLE, NO_TYPE and zeros.

    `state` is a FrameState; `order` and `migratetype` are the free block's that holds the frame, 0 and
    NO_MIGRATETYPE elsewhere. `word` is _mapcount, which page types share. `used` are the PFNs that are
    neither holes nor free, in order: `mapping` and `head`, the first PFN of the compound page (the PFN itself
    where there is none), are theirs alone, a place each.
    """

    flags: NDArray[np.uint64]
    refcount: NDArray[np.int32]
    word: NDArray[np.uint32]
    state: NDArray[np.uint8]
    order: NDArray[np.uint8]
    migratetype: NDArray[np.uint8]
    used: NDArray[np.int64]
    mapping: NDArray[np.uint64]
    head: NDArray[np.int64]


def frames(kernel: Kernel, memmap: MemMap | None = None) -> Frames:
    """Read mem_map and the free lists. Raises CorruptGuest."""
    memmap = memmap or MemMap(kernel)
    count, path = memmap.end, flags_path(kernel)
    flags, refcount = np.zeros(count, np.uint64), np.zeros(count, np.int32)
    word, state = np.full(count, NO_TYPE, np.uint32), np.zeros(count, np.uint8)
    for first, end in memmap.parts():
        structs = memmap.structs(first, end)
        flags[first:end] = memmap.member(structs, path, "<u8")
        refcount[first:end] = memmap.member(structs, "_refcount.counter", "<i4")
        word[first:end] = memmap.member(structs, "page_type", "<u4")
        state[first:end] = _UNKNOWN
    order, migratetype = np.zeros(count, np.uint8), np.full(count, NO_MIGRATETYPE, np.uint8)

    def mark(blocks: NDArray[np.void], kind: FrameState) -> None:
        _spread(state, blocks, np.full(len(blocks), kind, np.uint8))
        _spread(order, blocks, blocks["order"])
        _spread(migratetype, blocks, blocks["migratetype"])

    mark(buddy.free_blocks(kernel, memmap, word), FrameState.FREE)
    unused = np.flatnonzero((refcount == 0) & (state == _UNKNOWN)).astype(np.uint64)
    mark(buddy.per_cpu_pages(kernel, memmap, unused), FrameState.PER_CPU)
    used = np.flatnonzero(state == _UNKNOWN)
    mapping, head = _mappings_and_heads(memmap, used)
    state[used] = _states(kernel, flags[used], word[used], mapping)
    # A compound page's tails are what its head is.
    tails = (head != used) & (state[head] > FrameState.PER_CPU)
    state[used[tails]] = state[head[tails]]
    state[used[flags[used] & np.uint64(1 << flag_bits(kernel)["reserved"]) != 0]] = FrameState.RESERVED
    return Frames(flags, refcount, word, state, order, migratetype, used, mapping, head)


def _spread(column: NDArray[np.uint8], blocks: NDArray[np.void], values: NDArray[np.uint8]) -> None:
    """Write each block's value into the places of its 2**order frames. Raises CorruptGuest."""
    for order in np.unique(blocks["order"]).tolist():
        chosen = blocks["order"] == order
        pfns = blocks["pfn"][chosen]
        size = 1 << min(order, _WIDEST)
        lost = np.flatnonzero((pfns & np.uint64(size - 1) != 0) | (pfns + np.uint64(size) > len(column)))
        if lost.size:
            where = f"PFN {int(pfns[lost[0]]):#x}"
            raise CorruptGuest(
                f"a free block of order {order} cannot be at {where}: see its alignment and end"
            )
        whole = column[: len(column) // size * size].reshape(-1, size)
        whole[pfns // np.uint64(size)] = values[chosen, None]


def _mappings_and_heads(
    memmap: MemMap, used: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """page->mapping and the compound page's first PFN of these frames."""
    mapping, head = np.empty(len(used), np.uint64), np.empty(len(used), np.int64)
    for first, end in memmap.parts():
        low, high = np.searchsorted(used, (first, end))
        here = used[low:high]
        structs = memmap.structs(first, end)[here - first]
        mapping[low:high] = memmap.member(structs, "mapping", "<u8")
        head[low:high] = memmap.heads_of(here, structs)
    return mapping, head


def _states(
    kernel: Kernel, flags: NDArray[np.uint64], word: NDArray[np.uint32], mapping: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """The FrameState that struct pages tell by themselves."""
    bits, types = flag_bits(kernel), PageTypes(kernel)
    kind = types.kinds(word)

    def flagged(*names: str) -> NDArray[np.bool_]:
        mask = sum(1 << bits[name] for name in names if name in bits)
        return np.asarray((flags & np.uint64(mask)) != 0)

    states = np.full(len(flags), FrameState.KERNEL, np.uint8)
    states[(mapping != 0) & flagged("lru", "uptodate")] = FrameState.FILE
    states[(mapping & np.uint64(_MAPPING_ANON)) != 0] = FrameState.ANON
    states[kind == types.names.index("table")] = FrameState.PAGE_TABLE
    # 46df8e73a4a3 (6.10) made slab a page type.
    slab = kind == types.names.index("slab") if "slab" in types.names else flagged("slab")
    states[slab] = FrameState.SLAB
    return states
