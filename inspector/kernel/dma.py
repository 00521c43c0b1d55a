"""Memory set aside for DMA: pools of devices, pools for atomic allocations.

Source: mm/dmapool.c, kernel/dma/pool.c, lib/genalloc.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.kernel import lists
from inspector.symbols import Kernel, StructView
from inspector.units import BusAddr, PhysAddr, VirtAddr, printable

_MAX_DEVICES = 1 << 16
_MAX_POOLS = 1 << 12
_MAX_PAGES = 1 << 20
_MAX_NAME = 128
_ATOMIC_POOLS = ("atomic_pool_dma", "atomic_pool_dma32", "atomic_pool_kernel")


@dataclass(frozen=True, slots=True)
class DmaPool:
    """A device's pool of equal blocks (C: struct dma_pool), as in /sys/devices/.../pools; `size` in bytes.

    `pages` are the physical addresses of the memory behind it, `allocation` bytes each; `buses` what the
    device has for each, `addresses` what the kernel has.
    """

    device: str
    name: str
    size: int
    blocks: int
    used: int
    allocation: int
    pages: tuple[PhysAddr, ...]
    buses: tuple[BusAddr, ...]
    addresses: tuple[VirtAddr, ...]
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


def device_pools(kernel: Kernel) -> list[DmaPool]:
    """The DMA pools of every device. Raises CorruptGuest."""
    kset = kernel.view("kset", VirtAddr(kernel.word("devices_kset")))
    inside = kernel.types.offsetof("device", "kobj")
    found: list[DmaPool] = []
    for kobject in lists.entries(kernel, kset.addr("list"), "kobject", "entry", _MAX_DEVICES):
        found += pools_of(kernel.view("device", VirtAddr(kobject.address - inside)))
    return found


def pools_of(device: StructView) -> list[DmaPool]:
    """The DMA pools of a struct device. Raises CorruptGuest."""
    head = device.addr("dma_pools")
    if device.kernel.space.pointer(head) in (0, head):  # 0: nobody has set it up
        return []
    pools = lists.entries(device.kernel, head, "dma_pool", "pools", _MAX_POOLS)
    return [_pool(pool, device) for pool in pools]


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


def _pool(pool: StructView, device: StructView) -> DmaPool:
    pages = list(lists.entries(pool.kernel, pool.addr("page_list"), "dma_page", "page_list", _MAX_PAGES))
    size, allocation = pool.int("size"), pool.int("allocation")
    if pool.has("nr_blocks"):  # a4de12a032fa (6.4): counted in the pool, not page by page
        blocks, used = pool.int("nr_blocks"), pool.int("nr_active")
    else:
        blocks, used = len(pages) * (allocation // max(size, 1)), sum(page.int("in_use") for page in pages)
    name = device.ptr("kobj.name")
    return DmaPool(
        device=printable(pool.kernel.space.cstring(name, _MAX_NAME)) if name else "",
        name=printable(pool.text("name")),
        size=size,
        blocks=blocks,
        used=used,
        allocation=allocation,
        pages=tuple(PhysAddr(pool.kernel.virt_to_phys(page.ptr("vaddr"))) for page in pages),
        buses=tuple(BusAddr(page.int("dma")) for page in pages),
        addresses=tuple(page.ptr("vaddr") for page in pages),
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
