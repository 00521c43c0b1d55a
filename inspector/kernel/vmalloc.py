"""The vmalloc region: who has which part of it (mm/vmalloc.c, include/linux/vmalloc.h; /proc/vmallocinfo)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel import ksyms
from inspector.kernel.bulk import columns, mapped_frames, spread, tree_nodes, words
from inspector.kernel.memmap import MemMap
from inspector.kernel.modules import modules
from inspector.kernel.recall import recall
from inspector.kernel.zones import zones
from inspector.symbols import Kernel
from inspector.units import PhysAddr, VirtAddr

AREA = np.dtype(
    [
        ("start", np.uint64),  # of the struct vmap_area
        ("end", np.uint64),  # exclusive
        ("vm", np.uint64),  # the struct vm_struct; 0 where it has none
        ("kind", np.uint8),  # Kind
        ("size", np.uint64),  # bytes, the guard page included
        ("flags", np.uint64),  # VM_*
        ("nr_pages", np.uint64),
        ("pages", np.uint64),  # the array of struct page pointers
        ("phys", np.uint64),  # what ioremap() maps
        ("caller", np.uint64),  # return address of whoever asked for it
    ]
)
"""One area of the region, by address."""

AREA_PAGE = np.dtype([("pfn", np.uint64), ("index", np.uint32)])
"""A page that the area of that index keeps in its array of pages."""

# include/linux/vmalloc.h: macros. The names are those of /proc/vmallocinfo; the rest it does not print.
VM_FLAGS = {
    "ioremap": 0x1, "sparse": 0x1000, "vmalloc": 0x2, "vmap": 0x4, "user": 0x8, "dma-coherent": 0x10,
    "uninitialized": 0x20, "no-guard": 0x40, "kasan": 0x80, "flush-reset-perms": 0x100, "put-pages": 0x200,
    "allow-huge": 0x400,
}  # fmt: skip
PRINTED = ("ioremap", "sparse", "vmalloc", "vmap", "user", "dma-coherent")

BUSY, RAM, UNPURGED, LEAVING = range(4)
"""An area's kind: in use; vm_map_ram()'s; freed, its translations not yet flushed; being torn down."""

_VMAP_RAM = 1  # mm/vmalloc.c, since 869176a09606 (6.3)
_MAX_AREAS = 1 << 20
_MAX_NODES = 128  # vmap_init_nodes()
_MAX_PAGES = 1 << 25  # of all areas: 128 GiB
_TERABYTES = {4: 32, 5: 12800}  # VMALLOC_SIZE_TB_L4, _L5, by paging levels


@dataclass(frozen=True, slots=True)
class VmallocArea:
    """A line of /proc/vmallocinfo. `size` is in bytes, with the guard page.

    `caller` is who asked for it, as %pS prints it; empty where nobody is noted. `phys` is None but for
    ioremap(), `nodes` counts its pages by NUMA node. `kind` is BUSY, RAM, UNPURGED or LEAVING; only a busy
    area has more than an address and a size.
    """

    start: VirtAddr
    end: VirtAddr
    size: int
    kind: int
    caller: str
    pages: int
    phys: PhysAddr | None
    flags: tuple[str, ...]
    pages_in_vmalloc: bool
    nodes: dict[int, int]

    def __str__(self) -> str:
        words = [f"{self.start:#018x}-{self.end:#018x} {self.size:7}"]
        if self.kind != BUSY:
            return " ".join([*words, ("", "vm_map_ram", "unpurged vm_area", "leaving")[self.kind]])
        words += [self.caller] if self.caller else []
        words += [f"pages={self.pages}"] if self.pages else []
        words += [f"phys={self.phys:#018x}"] if self.phys else []
        words += [name for name in PRINTED if name in self.flags]
        words += ["vpages"] if self.pages_in_vmalloc else []
        words += [f"N{node}={count}" for node, count in sorted(self.nodes.items())]
        return " ".join(words)


def area_table(kernel: Kernel) -> NDArray[np.void]:
    """Every area as an AREA row, by address. Raises CorruptGuest where the trees run in loops."""
    busy, lazy = _roots(kernel)
    parts = [_rows(kernel, _areas(kernel, busy), lazy=False), _rows(kernel, _areas(kernel, lazy), lazy=True)]
    if (first := _old_purge_list(kernel)) is not None:
        parts.append(_rows(kernel, first, lazy=True))
    rows = np.concatenate(parts)
    return rows[np.argsort(rows["start"], kind="stable")]


def busy_areas(kernel: Kernel) -> NDArray[np.void]:
    """The areas in use alone, as AREA rows by address. Raises CorruptGuest as area_table() does."""
    rows = _rows(kernel, recall(kernel, _in_use), lazy=False)
    busy = np.flatnonzero(rows["kind"] == BUSY)
    return rows[busy[np.argsort(rows["start"][busy], kind="stable")]]


def areas(kernel: Kernel, rows: NDArray[np.void] | None = None) -> list[VmallocArea]:
    """Every area with its caller's name and where its pages are, by address. Raises CorruptGuest."""
    rows = area_table(kernel) if rows is None else rows
    callers = ksyms.symbolise(kernel, (int(each) for each in rows["caller"] if each), modules(kernel))
    nodes = _nodes(kernel, rows)
    low, high = kernel.vmalloc_base, vmalloc_end(kernel)
    return [
        VmallocArea(
            start=VirtAddr(row["start"]),
            end=VirtAddr(row["end"]),
            size=row["size"],
            kind=row["kind"],
            caller=callers.get(row["caller"], ""),
            pages=row["nr_pages"],
            phys=PhysAddr(row["phys"]) if row["phys"] else None,
            flags=flag_names(row["flags"]),
            pages_in_vmalloc=low <= row["pages"] < high,
            nodes=nodes.get(index, {}),
        )
        for index, row in enumerate(dict(zip(AREA.names or (), each, strict=True)) for each in rows.tolist())
    ]


