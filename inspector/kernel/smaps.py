"""What memory each VMA uses, as /proc/PID/smaps has it, from our own reading of page tables and struct pages.

Source: smap_gather_stats() and what it calls, fs/proc/task_mmu.c.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace
from inspector.kernel import ptes
from inspector.kernel.bulk import columns, spread
from inspector.kernel.mapcounts import entire_mapcounts, has_page, heads_of, mapcounts
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import flag_bits, flags_path
from inspector.kernel.ptes import EntryUse
from inspector.kernel.shmem import swapped_pages
from inspector.kernel.swap_slots import slot_counts
from inspector.kernel.vmas import VM_FLAGS, Vma
from inspector.symbols import Kernel

SMAPS = np.dtype(
    [
        (name, np.uint64)
        for name in (
            "start", "end", "rss", "pss", "pss_dirty", "shared_clean", "shared_dirty", "private_clean",
            "private_dirty", "referenced", "anonymous", "ksm", "lazy_free", "anon_huge_pages",
            "shmem_pmd_mapped", "file_pmd_mapped", "shared_hugetlb", "private_hugetlb", "swap", "swap_pss",
            "locked",
        )
    ]
)  # fmt: skip
"""A VMA's addresses, and smaps' numbers in bytes; hugetlb pages are in their own two alone."""

_LEAF = np.dtype(
    [
        ("area", np.int64),  # the VMA's place in the list
        ("va", np.uint64),
        ("size", np.uint64),
        ("entry", np.uint64),
        ("pfn", np.int64),
        ("page", np.bool_),  # it names a frame
        ("present", np.bool_),  # in Linux's sense: PROT_NONE pages are
        ("swap", np.bool_),
        ("type", np.uint8),
        ("offset", np.uint64),
    ]
)
_ACCESSED, _DIRTY, _SPECIAL = np.uint64(1 << 5), np.uint64(1 << 6), np.uint64(1 << 9)
_SAVED_DIRTY = np.uint64(1 << 58)
_ANON, _KSM = np.uint64(1), np.uint64(3)  # FOLIO_MAPPING_*
_PSS_SHIFT = 12
_IN_MEMORY = (EntryUse.PROT_NONE, EntryUse.MIGRATION, EntryUse.DEVICE, EntryUse.DEVICE_EXCLUSIVE)
_PFNMAP, _LOCKED, _HUGETLB, _SHARED, _WRITE = (
    np.uint64(1 << VM_FLAGS[name]) for name in ("PFNMAP", "LOCKED", "HUGETLB", "SHARED", "WRITE")
)


def smaps(kernel: Kernel, space: AddressSpace, areas: Sequence[Vma]) -> NDArray[np.void]:
    """A SMAPS row for each of an address space's VMAs, which come in order. Raises CorruptGuest."""
    rows = np.zeros(len(areas), SMAPS)
    if not areas:
        return rows
    rows["start"], rows["end"] = [area.start for area in areas], [area.end for area in areas]
    flags = np.array([area.flags for area in areas], np.uint64)
    leaves = _leaves(kernel, space, rows)
    leaves = leaves[flags[leaves["area"]] & _PFNMAP == 0]  # walk_page_test() passes them over
    huge = flags[leaves["area"]] & _HUGETLB != 0
    memmap = MemMap(kernel)
    pages = leaves[leaves["page"]]
    of_hugetlb = huge[leaves["page"]]
    _add_pages(memmap, rows, pages[~of_hugetlb])
    _add_hugetlb(memmap, rows, pages[of_hugetlb])
    rows["locked"] = np.where(flags & _LOCKED != 0, rows["pss"], np.uint64(0))
    _add_swap(kernel, rows, leaves[leaves["swap"] & ~huge])
    _add_shmem_swap(kernel, rows, areas, leaves[~huge])
    return rows


