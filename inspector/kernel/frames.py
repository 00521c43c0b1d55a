"""Every page frame at once: a row a PFN, read in bulk from mem_map and the free lists."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
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
_WIDEST = 48  # an order that no memory has


def frames(kernel: Kernel) -> NDArray[np.void]:
    """One FRAME row a PFN from 0 to the last that has a struct page; holes have state HOLE and zeros."""
    memmap = MemMap(kernel)
    rows = np.zeros(memmap.end, FRAME)
    rows["pfn"] = np.arange(memmap.end, dtype=np.uint64)
    rows["migratetype"] = NO_MIGRATETYPE
    classify = _Classifier(kernel)
    for first, end in memmap.parts():
        structs, part = memmap.structs(first, end), rows[first:end]
        word = memmap.member(structs, "page_type", "<u4").copy()
        part["flags"] = flags = memmap.member(structs, flags_path(kernel), "<u8").copy()
        part["refcount"] = memmap.member(structs, "_refcount.counter", "<i4")
        typed = (word >= np.uint32(0x80000000)) & (word != np.uint32(0xFFFFFFFF))
        part["mapcount"] = np.where(typed, -1, word.view(np.int32) + 1)
        part["state"] = classify(flags, word, memmap.member(structs, "mapping", "<u8"))
        # A compound page's tails are what its head is; heads come first, so theirs is known.
        heads = memmap.heads(first, end, structs)
        tails = np.flatnonzero(heads < np.arange(first, end))
        rows["state"][tails + first] = rows["state"][heads[tails]]
        part["state"][classify.has(flags, "reserved")] = FrameState.RESERVED
    _mark(rows, buddy.free_blocks(kernel, memmap), FrameState.FREE)
    _mark(rows, buddy.per_cpu_pages(kernel, memmap), FrameState.PER_CPU)
    return rows


class _Classifier:
    """The state that struct pages tell by themselves, many at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._bits = flag_bits(kernel)
        types = kernel.types.enum("pagetype") if kernel.types.has("pagetype") else {}
        # 46df8e73a4a3 (6.10) made slab a page type; 4ffca5a96678 (6.12) made a type the word's top byte.
        self._types = types if "PGTY_slab" in types else None
        self._table_bit = 0 if self._types else cleared_types(kernel)["table"]

    def __call__(
        self, flags: NDArray[np.uint64], word: NDArray[np.uint32], mapping: NDArray[np.uint64]
    ) -> NDArray[np.uint8]:
        if self._types:
            kind = word >> np.uint32(24)
            slab, table = kind == self._types["PGTY_slab"], kind == self._types["PGTY_table"]
        else:
            slab = self.has(flags, "slab")
            typed = (word >= np.uint32(0xF0000000)) & (word != np.uint32(0xFFFFFFFF))
            table = typed & (word & np.uint32(self._table_bit) == 0)
        states = np.full(flags.size, FrameState.KERNEL, np.uint8)
        states[(mapping != 0) & self.has(flags, "lru", "uptodate")] = FrameState.FILE
        states[(mapping & np.uint64(_MAPPING_ANON)) != 0] = FrameState.ANON
        states[table] = FrameState.PAGE_TABLE
        states[slab] = FrameState.SLAB
        return states

    def has(self, flags: NDArray[np.uint64], *names: str) -> NDArray[np.bool_]:
        """Where any of these flags is set."""
        mask = sum(1 << self._bits[name] for name in names if name in self._bits)
        return np.asarray((flags & np.uint64(mask)) != 0)


def _mark(rows: NDArray[np.void], blocks: NDArray[np.void], state: FrameState) -> None:
    """Write the state, order and migratetype of each block into all of its frames. Raises CorruptGuest."""
    if not blocks.size:
        return
    sizes = np.left_shift(1, np.minimum(blocks["order"], _WIDEST).astype(np.int64))
    outside = np.flatnonzero(blocks["pfn"].astype(np.int64) + sizes > len(rows))
    if outside.size:
        block = blocks[outside[0]]
        raise CorruptGuest(
            f"a free block of order {block['order']} at PFN {block['pfn']:#x} ends past memory"
        )
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    pfns = np.repeat(blocks["pfn"].astype(np.int64), sizes) + inside
    rows["state"][pfns] = state
    rows["order"][pfns] = np.repeat(blocks["order"], sizes)
    rows["migratetype"][pfns] = np.repeat(blocks["migratetype"], sizes)
