"""The objects in slabs: which are allocated, and where the free ones wait (SLUB: mm/slub.c).

A free object hangs on its slab's freelist, on the freelist of the CPU that allocates from the slab, or since
6.18 stands in a sheaf: an array of objects that a CPU or a node's barn keeps. All freelists are followed at
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest, UsageError
from inspector.kernel.bulk import spread
from inspector.kernel.memmap import MemMap
from inspector.kernel.slab_caches import NO_CACHE, Caches, columns
from inspector.kernel.slabs import SlabCache, slab_pages
from inspector.symbols import Kernel
from inspector.units import VirtAddr


class ObjectState(IntEnum):
    """Whether an object is allocated, and if not, where it waits."""

    ALLOCATED = 0
    FREE = 1  # on its slab's freelist
    CPU = 2  # free, on a CPU's freelist
    SHEAF = 3  # free, in a sheaf of a CPU or a barn
    RCU = 4  # freed by kfree_rcu(), in a CPU's sheaf until a grace period ends: still counted as allocated


OBJECT = np.dtype(
    [("address", np.uint64), ("cache", np.uint16), ("state", np.uint8), ("allocated", np.bool_)]
)
"""An object of slabs()[cache], in the direct map; `state` is an ObjectState."""

_MAX_SHEAVES = 64  # in one barn; MAX_FULL_SHEAVES is 10
_MAX_SHEAF = 1 << 14  # objects in one sheaf


@dataclass(frozen=True, slots=True)
class SlabObject:
    """One object. `index` counts within its slab, `offset` is how many bytes in the address asked for lies.

    The offset is negative in the padding before an object, and at `cache.object_size` or above behind it.
    """

    cache: str
    address: VirtAddr
    index: int
    offset: int
    state: ObjectState

    @property
    def allocated(self) -> bool:
        """Whether the kernel holds the object."""
        return self.state in (ObjectState.ALLOCATED, ObjectState.RCU)


def objects(kernel: Kernel, cache: SlabCache | None = None) -> NDArray[np.void]:
    """Every object of a cache, or of all caches, as OBJECT rows in the order of their addresses.

    A CPU that was stopped inside the allocator may leave a freelist in between: what cannot be reached counts
    as allocated. Raises CorruptGuest where more freelists than CPUs loop, end early or leave their slab, and
    UsageError where the cache is gone.
    """
    slabs = _Slabs(kernel)
    if cache is not None:
        index = int(slabs.caches.index(np.array([cache.address], np.uint64))[0])
        if index == NO_CACHE:
            raise UsageError(f"there is no slab cache {cache.name!r} at {cache.address:#x}; it was destroyed")
        slabs.choose(slabs.rows["cache"] == index)
    return slabs.objects()


def object_at(kernel: Kernel, address: VirtAddr) -> SlabObject | None:
    """The object that an address of the direct map lies in or beside; None where no slab's object is."""
    slabs = _Slabs(kernel)
    row, index = slabs.find(np.array([address], np.uint64))
    if row[0] < 0:
        return None
    slabs.choose(np.arange(len(slabs.rows)) == row[0])
    found = slabs.objects()[index[0]]
    return SlabObject(
        cache=slabs.caches.names[found["cache"]],
        address=VirtAddr(int(found["address"])),
        index=int(index[0]),
        offset=address - int(found["address"]),
        state=ObjectState(found["state"]),
    )


def allocated_count(kernel: Kernel) -> NDArray[np.int64]:
    """How many objects of each cache, in the order of slabs(), the kernel holds.

    Exact, where /proc/slabinfo counts what CPUs keep for themselves as active. Raises CorruptGuest.
    """
    slabs = _Slabs(kernel)
    count = len(slabs.caches)
    total = np.bincount(slabs.rows["cache"], slabs.rows["inuse"], count).astype(np.int64)
    row, _, broken = slabs.follow(*slabs.cpu_freelists())
    slabs.check(broken)
    total -= np.bincount(slabs.rows["cache"][row], minlength=count)
    for sheaves, waits in slabs.sheaves():
        if not waits:
            total -= np.bincount(sheaves.cache, sheaves.size, count).astype(np.int64)
    return total


@dataclass(frozen=True, slots=True)
class _Sheaves:
    """Sheaves as columns: whose they are, where, and how many objects they hold."""

    cache: NDArray[np.intp]
    address: NDArray[np.uint64]
    size: NDArray[np.int64]


