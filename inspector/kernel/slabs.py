"""Slab caches and their slabs (SLUB: mm/slub.c, mm/slab.h), counted as /proc/slabinfo counts them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.kernel import bulk, lists
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import flag_bits, flags_path
from inspector.kernel.recall import recall
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

NO_CACHE = 0xFFFF
"""The cache of a slab page that no listed cache owns, such as KFENCE's: it has no objects here."""

_MAX_CACHES = 1 << 14
_MAX_NODES = 1 << 10  # CONFIG_NODES_SHIFT is 10 at most
_MAX_WORDS = 8  # for each node
_NAME = 64
# mm/slub.c: struct kmem_cache_order_objects has an order above, a number of objects below.
_OO_SHIFT, _OO_MASK = np.uint64(16), np.uint64((1 << 16) - 1)
_MAX_ORDER = 20
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


def columns(
    kernel: Kernel, type_name: str, addresses: NDArray[np.uint64], *paths: str
) -> list[NDArray[np.uint64]]:
    """Members of many structs at once, a column each, without sign; those of a NULL address are 0.

    Raises NoSuchField, and CorruptGuest where an address other than NULL is not mapped.
    """
    there = addresses != 0
    found = [np.zeros(len(addresses), np.uint64) for _ in paths]
    for column, values in zip(found, bulk.columns(kernel, type_name, addresses[there], *paths), strict=True):
        column[there] = values.view(np.uint64)
    return found


def member(
    raw: NDArray[np.uint8], offset: int, kernel: Kernel, type_name: str, path: str
) -> NDArray[np.uint64]:
    """One member out of structs' bytes, a struct a row, where it lies `offset` bytes in; without sign."""
    field = kernel.types.field(type_name, path)
    size = field.width
    if not 0 <= offset <= raw.shape[1] - size:
        raise BadFormat(f"the types are corrupt: {type_name}.{path} lies {offset} bytes in")
    values = raw[:, offset : offset + size].view(f"<u{size}")[:, 0].astype(np.uint64)
    if field.bit_size:
        values = values >> np.uint64(field.bit_shift) & np.uint64((1 << field.bit_size) - 1)
    return values