def flag_names(flags: int) -> tuple[str, ...]:
    """The VM_* flags that are set, as /proc/vmallocinfo calls them where it prints them."""
    return tuple(name for name, bit in VM_FLAGS.items() if flags & bit)


def area_frames(kernel: Kernel, rows: NDArray[np.void]) -> NDArray[np.void]:
    """The frames that the page tables map in the areas, as bulk.RANGE_FRAME rows; `index` is the row's.

    Device memory behind an ioremap() is there too: its frames may have no struct page.
    """
    return mapped_frames(kernel, rows["start"], rows["end"])


def area_pages(kernel: Kernel, rows: NDArray[np.void]) -> NDArray[np.void]:
    """The pages that the areas' own arrays name (C: vm_struct.pages) as AREA_PAGE. Raises CorruptGuest."""
    wanted = np.where(rows["pages"] != 0, rows["nr_pages"], np.uint64(0))
    memmap = MemMap(kernel)
    room = (rows["end"] - rows["start"]) // np.uint64(memmap.page_size)
    if (wanted > room).any() or wanted.sum() > _MAX_PAGES:
        raise CorruptGuest(f"a vmalloc area claims {int(wanted.max())} pages")
    counts = wanted.astype(np.int64)
    at = spread(rows["pages"], counts, kernel.pointer_size)
    found = np.empty(len(at), AREA_PAGE)
    pointers = words(kernel, at, "a vmalloc area's array of pages")
    found["pfn"] = (pointers - np.uint64(memmap.base)) // np.uint64(memmap.struct_size)
    found["index"] = np.repeat(np.arange(len(rows), dtype=np.uint32), counts)
    return found


def vmalloc_end(kernel: Kernel) -> int:
    """One past the region's last byte (C: VMALLOC_END + 1)."""
    return kernel.vmalloc_base + (_TERABYTES[len(kernel.space.format.levels)] << 40)


