"""How many page table entries stand for each slot of a swap area (swp_swapcount(), mm/swapfile.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel.bulk import columns
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_HAS_CACHE, _CONTINUED = 0x40, 0x80  # of a byte of swap_map
_TABLE_BITS = 5  # SWP_TB_FLAGS_BITS where pointers have 64 bits
_COUNTABLE = np.uint64(3)  # the marks of shadows and of PFNs; other words have no count


def slot_counts(kernel: Kernel, types: NDArray[np.uint8], offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """For each slot (area and offset, as in swap entries) how many entries stand for it.

    Of over 62 the byte in swap_map has no more than 62; what it goes on with elsewhere is left out.
    Raises CorruptGuest where an area or a slot is not there.
    """
    counts = np.zeros(len(offsets), np.uint64)
    for number in np.unique(types).tolist():
        of_area = types == number
        at = VirtAddr(kernel.symbol("swap_info") + number * kernel.pointer_size)
        area = kernel.view("swap_info_struct", kernel.space.pointer(at))
        if (offsets[of_area] >= np.uint64(area.int("max"))).any():
            raise CorruptGuest(f"an entry stands for a slot behind the end of swap area {number}")
        if area.has("swap_map"):
            counts[of_area] = _in_map(area, offsets[of_area])
        else:  # gone in 7.1: the swap table, which the swap cache is in as well, counts
            counts[of_area] = _in_tables(area, offsets[of_area])
    return counts


def _in_map(area: StructView, offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    at = np.uint64(area.ptr("swap_map")) + offsets
    found, ok = area.kernel.space.gather(at, np.dtype(np.uint8))
    if not ok.all():
        raise CorruptGuest("a swap area's swap_map is not mapped in the kernel")
    return np.asarray(found & np.uint8(0xFF & ~(_HAS_CACHE | _CONTINUED)), np.uint64)


def _in_tables(area: StructView, offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    kernel = area.kernel
    slots = np.uint64(kernel.types.field("swap_table", "entries").type.count)
    inside = offsets % slots
    size = np.uint64(kernel.types.sizeof("swap_cluster_info"))
    clusters = np.uint64(area.ptr("cluster_info")) + offsets // slots * size
    tables, more = columns(kernel, "swap_cluster_info", clusters, "table", "extend_table")
    # Where pages of zeros are marked in the table itself, one bit less is left to count with.
    bits = _TABLE_BITS - (not kernel.types.has("swap_cluster_info", "zero_bitmap"))
    words, ok = kernel.space.gather(tables + inside * np.uint64(8), np.dtype(np.uint64))
    if not ok.all():
        raise CorruptGuest("the table of a swap cluster is not mapped in the kernel")
    counts = np.where(words & _COUNTABLE != 0, words >> np.uint64(64 - bits), np.uint64(0))
    over = counts == np.uint64((1 << bits) - 1)
    extended, _ = kernel.space.gather(more[over] + inside[over] * np.uint64(4), np.dtype(np.uint32))
    counts[over] = extended
    return np.asarray(counts)
