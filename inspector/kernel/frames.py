"""Every page frame at once: a row a PFN, read in bulk from mem_map and the free lists."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.kernel import buddy
from inspector.kernel.memmap import MemMap
from inspector.kernel.pages import cleared_types, flag_bits, flags_path
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


FRAME = np.dtype(
    [
        ("pfn", np.uint64),
        ("flags", np.uint64),
        ("refcount", np.int32),
        ("mapcount", np.int32),
        ("state", np.uint8),
        ("order", np.uint8),
        ("migratetype", np.uint8),
    ]
)
"""`order` and `migratetype` are the free block's that holds the frame; 0 and NO_MIGRATETYPE elsewhere.
`mapcount` is -1 where the word holds a page type."""

NO_MIGRATETYPE = 0xFF
_MAPPING_ANON = 1


def frames(kernel: Kernel) -> NDArray[np.void]:
    """One FRAME row a PFN from 0 to the last that has a struct page; holes have state HOLE and zeros."""
    memmap = MemMap(kernel)
    rows = np.zeros(memmap.end, FRAME)
    rows["pfn"] = np.arange(memmap.end, dtype=np.uint64)
    rows["migratetype"] = NO_MIGRATETYPE
    for first, end in memmap.runs:
        part = rows[first:end]
        word = memmap.column(first, end, "page_type", "<u4").copy()
        part["flags"] = memmap.column(first, end, flags_path(kernel), "<u8")
        part["refcount"] = memmap.column(first, end, "_refcount.counter", "<i4")
        typed = (word >= np.uint32(0x80000000)) & (word != np.uint32(0xFFFFFFFF))
        part["mapcount"] = np.where(typed, -1, word.view(np.int32) + 1)
        heads = memmap.heads(first, end) - first
        outside = (heads < 0) | (heads >= end - first)
        heads[outside] = np.flatnonzero(outside)
        mapping = memmap.column(first, end, "mapping", "<u8").copy()
        part["state"] = _states(kernel, part["flags"], part["refcount"], word, mapping, heads)
    _mark(rows, buddy.free_blocks(kernel, memmap), FrameState.FREE)
    _mark(rows, buddy.per_cpu_pages(kernel, memmap), FrameState.PER_CPU)
    return rows


def _states(
    kernel: Kernel,
    flags: NDArray[np.uint64],
    refcount: NDArray[np.int32],
    word: NDArray[np.uint32],
    mapping: NDArray[np.uint64],
    heads: NDArray[np.int64],
) -> NDArray[np.uint8]:
    bits = flag_bits(kernel)

    def has(name: str) -> NDArray[np.bool_]:
        if name not in bits:
            return np.zeros(flags.size, np.bool_)
        return (flags[heads] >> np.uint64(bits[name]) & np.uint64(1)).astype(np.bool_)

    types = kernel.types.enum("pagetype") if kernel.types.has("pagetype") else {}
    head_word = word[heads]
    if "PGTY_slab" in types:  # 46df8e73a4a3 (6.11) made slab a page type
        slab = head_word >> np.uint32(24) == types["PGTY_slab"]
        table = head_word >> np.uint32(24) == types["PGTY_table"]
    else:
        slab = has("slab")
        typed = (head_word >= np.uint32(0xF0000000)) & (head_word != np.uint32(0xFFFFFFFF))
        table = typed & (head_word & np.uint32(cleared_types(kernel)["table"]) == 0)
    anon = (mapping[heads] & np.uint64(_MAPPING_ANON)).astype(np.bool_) & ~slab & ~table
    cached = (mapping[heads] != 0) & ~anon & (has("lru") | has("uptodate")) & ~slab & ~table
    choices = [
        ((flags >> np.uint64(bits["reserved"]) & np.uint64(1)).astype(np.bool_), FrameState.RESERVED),
        (slab, FrameState.SLAB),
        (table, FrameState.PAGE_TABLE),
        (anon, FrameState.ANON),
        (cached, FrameState.FILE),
    ]
    return np.select([c for c, _ in choices], [s for _, s in choices], FrameState.KERNEL).astype(np.uint8)


def _mark(rows: NDArray[np.void], blocks: NDArray[np.void], state: FrameState) -> None:
    """Write the state, order and migratetype of each block into all of its frames."""
    if not blocks.size:
        return
    sizes = np.left_shift(1, blocks["order"].astype(np.int64))
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    pfns = np.repeat(blocks["pfn"].astype(np.int64), sizes) + inside
    rows["state"][pfns] = state
    rows["order"][pfns] = np.repeat(blocks["order"], sizes)
    rows["migratetype"][pfns] = np.repeat(blocks["migratetype"], sizes)
