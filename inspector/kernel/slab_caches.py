"""The list of slab caches (SLUB: mm/slub.c, mm/slab_common.c), as columns."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.kernel import bulk, lists
from inspector.kernel.recall import recall
from inspector.symbols import Kernel
from inspector.units import VirtAddr, printable

NO_CACHE = 0xFFFF
"""The cache of a slab page that no listed cache owns, such as KFENCE's: it has no objects here."""

_MAX_CACHES = 1 << 14
_MAX_NODES = 1 << 10  # CONFIG_NODES_SHIFT is 10 at most
_MAX_WORDS = 8  # for each node
_NAME = 64
# mm/slub.c: struct kmem_cache_order_objects has an order above, a number of objects below.
_OO_SHIFT, _OO_MASK = np.uint64(16), np.uint64((1 << 16) - 1)
_MAX_ORDER = 20


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
