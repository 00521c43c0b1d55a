"""Memory set aside for DMA: pools of devices, pools for atomic allocations, swiotlb's bounce buffers.

Source: mm/dmapool.c, kernel/dma/pool.c, kernel/dma/swiotlb.c, lib/genalloc.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.errors import CorruptGuest
from inspector.kernel import lists
from inspector.symbols import Kernel, StructView
from inspector.units import PhysAddr, VirtAddr, printable

_MAX_DEVICES = 1 << 16
_MAX_POOLS = 1 << 12
_MAX_PAGES = 1 << 20
_MAX_AREAS = 1 << 14
_MAX_NAME = 128
_ATOMIC_POOLS = ("atomic_pool_dma", "atomic_pool_dma32", "atomic_pool_kernel")


@dataclass(frozen=True, slots=True)
class DmaPool:
    """A device's pool of equal blocks (C: struct dma_pool), as in /sys/devices/.../pools; `size` in bytes.

    `pages` are the physical addresses of the memory behind it, `allocation` bytes each.
    """

    device: str
    name: str
    size: int
    blocks: int
    used: int
    allocation: int
    pages: tuple[PhysAddr, ...]
    address: VirtAddr


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a gen_pool: `size` bytes, `free` of them."""

    start: VirtAddr
    phys: PhysAddr
    size: int
    free: int


@dataclass(frozen=True, slots=True)
class AtomicPool:
    """Coherent memory that may be taken where nothing may sleep; `name` is the kernel's variable."""

    name: str
    chunks: tuple[Chunk, ...]

    @property
    def size(self) -> int:
        """Bytes, all chunks together."""
        return sum(chunk.size for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class BounceBuffer:
    """Swiotlb's default memory, `slots` of 2 KiB. `used` is None where the kernel keeps no sum of it."""

    start: PhysAddr
    end: PhysAddr
    slots: int
    used: int | None


def device_pools(kernel: Kernel) -> list[DmaPool]:
    """The DMA pools of every device. Raises CorruptGuest."""
    kset = kernel.view("kset", VirtAddr(kernel.word("devices_kset")))
    inside = kernel.types.offsetof("device", "kobj")
    found: list[DmaPool] = []
    for kobject in lists.entries(kernel, kset.addr("list"), "kobject", "entry", _MAX_DEVICES):
        device = kernel.view("device", VirtAddr(kobject.address - inside))
        head = device.addr("dma_pools")
        if kernel.space.pointer(head) not in (0, head):
            pools = lists.entries(kernel, head, "dma_pool", "pools", _MAX_POOLS)
            found += [_pool(pool, kobject) for pool in pools]
    return found


def atomic_pools(kernel: Kernel) -> list[AtomicPool] | None:
    """The pools for atomic allocations that exist; None for a kernel without (CONFIG_DMA_COHERENT_POOL)."""
    if not any(name in kernel.symbols for name in _ATOMIC_POOLS):
        return None
    found: list[AtomicPool] = []
    for name in _ATOMIC_POOLS:
        address = kernel.word(name) if name in kernel.symbols else 0
        if address:
            pool = kernel.view("gen_pool", VirtAddr(address))
            chunks = lists.entries(kernel, pool.addr("chunks"), "gen_pool_chunk", "next_chunk", _MAX_POOLS)
            found.append(AtomicPool(name, tuple(_chunk(chunk) for chunk in chunks)))
    return found


def bounce_buffer(kernel: Kernel) -> BounceBuffer | None:
    """Swiotlb's default memory; None where the kernel has taken none."""
    if "io_tlb_default_mem" not in kernel.symbols:
        return _old_bounce_buffer(kernel)
    # 463e862ac63e (5.15) made a variable of the pointer.
    mem = kernel.variable("io_tlb_mem", "io_tlb_default_mem")
    # 158dbe9c9a3d (6.6) put what describes the memory into a pool of its own.
    pool = mem.at("defpool") if mem.has("defpool") else mem
    slots = pool.int("nslabs")
    if not slots or not pool.int("start"):
        return None
    return BounceBuffer(PhysAddr(pool.int("start")), PhysAddr(pool.int("end")), slots, _slots_used(mem, pool))


def _pool(pool: StructView, device: StructView) -> DmaPool:
    pages = list(lists.entries(pool.kernel, pool.addr("page_list"), "dma_page", "page_list", _MAX_PAGES))
    size, allocation = pool.int("size"), pool.int("allocation")
    if pool.has("nr_blocks"):  # a4de12a032fa (6.4): counted in the pool, not page by page
        blocks, used = pool.int("nr_blocks"), pool.int("nr_active")
    else:
        blocks, used = len(pages) * (allocation // max(size, 1)), sum(page.int("in_use") for page in pages)
    name = device.ptr("name")
    return DmaPool(
        device=printable(pool.kernel.space.cstring(name, _MAX_NAME)) if name else "",
        name=printable(pool.text("name")),
        size=size,
        blocks=blocks,
        used=used,
        allocation=allocation,
        pages=tuple(PhysAddr(pool.kernel.virt_to_phys(page.ptr("vaddr"))) for page in pages),
        address=pool.address,
    )


def _chunk(chunk: StructView) -> Chunk:
    start = chunk.ptr("start_addr")
    return Chunk(
        start=start,
        phys=PhysAddr(chunk.int("phys_addr")),
        size=chunk.int("end_addr") + 1 - start,
        free=chunk.int("avail.counter"),
    )


def _old_bounce_buffer(kernel: Kernel) -> BounceBuffer | None:
    """Global variables, before 73f620951b2b (5.13)."""
    if "io_tlb_nslabs" not in kernel.symbols or not kernel.word("io_tlb_nslabs"):
        return None
    start, end = PhysAddr(kernel.word("io_tlb_start")), PhysAddr(kernel.word("io_tlb_end"))
    used = kernel.word("io_tlb_used") if "io_tlb_used" in kernel.symbols else None
    return BounceBuffer(start, end, kernel.word("io_tlb_nslabs"), used)


def _slots_used(mem: StructView, pool: StructView) -> int | None:
    if mem.has("used"):
        return mem.int("used")
    if mem.has("total_used.counter"):  # 8b0977ecc8b3 (6.4), with CONFIG_DEBUG_FS
        return mem.int("total_used.counter")
    areas, count = pool.deref("areas"), pool.int("nareas")  # 20347fca71a3 (6.0)
    if areas is None:
        return None
    if count > _MAX_AREAS:
        raise CorruptGuest(f"swiotlb has {count} areas")
    size = areas.type.size
    return sum(
        areas.kernel.view("io_tlb_area", VirtAddr(areas.address + i * size)).int("used") for i in range(count)
    )
