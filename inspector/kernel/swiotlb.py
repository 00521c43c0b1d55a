"""Swiotlb: memory that a device reaches, through which data for memory that it does not reach is copied.

Source: kernel/dma/swiotlb.c, include/linux/swiotlb.h; /sys/kernel/debug/swiotlb. Its globals became members
of struct io_tlb_mem in 73f620951b2b (5.13).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel import bulk, lists
from inspector.symbols import Kernel, StructView
from inspector.units import PhysAddr, VirtAddr

SLOT = 1 << 11
"""Bytes in a slot (C: IO_TLB_SIZE)."""

_UNUSED = np.uint64((1 << 64) - 1)  # INVALID_PHYS_ADDR
_MAX_AREAS = 1 << 14
_MAX_SLOTS = 1 << 23  # 16 GiB
_MAX_POOLS = 1 << 12


@dataclass(frozen=True, slots=True)
class BounceBuffer:
    """Swiotlb's default memory, `slots` of 2 KiB. `used` is None where the kernel keeps no sum of it."""

    start: PhysAddr
    end: PhysAddr
    slots: int
    used: int | None


@dataclass(frozen=True, slots=True)
class Bounce:
    """A mapping that goes through swiotlb: `slots` in a row from `start` on, in which the device works.

    `origin` is the memory that they stand for, `size` its bytes; None before 5.14, which does not note them,
    and there two mappings that adjoin in both places are told as one. With a device's min_align_mask the
    bytes begin as far into the first slot as they do in the memory.
    """

    start: PhysAddr
    slots: int
    origin: PhysAddr
    size: int | None

    @property
    def end(self) -> PhysAddr:
        """Where the last slot ends, exclusive."""
        return PhysAddr(self.start + self.slots * SLOT)


@dataclass(frozen=True, slots=True)
class Swiotlb:
    """Swiotlb and what is in it. `forced` says that every mapping is bounced (swiotlb=force)."""

    buffer: BounceBuffer
    forced: bool | None
    bounces: tuple[Bounce, ...]


def swiotlb(kernel: Kernel) -> Swiotlb | None:
    """Swiotlb and every mapping in it; None where the kernel has no memory for it. Raises CorruptGuest."""
    buffer = bounce_buffer(kernel)
    if buffer is None:
        return None
    if "io_tlb_default_mem" not in kernel.symbols:
        return Swiotlb(buffer, _old_forced(kernel), tuple(_old_bounces(kernel, buffer)))
    mem = kernel.variable("io_tlb_mem", "io_tlb_default_mem")
    forced = bool(mem.int("force_bounce")) if mem.has("force_bounce") else None
    return Swiotlb(buffer, forced, tuple(each for pool in _pools(mem) for each in _bounces(pool)))


def bounce_buffer(kernel: Kernel) -> BounceBuffer | None:
    """Swiotlb's default memory; None where the kernel has taken none."""
    if "io_tlb_default_mem" not in kernel.symbols:
        return _old_bounce_buffer(kernel)
    # 463e862ac63e (5.15) made a variable of the pointer.
    mem = kernel.variable("io_tlb_mem", "io_tlb_default_mem")
    pool = _default_pool(mem)
    slots = pool.int("nslabs")
    if not slots or not pool.int("start"):
        return None
    return BounceBuffer(PhysAddr(pool.int("start")), PhysAddr(pool.int("end")), slots, _slots_used(mem, pool))


def _default_pool(mem: StructView) -> StructView:
    """158dbe9c9a3d (6.6) put what describes the memory into a pool of its own."""
    return mem.at("defpool") if mem.has("defpool") else mem


def _pools(mem: StructView) -> Iterator[StructView]:
    """The default pool, and those that were added (CONFIG_SWIOTLB_DYNAMIC), which are on one list with it."""
    if not mem.has("pools"):
        yield _default_pool(mem)
        return
    yield from lists.entries(mem.kernel, mem.addr("pools"), "io_tlb_pool", "node", _MAX_POOLS)


def _bounces(pool: StructView) -> Iterator[Bounce]:
    kernel, count = pool.kernel, pool.int("nslabs")
    at = pool.ptr("slots") + _places(count) * np.uint64(kernel.types.sizeof("io_tlb_slot"))
    origins, sizes = bulk.columns(kernel, "io_tlb_slot", at, "orig_addr", "alloc_size")
    start = PhysAddr(pool.int("start"))
    for index, slots in _runs(origins, sizes):  # what 6.12 pads an alignment with has no origin
        yield Bounce(PhysAddr(start + index * SLOT), slots, PhysAddr(int(origins[index])), int(sizes[index]))


def _runs(origins: NDArray[np.uint64], sizes: NDArray[np.uint64] | None = None) -> Iterator[tuple[int, int]]:
    """Slots that belong together: (first, how many). Each next one's origin is a slot further on."""
    used = origins != _UNUSED
    follows = used[1:] & used[:-1] & (origins[1:] == origins[:-1] + np.uint64(SLOT))
    if sizes is not None:  # what is left of the mapping from a slot on
        follows &= sizes[1:] == sizes[:-1] - np.uint64(SLOT)
    begins = used.copy()
    begins[1:] &= ~follows
    ends = used.copy()
    ends[:-1] &= ~follows
    for first, last in zip(np.flatnonzero(begins).tolist(), np.flatnonzero(ends).tolist(), strict=True):
        yield first, last - first + 1


def _places(count: int) -> NDArray[np.uint64]:
    if count > _MAX_SLOTS:
        raise CorruptGuest(f"swiotlb has {count} slots")
    return np.arange(count, dtype=np.uint64)


def _slots_used(mem: StructView, pool: StructView) -> int | None:
    if mem.has("total_used.counter"):  # 8b0977ecc8b3 (6.4), with CONFIG_DEBUG_FS
        return mem.int("total_used.counter")
    if not pool.has("areas"):  # 20347fca71a3 (6.0); 6.1 still has the sum, and leaves it at 0
        return mem.int("used") if mem.has("used") else None
    areas, count = pool.deref("areas"), pool.int("nareas")
    if areas is None:
        return None
    if count > _MAX_AREAS:
        raise CorruptGuest(f"swiotlb has {count} areas")
    size = areas.type.size
    return sum(
        areas.kernel.view("io_tlb_area", VirtAddr(areas.address + i * size)).int("used") for i in range(count)
    )


# Global variables, before 5.13.


def _old_bounce_buffer(kernel: Kernel) -> BounceBuffer | None:
    if "io_tlb_nslabs" not in kernel.symbols or not kernel.word("io_tlb_nslabs"):
        return None
    start, end = PhysAddr(kernel.word("io_tlb_start")), PhysAddr(kernel.word("io_tlb_end"))
    used = kernel.word("io_tlb_used") if "io_tlb_used" in kernel.symbols else None
    return BounceBuffer(start, end, kernel.word("io_tlb_nslabs"), used)


def _old_forced(kernel: Kernel) -> bool | None:
    if "swiotlb_force" not in kernel.symbols:
        return None
    value = kernel.space.u32(kernel.symbol("swiotlb_force"))
    return value == kernel.types.enum("swiotlb_force")["SWIOTLB_FORCE"]


def _old_bounces(kernel: Kernel, buffer: BounceBuffer) -> Iterator[Bounce]:
    places = _places(buffer.slots) * np.uint64(8)
    origins = bulk.words(kernel, kernel.word("io_tlb_orig_addr") + places, "io_tlb_orig_addr")
    for index, slots in _runs(origins):
        start = PhysAddr(buffer.start + index * SLOT)
        yield Bounce(start, slots, PhysAddr(int(origins[index])), None)