class _Slabs:
    """All slabs of the listed caches, by PFN, and how to get at their objects."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memmap = MemMap(kernel)
        self.caches = Caches(kernel)
        rows = slab_pages(kernel, self.memmap, self.caches)
        self.page_size = np.uint64(self.memmap.page_size)
        self.direct_map = np.uint64(kernel.page_offset)
        self.offset, self.random, self.pad = self.caches.column("offset", "random", "red_left_pad")
        self.hardened = kernel.types.has("kmem_cache", "random")  # CONFIG_SLAB_FREELIST_HARDENED
        self.rows = rows
        self.choose(rows["cache"] != NO_CACHE)

    def choose(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the slabs."""
        self.rows = self.rows[which]
        self.base = self.rows["pfn"] * self.page_size + self.direct_map
        self.first = self.base + self.pad[self.rows["cache"]]
        counts = self.rows["objects"].astype(np.int64)
        self.start = np.cumsum(counts) - counts

    def objects(self) -> NDArray[np.void]:
        """The chosen slabs' objects, as OBJECT rows."""
        counts = self.rows["objects"].astype(np.int64)
        states = np.zeros(counts.sum(), np.uint8)
        own = np.flatnonzero(self.rows["freelist"])
        row, index, broken = self.follow(own, self.rows["freelist"][own])
        states[self.start[row] + index] = ObjectState.FREE
        reached = np.bincount(row, minlength=len(self.rows))
        broken[reached[own] != self.rows["free"][own]] = True
        row, index, broken_too = self.follow(*self.cpu_freelists())
        states[self.start[row] + index] = ObjectState.CPU
        self.check(np.concatenate((broken, broken_too)))
        for sheaves, waits in self.sheaves():
            row, index = self.find(self._contents(sheaves))
            inside = row >= 0  # of another cache's slabs than those chosen
            states[self.start[row[inside]] + index[inside]] = ObjectState.RCU if waits else ObjectState.SHEAF
        size = self.caches.size[self.rows["cache"]]
        inside_slab = np.arange(len(states)) - np.repeat(self.start, counts)
        found = np.empty(len(states), OBJECT)
        found["address"] = np.repeat(self.first, counts) + inside_slab.astype(np.uint64) * np.repeat(
            size, counts
        )
        found["cache"] = np.repeat(self.rows["cache"], counts)
        found["state"] = states
        found["allocated"] = (states == ObjectState.ALLOCATED) | (states == ObjectState.RCU)
        return found

    def find(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Of each address the slab's row, -1 where it is in none of them, and the object's index."""
        row = np.searchsorted(self.base, addresses, "right") - 1
        if not len(self.rows):
            return row, row
        size = self.caches.size[self.rows["cache"][row]]
        index = ((addresses - self.base[row]) // size).astype(np.int64)
        outside = (row < 0) | (index < 0) | (index >= self.rows["objects"][row])
        return np.where(outside, -1, row), np.where(outside, 0, index)

    def follow(
        self, row: NDArray[np.intp], at: NDArray[np.uint64]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.bool_]]:
        """Follow one freelist in each given slab, from its first object on.

        Gives the slab row and the index of every object on them, and which lists break: a pointer that leaves
        the slab's objects, or a loop. All pointers are read, then each round doubles how far it sees.
        """
        cache = self.rows["cache"][row]
        counts = self.rows["objects"][row].astype(np.int64)
        start, total = np.cumsum(counts) - counts, int(counts.sum())
        each = np.repeat(np.arange(len(row)), counts)
        index = np.arange(total) - start[each]
        first, size = self.first[row], self.caches.size[cache]
        place = first[each] + index.astype(np.uint64) * size[each] + self.offset[cache][each]
        value, ok = self.kernel.memory.gather(place - self.direct_map, np.dtype(np.uint64))
        if self.hardened:  # freelist_ptr_decode(); the swap is 1ad53d9fa3f6's (5.7)
            value = value ^ self.random[cache][each] ^ place.byteswap()
        ended, lost = total, total + 1

        def node(pointer: NDArray[np.uint64], which: NDArray[np.intp]) -> NDArray[np.int64]:
            target, rest = np.divmod(pointer - first[which], size[which])
            inside = (rest == 0) & (target < counts[which].astype(np.uint64))
            found = np.where(inside, start[which] + target.astype(np.int64), lost)
            return np.where(pointer == 0, ended, found)

        jump = np.concatenate((np.where(ok, node(value, each), lost), [ended, lost]))
        heads = node(at, np.arange(len(row)))
        reached = np.zeros(total + 2, np.bool_)
        reached[heads] = True
        for _ in range(int(counts.max(initial=0)).bit_length()):
            reached[jump[np.flatnonzero(reached)]] = True
            jump = jump[jump]
        free = np.flatnonzero(reached[:total])
        return row[each[free]], index[free], jump[heads] != ended

    def check(self, broken: NDArray[np.bool_]) -> None:
        """Each CPU may have been stopped while it changed one freelist; more than that is corruption."""
        if broken.sum() > len(self.kernel.online_cpus()):
            raise CorruptGuest(f"{broken.sum()} freelists of slabs loop, end early or leave their slab")

    def cpu_freelists(self) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """For each CPU freelist the row of its slab and its first object (C: struct kmem_cache_cpu)."""
        none = np.empty(0, np.intp), np.empty(0, np.uint64)
        kernel = self.kernel
        if not kernel.types.has("kmem_cache", "cpu_slab"):  # 32c894c7274b (7.0): sheaves are all a CPU has
            return none
        page = "slab" if kernel.types.has("kmem_cache_cpu", "slab") else "page"
        at, _ = self._per_cpu("cpu_slab")
        freelist, slab = columns(kernel, "kmem_cache_cpu", at, "freelist", page)
        used = np.flatnonzero((freelist != 0) & (slab != 0))
        pfns = (slab[used] - np.uint64(self.memmap.base)) // np.uint64(self.memmap.struct_size)
        if not len(self.rows):
            return none
        row = np.minimum(np.searchsorted(self.rows["pfn"], pfns), len(self.rows) - 1)
        same = self.rows["pfn"][row] == pfns
        return row[same], freelist[used][same]

    def sheaves(self) -> Iterator[tuple[_Sheaves, bool]]:
        """All sheaves of CPUs and barns, and whether their objects only wait for a grace period.

        2d517aa09bbc (6.18) brought them. Sheaves on their way to RCU, or lent to a caller that allocates from
        them (kmem_cache_prefill_sheaf), are nowhere to be found: their objects count as allocated.
        """
        kernel = self.kernel
        if not kernel.types.has("kmem_cache", "cpu_sheaves"):
            return
        at, cache = self._per_cpu("cpu_sheaves")
        main, spare, rcu = columns(kernel, "slub_percpu_sheaves", at, "main", "spare", "rcu_free")
        barn_cache, full = self._barns()
        caches, found = np.concatenate((cache, cache, barn_cache)), np.concatenate((main, spare, full))
        yield self._sheaves(caches, found), False
        yield self._sheaves(cache, rcu), True

    def _sheaves(self, cache: NDArray[np.intp], address: NDArray[np.uint64]) -> _Sheaves:
        (size,) = columns(self.kernel, "slab_sheaf", address, "size")
        if (size > _MAX_SHEAF).any():
            raise CorruptGuest(
                f"the sheaf at {int(address[size.argmax()]):#x} says that it holds {size.max()}"
            )
        used = size != 0
        return _Sheaves(cache[used], address[used], size[used].astype(np.int64))

    def _barns(self) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """The full sheaves of all barns: whose cache's, and where. The lists are followed side by side."""
        kernel = self.kernel
        _, barns = self.caches.nodes
        cache, _ = np.nonzero(barns)
        head = barns[barns != 0] + np.uint64(kernel.types.offsetof("node_barn", "sheaves_full"))
        link = np.uint64(kernel.types.offsetof("slab_sheaf", "barn_list"))
        caches, found = [cache[:0]], [head[:0]]
        (at,) = columns(kernel, "list_head", head, "next")
        for _ in range(_MAX_SHEAVES):
            going = at != head
            if not going.any():
                return np.concatenate(caches), np.concatenate(found)
            cache, head, at = cache[going], head[going], at[going]
            caches.append(cache)
            found.append(at - link)
            (at,) = columns(kernel, "list_head", at, "next")
        raise CorruptGuest(f"a barn has more than {_MAX_SHEAVES} full sheaves, or its list loops")

    def _contents(self, sheaves: _Sheaves) -> NDArray[np.uint64]:
        """The objects that stand in the sheaves."""
        table = sheaves.address + np.uint64(self.kernel.types.offsetof("slab_sheaf", "objects"))
        at = spread(table, sheaves.size, self.kernel.pointer_size)
        values, _ = self.kernel.space.gather(at, np.dtype(np.uint64))
        return values

    def _per_cpu(self, member: str) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Every CPU's copy of what a __percpu member of the caches names, 0 for NULL; and whose it is."""
        (base,) = self.caches.column(member)
        cpus = self.kernel.possible_cpus
        offsets = np.array([self.kernel.per_cpu_address(VirtAddr(0), cpu) for cpu in cpus], np.uint64)
        at = np.where(base[:, None] == 0, np.uint64(0), base[:, None] + offsets)
        return at.reshape(-1), np.repeat(np.arange(len(base)), len(cpus))
