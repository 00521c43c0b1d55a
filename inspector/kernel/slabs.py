"""Slab caches and their slabs (SLUB: mm/slub.c, mm/slab.h), counted as /proc/slabinfo counts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat
from inspector.kernel import bulk, lists
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import flag_bits, flags_path
from inspector.kernel.slab_caches import NO_CACHE, Caches, columns
from inspector.symbols import Kernel
from inspector.units import Pfn, VirtAddr, printable

SLAB = np.dtype(
    [
        ("pfn", np.uint64),
        ("order", np.uint8),
        ("cache", np.uint16),
        ("objects", np.uint16),
        ("inuse", np.uint16),
        ("free", np.uint16),
        ("frozen", np.bool_),
        ("freelist", np.uint64),
    ]
)
"""A slab: 2**order pages from `pfn` on, cut into `objects` objects of slabs()[cache].

`free` objects hang on the slab's own list, whose first is at `freelist`; to the slab those on a CPU's
freelist or in a sheaf are among the `inuse`, and slab_objects tells them apart. `frozen` slabs are a CPU's.
"""

_NEVER_MERGED = 1 << 31  # a negative refcount, without its sign
# Macros of include/linux/slab.h and mm/slub.c before cc61eb851c9a (6.9) made them the enum _slab_flag_bits.
_FLAGS = {
    0x00000100: "CONSISTENCY_CHECKS",
    0x00000400: "RED_ZONE",
    0x00000800: "POISON",
    0x00001000: "KMALLOC",
    0x00002000: "HWCACHE_ALIGN",
    0x00004000: "CACHE_DMA",
    0x00008000: "CACHE_DMA32",
    0x00010000: "STORE_USER",
    0x00020000: "RECLAIM_ACCOUNT",
    0x00040000: "PANIC",
    0x00080000: "TYPESAFE_BY_RCU",
    0x00100000: "MEM_SPREAD",
    0x00200000: "TRACE",
    0x00400000: "DEBUG_OBJECTS",
    0x00800000: "NOLEAKTRACE",
    0x01000000: "NO_MERGE",
    0x02000000: "FAILSLAB",
    0x04000000: "ACCOUNT",
    0x08000000: "KASAN",
    0x20000000: "SKIP_KFENCE",
    0x40000000: "CMPXCHG_DOUBLE",
    0x80000000: "OBJECT_POISON",
}


@dataclass(frozen=True, slots=True)
class SlabCache:
    """A struct kmem_cache. Sizes in bytes: `size` is an object's with padding and debugging data.

    `slabs`, `objects` and `active` are what /proc/slabinfo prints: objects that CPUs keep for themselves
    (their slabs, freelists, sheaves) are active there; slab_objects.allocated_count() leaves them out.
    A cache serves `aliases` more names that were merged into it. `sheaf_capacity` is None before 6.18.
    """

    address: VirtAddr
    name: str
    object_size: int
    size: int
    align: int
    objects_per_slab: int
    order: int
    aliases: int
    flags: int
    flag_names: tuple[str, ...]
    ctor: str | None
    sheaf_capacity: int | None
    slabs: int
    objects: int
    active: int


def slabs(kernel: Kernel) -> list[SlabCache]:
    """Every slab cache, with the counts of /proc/slabinfo (C: get_slabinfo), in its order.

    Since 046f4c69090c (6.10) the kernel estimates `active` where a node has over 10,000 partial slabs; here
    it is always counted. Raises CorruptGuest.
    """
    caches, memmap = Caches(kernel), MemMap(kernel)
    rows, following = _read(kernel, memmap, caches)
    counts = _slabinfo(kernel, caches, memmap, rows, following)
    paths = ("object_size", "align", "refcount", "flags", "ctor", "sheaf_capacity")
    values = dict(zip(paths, (column.tolist() for column in caches.column(*paths)), strict=True))
    sheaves = kernel.types.has("kmem_cache", "sheaf_capacity")
    names = _flag_names(kernel)
    return [
        SlabCache(
            address=VirtAddr(int(caches.addresses[index])),
            name=name,
            object_size=values["object_size"][index],
            size=int(caches.size[index]),
            align=values["align"][index],
            objects_per_slab=int(caches.objects_per_slab[index]),
            order=int(caches.order[index]),
            aliases=max(values["refcount"][index] - 1, 0) if values["refcount"][index] < _NEVER_MERGED else 0,
            flags=values["flags"][index],
            flag_names=tuple(text for bit, text in names.items() if values["flags"][index] & bit),
            ctor=_function(kernel, VirtAddr(values["ctor"][index])),
            sheaf_capacity=values["sheaf_capacity"][index] if sheaves else None,
            slabs=int(counts[0][index]),
            objects=int(counts[1][index]),
            active=int(counts[1][index] - counts[2][index]),
        )
        for index, name in enumerate(caches.names)
    ]


def slab_pages(kernel: Kernel, memmap: MemMap, caches: Caches | None = None) -> NDArray[np.void]:
    """Every slab in memory, by PFN, as SLAB rows: found by its struct page, on a list or not."""
    return _read(kernel, memmap, caches or Caches(kernel))[0]


def slab_owners(
    kernel: Kernel, caches: Caches, structs: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The cache and the order of slabs, a first struct page a row; NO_CACHE and 0 where it is nobody's."""
    cache, order, *_ = _told(kernel, caches, structs)
    return cache, order