def _roots(kernel: Kernel) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The struct rb_roots of areas in use, and of freed ones that wait to be purged."""
    if "vmap_nodes" in kernel.symbols:  # d093602919ad (6.9): a tree a node, in place of one for all
        first, count = kernel.word("vmap_nodes"), kernel.space.u32(kernel.symbol("nr_vmap_nodes"))
        if not 0 < count <= _MAX_NODES:
            raise CorruptGuest(f"vmalloc has {count} nodes")
        size = kernel.types.sizeof("vmap_node")
        at = np.uint64(first) + np.arange(count, dtype=np.uint64) * np.uint64(size)
        busy, lazy = (
            at + np.uint64(kernel.types.offsetof("vmap_node", f"{name}.root")) for name in ("busy", "lazy")
        )
        return busy, lazy
    # 96e2db456135 (5.12) made the list of freed areas a tree.
    lazy_names = [name for name in ("purge_vmap_area_root",) if name in kernel.symbols]
    return (
        np.array([kernel.symbol("vmap_area_root")], np.uint64),
        np.array([kernel.symbol(name) for name in lazy_names], np.uint64),
    )


def _in_use(kernel: Kernel) -> NDArray[np.uint64]:
    return _areas(kernel, _roots(kernel)[0])


def _areas(kernel: Kernel, roots: NDArray[np.uint64]) -> NDArray[np.uint64]:
    nodes = tree_nodes(kernel, roots, _MAX_AREAS)
    return nodes - np.uint64(kernel.types.offsetof("vmap_area", "rb_node"))


def _old_purge_list(kernel: Kernel) -> NDArray[np.uint64] | None:
    """The freed areas that 5.11 and before keep on a list without locks; None where there is none."""
    if "vmap_purge_list" not in kernel.symbols:
        return None
    offset = kernel.types.offsetof("vmap_area", "purge_list")
    found: dict[int, None] = {}
    node = kernel.word("vmap_purge_list")
    while node:
        if node in found or len(found) > _MAX_AREAS:
            raise CorruptGuest(f"the list of freed vmalloc areas runs in a loop at {node:#x}")
        found[node] = None
        node = kernel.space.pointer(VirtAddr(node))
    return np.array([each - offset for each in found], np.uint64)


def _rows(kernel: Kernel, areas_at: NDArray[np.uint64], lazy: bool) -> NDArray[np.void]:
    rows = np.zeros(len(areas_at), AREA)
    if not len(rows):
        return rows
    paths = ["va_start", "va_end", "vm"] + ["flags"] * kernel.types.has("vmap_area", "flags")
    rows["start"], rows["end"], vm, *flags = columns(kernel, "vmap_area", areas_at, *paths)
    rows["size"] = rows["end"] - rows["start"]
    if lazy:
        rows["kind"] = UNPURGED
        return rows
    rows["vm"] = vm
    ram = flags[0] & np.uint64(_VMAP_RAM) != 0 if flags else np.ones(len(rows), np.bool_)
    rows["kind"] = np.where(vm != 0, BUSY, np.where(ram, RAM, LEAVING))
    busy = vm != 0
    names = ("size", "flags", "nr_pages", "pages", "phys_addr", "caller")
    found = columns(kernel, "vm_struct", vm[busy], *names)
    for name, values in zip(names, found, strict=True):
        rows[name.removesuffix("_addr")][busy] = values
    return rows


def _nodes(kernel: Kernel, rows: NDArray[np.void]) -> dict[int, dict[int, int]]:
    """Pages by NUMA node for each row that has pages."""
    pages = area_pages(kernel, rows)
    spans = sorted((zone.start_pfn, zone.node) for zone in zones(kernel) if zone.populated)
    if not spans:
        return {}
    place = np.searchsorted(np.array([start for start, _ in spans], np.uint64), pages["pfn"], "right") - 1
    node = np.array([node for _, node in spans])[np.maximum(place, 0)]
    found: dict[int, dict[int, int]] = {}
    keys, counts = np.unique(np.stack([pages["index"], node]), axis=1, return_counts=True)
    for (index, number), count in zip(keys.T.tolist(), counts.tolist(), strict=True):
        found.setdefault(index, {})[number] = count
    return found


def area_at(rows: NDArray[np.void], address: VirtAddr) -> int | None:
    """The index of the AREA row that holds an address; None in a gap."""
    place = int(np.searchsorted(rows["start"], np.uint64(address), "right")) - 1
    return place if place >= 0 and address < int(rows["end"][place]) else None
