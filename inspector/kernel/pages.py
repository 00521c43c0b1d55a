"""One page frame: all that its struct page says (include/linux/mm_types.h, include/linux/page-flags.h)."""

from __future__ import annotations

from dataclasses import dataclass

from inspector.errors import BadFormat, NoSuchField
from inspector.kernel.memmap import MemMap
from inspector.kernel.zones import Zone, zones
from inspector.symbols import Kernel, StructView
from inspector.symbols.types import Enumerators
from inspector.units import Pfn, VirtAddr

_MAPPING_KINDS = {0: "file", 1: "anon", 2: "movable", 3: "ksm"}  # PAGE_MAPPING_FLAGS
_WORD = 64  # bits of a struct page's flags
_TYPED = 0x80000000  # a page_type's top bit: the word is a type, not a mapcount


@dataclass(frozen=True, slots=True)
class Page:
    """A struct page. `mapcount` counts user entries for this very page; None where the word holds a type.

    `mapping_kind` says what `mapping` points to: `file` (struct address_space), `anon` (struct anon_vma),
    `ksm`, `movable`. `head` is the first PFN of the compound page or folio that the page belongs to, itself
    where it belongs to none, and `order` that one's size: 2**order pages.
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

    @property
    def is_tail(self) -> bool:
        """Whether the page is a compound page's, but not its first."""
        return self.head != self.pfn

    @property
    def compound(self) -> bool:
        """Whether the page belongs to a compound page (a folio of more than one page)."""
        return self.is_tail or self.order > 0


def flag_bits(kernel: Kernel) -> dict[str, int]:
    """The bit of each page flag, PG_ left out; of several names for one bit the first (C: enum pageflags)."""
    bits: dict[int, str] = {}
    for name, bit in kernel.types.enum("pageflags").items():
        if name.startswith("PG_"):
            bits.setdefault(bit, name.removeprefix("PG_"))
    count = kernel.types.enum("pageflags")["__NR_PAGEFLAGS"]
    if count > _WORD:
        raise BadFormat(f"the types are corrupt: there are {count} page flags")
    return Enumerators({name: bit for bit, name in bits.items() if 0 <= bit < count})


def flags_path(kernel: Kernel) -> str:
    """The member with a struct page's flags: a memdesc_flags_t since 53fbef56e07d (6.18), before a word."""
    return "flags.f" if kernel.types.has("page", "flags.f") else "flags"


def page(kernel: Kernel, pfn: Pfn) -> Page:
    """Read one struct page. Raises NoSuchFrame where the PFN has none."""
    memmap = MemMap(kernel)
    view = memmap.view(pfn)
    flags = view.int(flags_path(kernel))
    bits = flag_bits(kernel)
    head = Pfn(int(memmap.heads(pfn, Pfn(pfn + 1))[0]))
    word = view.int("page_type") & 0xFFFFFFFF
    typed = _is_typed(word)
    mapping = view.ptr("mapping")
    # struct slab lies over the word; before 6.10 (46df8e73a4a3) a flag says so, then the type does.
    other = typed or ("slab" in bits and bool(flags >> bits["slab"] & 1))
    zone = _zone_of(kernel, pfn)
    return Page(
        pfn=pfn,
        address=view.address,
        flags=flags,
        flag_names=_flag_names(kernel, flags, bits, anon=mapping & 3 == 1),
        refcount=view.int("_refcount.counter"),
        mapcount=None if typed else view.int("_mapcount.counter") + 1,
        page_type=_type_name(kernel, word) if typed else None,
        mapping=VirtAddr(mapping & ~3),
        mapping_kind=_MAPPING_KINDS[mapping & 3] if mapping and head == pfn and not other else None,
        index=_index(view),
        private=view.int("private"),
        head=head,
        order=_order(kernel, memmap, head, bits),
        zone=zone.name if zone else None,
        node=zone.node if zone else None,
    )


def _flag_names(kernel: Kernel, flags: int, bits: dict[str, int], *, anon: bool) -> tuple[str, ...]:
    """The names of the bits that are set; some bits mean another thing on pages of some kinds."""
    names = [name for name, bit in bits.items() if flags >> bit & 1]
    aliases = {"PG_swapcache": "swapbacked" in names, "PG_anon_exclusive": anon}  # the latter since 5.19
    known = kernel.types.enum("pageflags")
    meant = {
        known[alias]: alias.removeprefix("PG_") for alias, so in aliases.items() if so and alias in known
    }
    return tuple(meant.get(bits[name], name) for name in names)


def _is_typed(word: int) -> bool:
    # A mapcount of none is -1; a type has its top bits set too, but not all of them.
    return bool(word & _TYPED) and word != 0xFFFFFFFF


def _type_name(kernel: Kernel, word: int) -> str:
    if kernel.types.has("pagetype"):  # 4ffca5a96678 (6.12): the top byte is the type, an enum
        for name, value in kernel.types.enum("pagetype").items():
            if value == word >> 24:
                return name.removeprefix("PGTY_")
    for name in ("BUDDY", "OFFLINE"):
        number = kernel.vmcoreinfo.numbers.get(f"PAGE_{name}_MAPCOUNT_VALUE")
        if number is not None and number & 0xFFFFFFFF == word:
            return name.lower()
    for name, bit in cleared_types(kernel).items():
        if not word & bit:
            return name
    return f"{word:#x}"


def cleared_types(kernel: Kernel) -> dict[str, int]:
    """Before 6.12 (4ffca5a96678): the bits that are clear in a page_type (include/linux/page-flags.h).

    Up to 5.10 a page charged to a memory cgroup for the kernel had one too (18b2db3b0385, 5.11).
    """
    if kernel.types.has("page", "mem_cgroup"):
        return {"table": 0x400, "guard": 0x800, "kmemcg": 0x200}
    return {"table": 0x200, "guard": 0x400}


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