def _read(kernel: Kernel, memmap: MemMap, caches: Caches) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """The SLAB rows, and where the list pointer of each points (C: slab->slab_list.next)."""
    pfns = _slab_pfns(kernel, memmap)
    structs = _structs(memmap, pfns)
    cache, order, objects, inuse, freelist = _told(kernel, caches, structs)
    known = cache != NO_CACHE
    rows = np.zeros(len(pfns), SLAB)
    rows["pfn"], rows["cache"], rows["order"] = pfns, cache, order
    for name, values in (("objects", objects), ("inuse", inuse), ("freelist", freelist)):
        rows[name] = np.where(known, values, 0)
    rows["inuse"] = np.minimum(rows["inuse"], rows["objects"])
    rows["free"] = rows["objects"] - rows["inuse"]
    rows["frozen"] = _member(kernel, structs, "frozen").astype(np.bool_) & known
    return rows, _member(kernel, structs, "slab_list.next")


def _told(kernel: Kernel, caches: Caches, structs: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """Of each slab its cache and order; and its objects, inuse and freelist as they stand there."""
    names = ("slab_cache", "objects", "inuse", "freelist")
    address, objects, inuse, freelist = (_member(kernel, structs, name) for name in names)
    cache = caches.index(address)
    listed = np.flatnonzero(cache != NO_CACHE)
    order = np.full(len(cache), -1)
    order[listed] = caches.orders(cache[listed], objects[listed])
    # KFENCE lends its pages to caches (mm/kfence/core.c): one object, never counted in use nor on a list.
    nobodys = (order < 0) | (inuse | freelist == 0)
    cache[nobodys], order[nobodys] = NO_CACHE, 0
    return cache, order, objects, inuse, freelist


def _member(kernel: Kernel, structs: NDArray[np.uint8], path: str) -> NDArray[np.uint64]:
    """One member of slabs, a struct page a row; without sign."""
    field = kernel.types.field(_slab_type(kernel), path)
    if not 0 <= field.offset <= field.offset + field.width <= structs.shape[1]:
        raise BadFormat(f"the types are corrupt: a slab's {path} lies {field.offset} bytes in")
    return bulk.member(structs[:, field.offset :], field).view(np.uint64)


def _slab_type(kernel: Kernel) -> str:
    """The type that describes a slab: d122019bf061 (5.17) split it from struct page, which it overlays."""
    return "slab" if kernel.types.has("slab") else "page"


def _slab_pfns(kernel: Kernel, memmap: MemMap) -> NDArray[np.int64]:
    """The PFN of every slab's first page."""
    return np.concatenate(
        [np.flatnonzero(_marked(kernel, memmap, first, end)) + first for first, end in memmap.runs]
    )


def _structs(memmap: MemMap, pfns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bytes of these struct pages, a row each."""
    parts = []
    for first, end in memmap.runs:
        low, high = np.searchsorted(pfns, (first, end))
        parts.append(memmap.structs(first, end).take(pfns[low:high] - first, axis=0))
    return np.concatenate(parts)


def _marked(kernel: Kernel, memmap: MemMap, first: Pfn, end: Pfn) -> NDArray[np.bool_]:
    """Which pages are the first of a slab: only those carry the mark."""
    mark = kernel.vmcoreinfo.get_number("PAGE_SLAB_MAPCOUNT_VALUE")
    if mark is not None:  # a page type since 46df8e73a4a3 (6.10)
        word = memmap.column(first, end, "page_type", "<u4")
        return np.asarray(word == np.uint32(mark & 0xFFFFFFFF))
    flags = memmap.column(first, end, flags_path(kernel), "<u8")
    return np.asarray(flags & np.uint64(1 << flag_bits(kernel)["slab"]) != 0)


def _slabinfo(
    kernel: Kernel, caches: Caches, memmap: MemMap, rows: NDArray[np.void], following: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Slabs, objects, and objects free on the nodes' partial lists, for each cache."""
    nodes, _ = caches.nodes
    owner, _ = np.nonzero(nodes)
    at = nodes[nodes != 0]
    heads = at + np.uint64(kernel.types.offsetof("kmem_cache_node", "partial"))
    links = memmap.addresses(rows["pfn"]) + np.uint64(kernel.types.offsetof(_slab_type(kernel), "slab_list"))
    partial = lists.follow(links, following, heads) >= 0
    total = len(caches) + 1  # the last is for slabs without a cache
    cache = np.minimum(rows["cache"], total - 1)

    def add(keys: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
        sums = np.zeros(total, np.int64)
        np.add.at(sums, keys, values.astype(np.int64))
        return sums[:-1]

    free = add(cache, np.where(partial, rows["free"], 0))
    if not kernel.types.has("kmem_cache_node", "nr_slabs"):  # CONFIG_SLUB_DEBUG=n: the kernel does not count
        return add(cache, np.ones(len(rows))), add(cache, rows["objects"]), free
    count, objects = columns(kernel, "kmem_cache_node", at, "nr_slabs.counter", "total_objects.counter")
    return add(owner, count), add(owner, objects), free


def _flag_names(kernel: Kernel) -> dict[int, str]:
    """Each flag's bit and its name without SLAB_."""
    if not kernel.types.has("_slab_flag_bits"):
        return _FLAGS
    bits = kernel.types.enum("_slab_flag_bits").items()
    return {1 << bit: name.removeprefix("_SLAB_") for name, bit in bits if name != "_SLAB_FLAGS_LAST_BIT"}


def _function(kernel: Kernel, address: VirtAddr) -> str | None:
    """A function by name, or by address where the symbols lack it; None for NULL."""
    if not address:
        return None
    found = kernel.symbols.lookup(address)
    return printable(found[0].name) if found and not found[1] else f"{address:#x}"
