"""How often user page tables map each page, large folios included (page_mapcount(); /proc/kpagecount)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.bulk import columns
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import flag_bits, flags_path

_ANON = np.uint64(1)  # FOLIO_MAPPING_ANON


def mapcounts(memmap: MemMap, pfns: NDArray[np.int64], heads: NDArray[np.int64]) -> NDArray[np.int64]:
    """The entries that map each of these pages: those of the page, and those of its whole large folio.

    `heads` are the pages' folios. What has a page type in the word is mapped by none. hugetlb's pages are
    mapped as a whole: entire_mapcounts(). Raises CorruptGuest where a struct page is not mapped.
    """
    kernel = memmap.kernel
    (own,) = columns(kernel, "page", memmap.addresses(pfns.astype(np.uint64)), "_mapcount.counter")
    folios, folio = np.unique(heads, return_inverse=True)
    return np.asarray(
        np.maximum(own + 1, 0) + shared_mapcounts(memmap, folios)[folio]
    )  # a type is far below -1


def shared_mapcounts(memmap: MemMap, heads: NDArray[np.int64]) -> NDArray[np.int64]:
    """What to add to the count of each page of these folios: 0 where the folio is one page.

    hugetlb's pages are not counted so before 6.2. Raises CorruptGuest.
    """
    kernel = memmap.kernel
    at = memmap.addresses(heads.astype(np.uint64))
    flags, mapping = columns(kernel, "page", at, flags_path(kernel), "mapping")
    large = flags >> np.uint64(flag_bits(kernel)["head"]) & np.uint64(1) != 0
    doubled = kernel.types.enum("pageflags").get("PG_double_map")  # a second name of another flag's bit
    if doubled is not None:
        # Before 6.2 or so: a file's small counts had the large ones in them, and so had an anonymous
        # folio's once they were both in use, which a flag of its first tail page says.
        large &= mapping & _ANON != 0
    shared = np.zeros(len(heads), np.int64)
    shared[large] = entire_mapcounts(memmap, heads[large])
    if doubled is not None:
        tails = memmap.addresses(heads[large].astype(np.uint64) + np.uint64(1))
        (tail_flags,) = columns(kernel, "page", tails, flags_path(kernel))
        shared[large] -= (tail_flags >> np.uint64(doubled) & np.uint64(1)).astype(np.int64)
    return shared


def folio_mapcounts(memmap: MemMap, heads: NDArray[np.int64], huge: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The same for folios that are large, of which `huge` are hugetlb's. Raises CorruptGuest."""
    if "PG_double_map" not in memmap.kernel.types.enum("pageflags"):
        return entire_mapcounts(memmap, heads)
    shared = np.empty(len(heads), np.int64)
    shared[~huge] = shared_mapcounts(memmap, heads[~huge])
    shared[huge] = entire_mapcounts(memmap, heads[huge])
    return shared


def entire_mapcounts(memmap: MemMap, heads: NDArray[np.int64]) -> NDArray[np.int64]:
    """The entries that map the whole of these large folios, whose first pages' PFNs are given."""
    kernel, folios = memmap.kernel, heads.astype(np.uint64)
    if kernel.types.has("page", "compound_mapcount"):  # up to 6.2, in the first tail page
        at = memmap.addresses(folios + np.uint64(1))
        (counts,) = columns(kernel, "page", at, "compound_mapcount.counter")
    else:
        (counts,) = columns(kernel, "folio", memmap.addresses(folios), "_entire_mapcount.counter")
    return np.asarray(counts + 1)


def heads_of(memmap: MemMap, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first page of the folio that each page belongs to."""
    if not len(pfns):
        return pfns
    structs, _ = memmap.kernel.space.gather(
        memmap.addresses(pfns.astype(np.uint64)), np.dtype(np.uint8), memmap.struct_size
    )
    return memmap.heads_of(pfns, memmap.compound_words(structs))


def has_page(memmap: MemMap, pfns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which PFNs have a struct page (C: pfn_valid)."""
    found = np.zeros(len(pfns), np.bool_)
    for first, end in memmap.runs:
        found |= (pfns >= first) & (pfns < end)
    return found
