"""The buddy allocator's free blocks, and the free pages on per-CPU lists (mm/page_alloc.c)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.kernel import lists, zones
from inspector.kernel.memmap import MemMap
from inspector.kernel.recall import recall
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

FREE_BLOCK = np.dtype(
    [
        ("pfn", np.uint64),
        ("order", np.uint8),
        ("migratetype", np.uint8),
        ("node", np.uint16),
        ("zone", np.uint8),
    ]
)
"""A block of 2**order free pages that begins at `pfn`, on its zone's list of that migratetype."""

PCP_PAGE = np.dtype(
    [
        ("pfn", np.uint64),
        ("order", np.uint8),
        ("migratetype", np.uint8),
        ("node", np.uint16),
        ("zone", np.uint8),
        ("cpu", np.uint16),
    ]
)
"""A free block of 2**order pages that waits on a CPU's own list."""

_U64 = np.dtype(np.uint64)
_TAIL = np.uint64(1)
_MAX_ZONES = 16  # there are 6 at most
_MAX_SLOTS = 256  # per-CPU lists of a zone; there are 14
_PCP_ORDERS = 4  # PAGE_ALLOC_COSTLY_ORDER + 1: above them, per-CPU lists hold huge pages only


def migratetypes(kernel: Kernel) -> tuple[str, ...]:
    """The names of the migratetypes in order, as /proc/pagetypeinfo prints them (C: migratetype_names)."""
    table = kernel.symbol("migratetype_names")
    return tuple(
        kernel.space.cstring(VirtAddr(kernel.space.u64(VirtAddr(table + index * kernel.pointer_size))), 32)
        for index in range(_migratetype_count(kernel))
    )


def free_blocks(kernel: Kernel, memmap: MemMap, counts: NDArray[np.uint64] | None = None) -> NDArray[np.void]:
    """Every block on a buddy free list, by PFN, as FREE_BLOCK rows.

    Blocks are found by their page_type: `counts` are all of these from PFN 0 on, each with the _refcount,
    which is 0 there, in the upper half. Which list each is on comes from following all lists at once.
    A CPU that was stopped inside the allocator may hold one block between lists: it is left out.
    Raises CorruptGuest where more blocks than CPUs are on no list.
    """
    heads, which = recall(kernel, _free_lists)
    pfns = _buddy_pfns(memmap, counts)
    links = memmap.addresses(pfns) + np.uint64(kernel.types.offsetof("page", "lru"))
    following, _ = kernel.space.gather(links, _U64)
    ends = lists.follow(links, following, heads)
    found = ends >= 0
    lost = len(pfns) - np.count_nonzero(found)
    if lost > len(kernel.online_cpus()):
        raise CorruptGuest(
            f"{lost} free blocks are on no free list; the first is PFN {int(pfns[~found][0]):#x}"
        )
    blocks = which.take(ends[found])
    blocks["pfn"] = pfns[found]
    return blocks


def per_cpu_pages(
    kernel: Kernel, memmap: MemMap, unused: NDArray[np.uint64], following: NDArray[np.uint64] | None = None
) -> NDArray[np.void]:
    """Every block on a per-CPU free list, as PCP_PAGE rows.

    `unused` are the PFNs that nobody refers to and that are in no free block: those on the lists are among
    them, and no mark tells them apart. `following` are their lru.next, where they have been read.
    """
    heads, which = recall(kernel, _per_cpu_lists)
    links = memmap.addresses(unused) + np.uint64(kernel.types.offsetof("page", "lru"))
    if following is None:
        following, _ = kernel.space.gather(links, _U64)
    linked = np.flatnonzero(following & _TAIL == 0)  # of a tail page the word leads to its head, bit 0 set
    unused, links, following = unused[linked], links[linked], following[linked]
    ends = lists.follow(links, following, heads)
    found = np.flatnonzero(ends >= 0)
    back, _ = kernel.space.gather(following[found] + np.uint64(kernel.pointer_size), _U64)
    if np.any(back != links[found]):
        # A page that was freed on a list and then taken as the second of a larger block still points into it.
        ends = _walked(kernel, heads, links, following)
        found = np.flatnonzero(ends >= 0)
    rows = which.take(ends[found])
    rows["pfn"] = unused[found]
    return rows


