"""Which compound pages are hugetlb's: of a file, private or free in the pool (mm/hugetlb.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel.bulk import columns
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import PageTypes, flags_path
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_MAX_HSTATES = 64  # HUGE_MAX_HSTATE is 2 on x86, 4 at most


def hstates(kernel: Kernel) -> list[StructView]:
    """Every struct hstate: a size of hugetlb page. Raises CorruptGuest."""
    if "hugetlb_max_hstate" not in kernel.symbols:
        return []
    count = kernel.space.u32(kernel.symbol("hugetlb_max_hstate"))
    if count > _MAX_HSTATES:
        raise CorruptGuest(f"there are {count} sizes of huge pages")
    first, size = kernel.symbol("hstates"), kernel.types.sizeof("hstate")
    return [kernel.view("hstate", VirtAddr(first + i * size)) for i in range(count)]


def are_hugetlb(
    memmap: MemMap, heads: NDArray[np.int64], words: NDArray[np.uint32] | None = None
) -> NDArray[np.bool_]:
    """For each first page of a compound page, by PFN, whether it is (C: PageHuge, folio_test_hugetlb).

    `words` are their page types, where they have been read. Raises CorruptGuest where a struct page is not
    mapped.
    """
    kernel = memmap.kernel
    pages, tails = (memmap.addresses(heads.astype(np.uint64) + np.uint64(at)) for at in (0, 1))
    types = PageTypes(kernel)
    if "hugetlb" in types.names:  # a page type, as in 6.12
        if words is None:
            words = columns(kernel, "page", pages, "page_type")[0].astype(np.uint32)
        found = types.kinds(words) == types.names.index("hugetlb")
    elif (bit := kernel.types.enum("pageflags").get("PG_hugetlb")) is not None:  # a flag for a while before
        (flags,) = columns(kernel, "page", tails, flags_path(kernel))
        found = flags >> np.uint64(bit & 63) & np.uint64(1) != 0
    else:
        (destructors,) = columns(kernel, "page", tails, "compound_dtor")
        found = destructors == kernel.vmcoreinfo.number("HUGETLB_PAGE_DTOR")
    return np.asarray(found)