class Caches:
    """Every listed struct kmem_cache as columns, in the list's order: /proc/slabinfo's (C: slab_caches).

    Read it anew for each question. Raises NoSuchField for a kernel with another allocator (SLAB, SLOB).
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.addresses: NDArray[np.uint64]
        self.size: NDArray[np.uint64]
        self.names: list[str]
        self._oo: NDArray[np.uint64]
        self._min: NDArray[np.uint64]
        self.addresses, self.size, self._oo, self._min, self.names, self._by_address = recall(kernel, _listed)
        self._sorted = self.addresses.take(self._by_address)

    def __len__(self) -> int:
        return len(self.addresses)

    def column(self, *paths: str) -> list[NDArray[np.uint64]]:
        """Members of struct kmem_cache; zeros where this kernel has none of that name."""
        has = self.kernel.types.has
        return [
            columns(self.kernel, "kmem_cache", self.addresses, path)[0]
            if has("kmem_cache", path)
            else np.zeros(len(self), np.uint64)
            for path in paths
        ]

    def index(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """Which cache is at each address; NO_CACHE where none is."""
        at = np.minimum(self._sorted.searchsorted(addresses), len(self) - 1)
        return np.where(self._sorted.take(at) == addresses, self._by_address.take(at), np.uint16(NO_CACHE))

    def orders(self, cache: NDArray[np.uint16], objects: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The order of a slab with so many objects; -1 where its cache makes no such slab.

        A cache has two sizes of slab: the usual, and the least when memory is short (C: oo, min).
        """
        orders = np.full(len(cache), -1)
        for kinds in (self._min, self._oo):
            kind = kinds.take(cache)
            np.copyto(orders, (kind >> _OO_SHIFT).view(np.int64), where=kind & _OO_MASK == objects)
        return orders

    @cached_property
    def objects_per_slab(self) -> NDArray[np.uint64]:
        """Objects in a new slab (C: oo_objects)."""
        return self._oo & _OO_MASK

    @cached_property
    def order(self) -> NDArray[np.uint64]:
        """The order of a new slab (C: oo_order)."""
        return self._oo >> _OO_SHIFT

    @cached_property
    def nodes(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Addresses of each cache's (row) struct kmem_cache_node and node_barn for each node (column)."""
        types = self.kernel.types
        # 5ba6bc27b1f9 (7.1) has the barn beside the node; 2d517aa09bbc (6.18) brought it, inside the node.
        paired = types.has("kmem_cache", "per_node")
        table = types.field("kmem_cache", "per_node" if paired else "node")
        words = table.type.size // max(table.type.count, 1) // self.kernel.pointer_size
        if not 0 < words <= _MAX_WORDS:
            raise BadFormat(f"the types are corrupt: a cache has {words} words for each node")
        at, count = self.addresses + np.uint64(table.offset), self._node_count()
        raw, ok = self.kernel.space.gather(at, np.dtype(np.uint64), count * words)
        if not ok.all():
            raise CorruptGuest("a struct kmem_cache lies in memory that is not mapped")
        raw = raw.reshape(len(self), count, words)
        if paired:
            pair = "kmem_cache_per_node_ptrs"
            node, barn = (types.offsetof(pair, name) // self.kernel.pointer_size for name in ("node", "barn"))
            return raw[:, :, node], raw[:, :, barn]
        nodes = raw[:, :, 0]
        if not types.has("kmem_cache_node", "barn"):
            return nodes, np.zeros_like(nodes)
        (barns,) = columns(self.kernel, "kmem_cache_node", nodes.reshape(-1), "barn")
        return nodes, barns.reshape(nodes.shape)

    def _node_count(self) -> int:
        if "nr_node_ids" not in self.kernel.symbols:  # a kernel without NUMA
            return 1
        count = self.kernel.space.u32(self.kernel.symbol("nr_node_ids"))
        if not 0 < count <= _MAX_NODES:
            raise CorruptGuest(f"the kernel cannot have {count} nodes (nr_node_ids)")
        return count


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


def _listed(kernel: Kernel) -> tuple[Any, ...]:
    """The caches' addresses, their size, oo and min, and their names; which they are in order of address."""
    link = kernel.types.offsetof("kmem_cache", "list")
    found = lists.nodes(kernel, kernel.symbol("slab_caches"), _MAX_CACHES)
    addresses = np.array([at - link for at in found], np.uint64)
    if not len(addresses):
        raise CorruptGuest("the list of slab caches is empty")
    size, oo, least, at = columns(kernel, "kmem_cache", addresses, "size", "oo.x", "min.x", "name")
    texts, ok = kernel.space.gather(at, np.dtype(np.uint8), _NAME)
    whole = ok & (texts == 0).any(axis=1)
    names = [
        printable(
            row.tobytes().split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
            if good
            else kernel.space.cstring(VirtAddr(int(pointer)))
        )
        for row, good, pointer in zip(texts, whole, at, strict=True)
    ]
    for kind in (oo, least):
        room = np.uint64(kernel.space.format.page_size) << np.minimum(kind >> _OO_SHIFT, _MAX_ORDER + 1)
        fits = (kind >> _OO_SHIFT <= _MAX_ORDER) & ((kind & _OO_MASK) * size <= room)
        lost = np.flatnonzero(~fits | (size == 0) | (kind & _OO_MASK == 0))
        if lost.size:
            raise CorruptGuest(
                f"the slab cache at {int(addresses[lost[0]]):#x} has slabs that its objects do not fit in"
            )
    return addresses, size, oo, least, names, np.argsort(addresses).astype(np.uint16)


def slab_pages(
    kernel: Kernel,
    memmap: MemMap,
    caches: Caches | None = None,
    pfns: NDArray[np.int64] | None = None,
    structs: NDArray[np.uint8] | None = None,
) -> NDArray[np.void]:
    """Every slab in memory, by PFN, as SLAB rows: found by its struct page, on a list or not.

    `pfns` are slabs' first pages, and `structs` the bytes of these, where they have been read.
    """
    return _read(kernel, memmap, caches or Caches(kernel), pfns, structs)[0]


def _read(
    kernel: Kernel,
    memmap: MemMap,
    caches: Caches,
    pfns: NDArray[np.int64] | None = None,
    structs: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """The SLAB rows, and where the list pointer of each points (C: slab->slab_list.next)."""
    pfns = _slab_pfns(kernel, memmap) if pfns is None else pfns
    raw = _structs(memmap, pfns) if structs is None else structs
    kind = _slab_type(kernel)

    def column(path: str) -> NDArray[np.uint64]:
        return member(raw, kernel.types.offsetof(kind, path), kernel, kind, path)

    objects, inuse, freelist = column("objects"), column("inuse"), column("freelist")
    cache = caches.index(column("slab_cache"))
    listed = np.flatnonzero(cache != NO_CACHE)
    orders = np.zeros(len(pfns), np.int64)
    orders[listed] = caches.orders(cache[listed], objects[listed])
    # KFENCE lends its pages to caches (mm/kfence/core.c): one object, never counted in use nor on a list.
    lent = (inuse == 0) & (freelist == 0)
    cache[(orders < 0) | lent] = NO_CACHE
    known = cache != NO_CACHE
    rows = np.zeros(len(pfns), SLAB)
    rows["pfn"] = pfns
    rows["cache"] = cache
    for name, values in (("order", orders), ("objects", objects), ("inuse", inuse), ("freelist", freelist)):
        rows[name] = np.where(known, values, 0)
    rows["inuse"] = np.minimum(rows["inuse"], rows["objects"])
    rows["free"] = rows["objects"] - rows["inuse"]
    rows["frozen"] = column("frozen").astype(np.bool_) & known
    return rows, column("slab_list.next")


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