def _walked(
    kernel: Kernel, heads: NDArray[np.uint64], links: NDArray[np.uint64], following: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """What follow() answers, by a walk of each list from its head: only what is on one is met."""
    ends = np.full(len(links), -1)
    places = {link: place for place, link in enumerate(links.tolist())}
    first, _ = kernel.space.gather(heads, _U64)
    for head, at in enumerate(first.tolist()):
        while (place := places.pop(at, None)) is not None:
            ends[place], at = head, int(following[place])
    return ends


def counts(blocks: NDArray[np.void], zone: zones.Zone, migratetype_count: int) -> NDArray[np.int64]:
    """Blocks of one zone by migratetype (rows) and order (columns): the table of /proc/pagetypeinfo."""
    orders = len(zone.free_by_order)
    chosen = blocks[(blocks["node"] == zone.node) & (blocks["zone"] == zone.index)]
    flat = chosen["migratetype"].astype(np.int64) * orders + chosen["order"]
    return np.bincount(flat, minlength=migratetype_count * orders).reshape(migratetype_count, orders)


def _populated(kernel: Kernel) -> Iterator[tuple[int, int, StructView]]:
    """The zones that have memory, by node and index (C: for_each_populated_zone)."""
    count = kernel.types.enum("zone_type")["__MAX_NR_ZONES"]
    if not 0 < count <= _MAX_ZONES:
        raise BadFormat(f"the types are corrupt: nodes of {count} zones")
    for node in zones.nodes(kernel):
        for index in range(count):
            zone = node.at(f"node_zones[{index}]")
            if zone.int("present_pages"):
                yield zones.node_id(node), index, zone


def _migratetype_count(kernel: Kernel) -> int:
    return kernel.types.enum("migratetype")["MIGRATE_TYPES"]


def _free_lists(kernel: Kernel) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """The head of every free list, and a FREE_BLOCK row for each of what is on it."""
    types = kernel.types
    inside = [
        (order, migratetype, types.offsetof("zone", f"free_area[{order}].free_list[{migratetype}]"))
        for order in range(types.field("zone", "free_area").type.count)
        for migratetype in range(_migratetype_count(kernel))
    ]
    heads: list[int] = []
    rows: list[tuple[int, ...]] = []
    for node, index, zone in _populated(kernel):
        heads += (zone.address + offset for _, _, offset in inside)
        rows += ((0, order, migratetype, node, index) for order, migratetype, _ in inside)
    return np.array(heads, np.uint64), np.array(rows, FREE_BLOCK)


def _per_cpu_lists(kernel: Kernel) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """The head of every CPU's own lists, and a PCP_PAGE row for each of what is on it."""
    heads: list[int] = []
    rows: list[tuple[int, ...]] = []
    slots: list[tuple[int, int, int]] = []
    for node, index, zone in _populated(kernel):
        for cpu, pcp in zones.per_cpu_lists(zone):
            slots = slots or [
                (order, migratetype, kernel.types.offsetof(pcp.type.name, f"lists[{slot}]"))
                for slot, (order, migratetype) in enumerate(_pcp_slots(kernel, pcp))
            ]
            heads += (pcp.address + offset for _, _, offset in slots)
            rows += ((0, order, migratetype, node, index, cpu) for order, migratetype, _ in slots)
    return np.array(heads, np.uint64), np.array(rows, PCP_PAGE)


def _buddy_pfns(memmap: MemMap, counts: NDArray[np.uint64] | None) -> NDArray[np.uint64]:
    # ~PG_buddy up to 6.11; PGTY_buddy << 24 since 4ffca5a96678 (6.12): VMCOREINFO has either under one name.
    mark = np.uint32(memmap.kernel.vmcoreinfo.number("PAGE_BUDDY_MAPCOUNT_VALUE") & 0xFFFFFFFF)
    if counts is not None:
        return np.flatnonzero(counts == np.uint64(mark)).astype(np.uint64)
    found = [
        np.flatnonzero(memmap.column(first, end, "page_type", "<u4") == mark).astype(np.uint64)
        + np.uint64(first)
        for first, end in memmap.runs
    ]
    return np.concatenate(found)


def _pcp_slots(kernel: Kernel, pcp: StructView) -> list[tuple[int, int]]:
    """(order, migratetype) of each list; 44042b449872 (5.14) made one for each pair, of order 0 before."""
    kinds = kernel.types.enum("migratetype")["MIGRATE_PCPTYPES"]
    slots = kernel.types.field(pcp.type.name, "lists").type.count
    movable = kernel.types.enum("migratetype")["MIGRATE_MOVABLE"]
    if not 0 <= movable < kinds <= slots <= _MAX_SLOTS:
        raise BadFormat(f"the types are corrupt: {slots} per-CPU lists for {kinds} migratetypes")
    huge = slots - _PCP_ORDERS * kinds
    if huge < 0:
        return [(0, slot) for slot in range(slots)]
    levels = kernel.space.format.levels
    huge_order = levels[-2].shift - levels[-1].shift
    # One list of huge pages at first; bf14ed81f571 (6.10) gave the movable ones a list of their own.
    huge_slots = [(huge_order, movable)] if huge == 1 else [(huge_order, 0), (huge_order, movable)][:huge]
    return [divmod(slot, kinds) for slot in range(_PCP_ORDERS * kinds)] + huge_slots