def _leaves(kernel: Kernel, space: AddressSpace, rows: NDArray[np.void]) -> NDArray[np.void]:
    """Every entry of the VMAs that is not empty, taken apart; normal pages only (C: vm_normal_page)."""
    page = np.uint64(space.format.page_size)
    found = space.scan(int(rows["start"][0]), int(rows["end"][-1]), nonpresent=True)
    area = np.searchsorted(rows["start"], found["va"], "right") - 1
    inside = (area >= 0) & (found["va"] < rows["end"][area])
    found, area = found[inside], area[inside]
    leaves = np.zeros(len(found), _LEAF)
    leaves["area"] = area
    for name in ("va", "size", "entry"):
        leaves[name] = found[name]
    present = space.format.present(found["entry"])
    absent = ptes.decode(kernel, found["entry"][~present])
    leaves["pfn"] = (found["pa"] // page).astype(np.int64)
    leaves["present"] = leaves["page"] = present
    leaves["pfn"][~present] = absent["pfn"].astype(np.int64)
    leaves["present"][~present] = absent["use"] == EntryUse.PROT_NONE
    leaves["page"][~present] = np.isin(absent["use"], [int(use) for use in _IN_MEMORY])
    leaves["swap"][~present] = absent["use"] == EntryUse.SWAP
    for name in ("type", "offset"):
        leaves[name][~present] = absent[name]
    special = leaves["present"] & (leaves["entry"] & _SPECIAL != 0)
    leaves["page"] &= ~special & has_page(MemMap(kernel), leaves["pfn"])
    if kernel.symbols.has("huge_zero_pfn"):
        leaves["page"] &= leaves["pfn"] != kernel.word("huge_zero_pfn")
    return leaves


def _add_pages(memmap: MemMap, rows: NDArray[np.void], leaves: NDArray[np.void]) -> None:
    """smaps_account() for every page that is mapped."""
    kernel, small = memmap.kernel, memmap.page_size
    heads = heads_of(memmap, leaves["pfn"])
    flags, references, mapping = columns(
        kernel,
        "page",
        memmap.addresses(heads.astype(np.uint64)),
        flags_path(kernel),
        "_refcount.counter",
        "mapping",
    )
    bits = flag_bits(kernel)

    def has(*names: str) -> NDArray[np.bool_]:
        mask = sum(1 << bits[name] for name in names if name in bits)
        return np.asarray(flags & np.uint64(mask) != 0)

    anon, swap_backed = mapping & _ANON != 0, has("swapbacked")
    present, entries = leaves["present"], leaves["entry"]
    dirty_bits = (
        _DIRTY | _SAVED_DIRTY if kernel.symbols.has("arch_check_zapped_pte") else _DIRTY
    )  # from 6.6 on
    dirty = present & (entries & dirty_bits != 0) | has("dirty")
    young = present & (entries & _ACCESSED != 0) | has("young", "referenced")
    large = leaves["size"] > small
    for name, chosen in (
        ("rss", np.ones(len(leaves), np.bool_)),
        ("anonymous", anon),
        ("ksm", mapping & _KSM == _KSM),
        ("lazy_free", anon & ~swap_backed & ~dirty),
        ("referenced", young),
        ("anon_huge_pages", large & anon),
        ("shmem_pmd_mapped", large & ~anon & swap_backed),
        ("file_pmd_mapped", large & ~anon & ~swap_backed),
    ):
        _add(rows, name, leaves["area"], np.where(chosen, leaves["size"], 0))

    # What depends on who else maps a page is summed up page by page.
    counts = (leaves["size"] // np.uint64(small)).astype(np.int64)
    leaf = np.repeat(np.arange(len(leaves)), counts)
    pfns = spread(leaves["pfn"].astype(np.uint64), counts).view(np.int64)
    mapped = mapcounts(memmap, pfns, heads[leaf])
    # A folio with a single reference is mapped once; how often a page on its way elsewhere is, is not known.
    alone = ((references == 1) | ~present)[leaf]
    private = np.where(alone, present[leaf], mapped < 2)
    pss = (small << _PSS_SHIFT) // np.where(alone, 1, np.maximum(mapped, 1))
    area, dirty = leaves["area"][leaf], dirty[leaf]
    for share, of_share in (("private", private), ("shared", ~private)):
        _add(rows, f"{share}_dirty", area, np.where(of_share & dirty, small, 0))
        _add(rows, f"{share}_clean", area, np.where(of_share & ~dirty, small, 0))
    _add(rows, "pss", area, pss, _PSS_SHIFT)
    _add(rows, "pss_dirty", area, np.where(dirty, pss, 0), _PSS_SHIFT)


def _add_hugetlb(memmap: MemMap, rows: NDArray[np.void], leaves: NDArray[np.void]) -> None:
    """smaps_hugetlb_range(). A page table that tasks share counts once, as its entries do."""
    shared = (entire_mapcounts(memmap, leaves["pfn"]) > 1) | ~leaves["present"]
    _add(rows, "shared_hugetlb", leaves["area"], np.where(shared, leaves["size"], 0))
    _add(rows, "private_hugetlb", leaves["area"], np.where(shared, 0, leaves["size"]))


def _add_swap(kernel: Kernel, rows: NDArray[np.void], leaves: NDArray[np.void]) -> None:
    """Swap entries in the page tables; each share of a slot that several have."""
    _add(rows, "swap", leaves["area"], leaves["size"])
    users = np.maximum(slot_counts(kernel, leaves["type"], leaves["offset"]), 1)
    _add(rows, "swap_pss", leaves["area"], (leaves["size"] << np.uint64(_PSS_SHIFT)) // users, _PSS_SHIFT)


def _add_shmem_swap(
    kernel: Kernel, rows: NDArray[np.void], areas: Sequence[Vma], leaves: NDArray[np.void]
) -> None:
    """Pages of shared memory that are swapped out, which its file knows and no page table."""
    page = kernel.space.format.page_size
    for index, area in enumerate(areas):
        indexes = swapped_pages(kernel, area)
        if not len(indexes):
            continue
        if area.flags & int(_WRITE) and not area.flags & int(_SHARED):
            # Where a private mapping has an entry, it may be a copy: only holes are the file's.
            own = leaves[leaves["area"] == index]
            first = (own["va"] - np.uint64(area.start)) // np.uint64(page)
            indexes = indexes[~np.isin(indexes, first + np.uint64(area.offset // page))]
        rows["swap"][index] += len(indexes) * page


def _add(
    rows: NDArray[np.void], name: str, area: NDArray[np.int64], values: NDArray[np.generic], shift: int = 0
) -> None:
    """Sum up by VMA; floats hold integers exactly up to 2**53, which 2 TiB of PSS come to."""
    sums = np.bincount(area, weights=values, minlength=len(rows)).astype(np.uint64)
    rows[name] += sums >> np.uint64(shift)
