"""Pageblocks: for which migratetype each block of memory is kept (include/linux/pageblock-flags.h)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.kernel.frames import NO_MIGRATETYPE
from inspector.kernel.memmap import MemMap
from inspector.symbols import Kernel

_MIGRATETYPE_MASK = 7  # PB_migratetype_bits is 3
_WORD = 64


def order(kernel: Kernel) -> int:
    """A pageblock has 2**order pages (C: pageblock_order): as many as a huge page."""
    levels = kernel.space.format.levels
    return levels[-2].shift - levels[-1].shift


def migratetypes(kernel: Kernel, memmap: MemMap | None = None) -> NDArray[np.uint8]:
    """The migratetype of each pageblock from PFN 0 on; NO_MIGRATETYPE where there is no memory.

    Raises CorruptGuest where a section's bitmap is not mapped.
    """
    memmap = memmap or MemMap(kernel)
    width, isolate = _layout(kernel)
    per_section = memmap.pages_per_section >> order(kernel)
    words = -(-per_section * width // _WORD)
    sections = (
        np.concatenate([np.arange(first, end, memmap.pages_per_section) for first, end in memmap.runs])
        // memmap.pages_per_section
    )
    bitmaps = memmap.sections("usage")[sections] + np.uint64(
        kernel.types.offsetof("mem_section_usage", "pageblock_flags")
    )
    raw, ok = kernel.space.gather(bitmaps, np.dtype(np.uint64), words)
    if not ok.all():
        raise CorruptGuest("the pageblock flags of a memory section are not mapped")
    raw = raw.reshape(len(sections), words)
    bits = np.arange(per_section) * width
    flags = raw[:, bits // _WORD] >> (bits % _WORD).astype(np.uint64)
    kinds = (flags & np.uint64(_MIGRATETYPE_MASK)).astype(np.uint8)
    if isolate is not None:
        isolated = (flags >> np.uint64(isolate) & np.uint64(1)).astype(np.bool_)
        kinds[isolated] = kernel.types.enum("migratetype")["MIGRATE_ISOLATE"]
    found = np.full((memmap.end // memmap.pages_per_section, per_section), NO_MIGRATETYPE, np.uint8)
    found[sections] = kinds
    return found.reshape(-1)


def _layout(kernel: Kernel) -> tuple[int, int | None]:
    """How many bits a pageblock has, and which of them says that it is isolated."""
    bits = kernel.types.enum("pageblock_bits")
    if "__NR_PAGEBLOCK_BITS" in bits:  # between 6.12 and 7.2 isolation got a bit of its own
        width, isolate = 1 << (bits["__NR_PAGEBLOCK_BITS"] - 1).bit_length(), bits.get("PB_migrate_isolate")
    else:
        width, isolate = bits["NR_PAGEBLOCK_BITS"], None
    if width not in (4, 8):
        raise BadFormat(f"the types are corrupt: a pageblock has {width} bits")
    return width, isolate
