"""One page frame: all that its struct page says (include/linux/mm_types.h, include/linux/page-flags.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inspector.errors import NoSuchField
from inspector.kernel import buddy, pageblocks
from inspector.kernel.mapcounts import entire_mapcounts, mapcounts
from inspector.kernel.memcg import ChargeKind, charge
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners import Owner, owners
from inspector.kernel.pageflags import PageTypes, flag_bits, flag_names, flags_path
from inspector.kernel.zones import Zone, zones
from inspector.symbols import Kernel, StructView
from inspector.units import Pfn, VirtAddr

_MAPPING_KINDS = {0: "file", 1: "anon", 2: "movable", 3: "ksm"}  # PAGE_MAPPING_FLAGS


@dataclass(frozen=True, slots=True)
class Page:
    """A struct page. `mapcount` counts the user entries that map the page, by itself or in a huge page; it is
    None where the word holds the type of a page that none can map.

    `mapping_kind` says what `mapping` points to: `file` (struct address_space), `anon` (struct anon_vma),
    `ksm`, `movable`. `head` is the first PFN of the compound page or folio that the page belongs to, itself
    where it belongs to none, and `order` that one's size: 2**order pages.

    What else the kernel keeps: the frame's `owner`, and in `owner_label` which one; the `migratetype` of its
    pageblock; how it is charged, and the path of the memory cgroup that pays, empty where none does.
    """

    pfn: Pfn
    address: VirtAddr
    flags: int
    flag_names: tuple[str, ...]
    refcount: int
    mapcount: int | None
    page_type: str | None
    mapping: VirtAddr
    mapping_kind: str | None
    index: int
    private: int
    head: Pfn
    order: int
    zone: str | None
    node: int | None
    migratetype: str | None
    owner: Owner
    owner_label: str
    charge: ChargeKind
    memory_group: str

    @property
    def is_tail(self) -> bool:
        """Whether the page is a compound page's, but not its first."""
        return self.head != self.pfn

    @property
    def compound(self) -> bool:
        """Whether the page belongs to a compound page (a folio of more than one page)."""
        return self.is_tail or self.order > 0


class Owned(Protocol):
    """Who knows the owners of frames: kernel.owners.Owners, or what was kept of them."""

    def of(self, pfn: Pfn) -> tuple[Owner, str]:
        """A frame's owner, and which one."""


def page(kernel: Kernel, pfn: Pfn, found: Owned | None = None) -> Page:
    """Read one frame. Raises NoSuchFrame where the PFN has none.

    `found` knows the owners: worth giving for many pages, as owners() reads all of memory.
    """
    memmap = MemMap(kernel)
    view = memmap.view(pfn)
    owner, label = (found or owners(kernel)).of(pfn)
    flags = view.int(flags_path(kernel))
    bits = flag_bits(kernel)
    head = Pfn(int(memmap.heads(pfn, Pfn(pfn + 1))[0]))
    page_type = PageTypes(kernel).name(view.int("page_type") & 0xFFFFFFFF)
    mapping = view.ptr("mapping")
    # struct slab lies over the word; before 6.10 (46df8e73a4a3) a flag says so, then the type does.
    other = page_type is not None or ("slab" in bits and bool(flags >> bits["slab"] & 1))
    zone = _zone_of(kernel, pfn)
    group, kind = charge(kernel, memmap.view(head))
    return Page(
        pfn=pfn,
        address=view.address,
        flags=flags,
        flag_names=flag_names(kernel, flags, bits, anon=mapping & 3 == 1),
        refcount=view.int("_refcount.counter"),
        mapcount=_mapcount(memmap, pfn, head, owner) if page_type in (None, "hugetlb") else None,
        page_type=page_type,
        mapping=VirtAddr(mapping & ~3),
        mapping_kind=_MAPPING_KINDS[mapping & 3] if mapping and head == pfn and not other else None,
        index=_index(view),
        private=view.int("private"),
        head=head,
        order=_order(kernel, memmap, head, bits),
        zone=zone.name if zone else None,
        node=zone.node if zone else None,
        migratetype=_migratetype(kernel, memmap, pfn),
        owner=owner,
        owner_label=label,
        charge=kind,
        memory_group=group,
    )


def _mapcount(memmap: MemMap, pfn: Pfn, head: Pfn, owner: Owner) -> int:
    pages, heads = np.array([pfn]), np.array([head])
    if owner is Owner.HUGETLB:  # mapped as a whole only
        return int(entire_mapcounts(memmap, heads)[0])
    return int(mapcounts(memmap, pages, heads)[0])


def _migratetype(kernel: Kernel, memmap: MemMap, pfn: Pfn) -> str | None:
    """The name of the pageblock's migratetype."""
    names = buddy.migratetypes(kernel)
    kind = int(pageblocks.migratetypes(kernel, memmap)[pfn >> pageblocks.order(kernel)])
    return names[kind] if kind < len(names) else None


def _index(view: StructView) -> int:
    try:
        return view.int("index")
    except NoSuchField:  # acc53a0b4c15 (6.16): kept for the folio alone
        return view.int("__folio_index")


def _order(kernel: Kernel, memmap: MemMap, head: Pfn, bits: dict[str, int]) -> int:
    view = memmap.view(head)
    if not view.int(flags_path(kernel)) >> bits["head"] & 1:
        buddy = kernel.vmcoreinfo.number("PAGE_BUDDY_MAPCOUNT_VALUE") & 0xFFFFFFFF
        return view.int("private") if view.int("page_type") & 0xFFFFFFFF == buddy else 0
    return compound_order(memmap.kernel, view.address, memmap.struct_size)


def compound_order(kernel: Kernel, head: VirtAddr, struct_size: int) -> int:
    """The order of a compound page, kept in its first tail page."""
    tail = kernel.view("page", VirtAddr(head + struct_size))
    if tail.has("compound_order"):  # before 6.4
        return tail.int("compound_order")
    folio = kernel.view("folio", head)
    if folio.has("_folio_order"):
        return folio.int("_folio_order")
    return folio.int("_flags_1") & 0xFF  # ebc1baf5c9b4 (6.6): the low byte of the tail's flags


def _zone_of(kernel: Kernel, pfn: Pfn) -> Zone | None:
    return next((zone for zone in zones(kernel) if zone.start_pfn <= pfn < zone.end_pfn), None)
