"""Memory that devices read and write, as far as the kernel or a driver keeps books of it.

The kernel keeps none of streaming mappings (dma_map_single() and its kin) that need no bouncing: those are
known only where a driver's own books can be read. Source: mm/dmapool.c, drivers/base/devres.c,
kernel/dma/remap.c, kernel/dma/swiotlb.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.arch import translate
from inspector.errors import CorruptGuest
from inspector.kernel import devices, devres, dma, driver_books, swiotlb, vmalloc
from inspector.kernel.modules import modules
from inspector.symbols import Kernel
from inspector.units import BusAddr, PhysAddr, VirtAddr

_MAX_PAGES = 1 << 22  # of one buffer: 16 GiB
BOTH = "BIDIRECTIONAL"


@dataclass(frozen=True, slots=True)
class DmaBuffer:
    """A run of memory for DMA; what nobody keeps is None.

    `kind` is `pool`, `managed`, `coherent`, `bounce` or what a driver calls it; `source` who says so:
    `dma_pool`, `devres`, `vmap area`, `swiotlb` or a driver's name. `label` tells it from others of its kind.
    `size` is in bytes; `extents` are the runs of physical memory behind it, in order: (start, bytes).
    `direction` is BIDIRECTIONAL, TO_DEVICE or FROM_DEVICE. `pid` is who asked the driver for it, `transfer`
    `to RAM` or `from RAM` while one is under way, `transfers` how many its device has ended.
    """

    device: str | None
    kind: str
    label: str
    bus: BusAddr | None
    address: VirtAddr | None
    size: int
    extents: tuple[tuple[PhysAddr, int], ...]
    direction: str | None
    source: str
    pid: int | None = None
    transfer: str | None = None
    transfers: int | None = None

    @property
    def phys(self) -> PhysAddr | None:
        """Where its first byte lies."""
        return self.extents[0][0] if self.extents else None

    def frames(self, page_size: int) -> NDArray[np.uint64]:
        """The PFNs that it touches, in order."""
        parts = [
            np.arange(start // page_size, (start + size - 1) // page_size + 1, dtype=np.uint64)
            for start, size in self.extents
            if size
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def dma_buffers(kernel: Kernel) -> list[DmaBuffer]:
    """Every buffer that somebody keeps books of, by device. Raises CorruptGuest."""
    found = [*_books(kernel), *_managed(kernel)]
    known = {buffer.address for buffer in found if buffer.address}
    found += _pools(kernel)
    found += (area for area in _coherent_areas(kernel) if area.address not in known)
    found += list(_bounces(kernel, found))
    return sorted(found, key=lambda buffer: (buffer.device is None, buffer.device or "", buffer.bus or 0))


def extents(kernel: Kernel, address: VirtAddr, size: int) -> tuple[tuple[PhysAddr, int], ...]:
    """The runs of physical memory behind a range of kernel addresses; what is not mapped is left out.

    Raises CorruptGuest where the range is over 16 GiB or ends past the last address.
    """
    space = kernel.space
    page = space.format.page_size
    first, end = address // page, -(-(address + size) // page)
    if end - first > _MAX_PAGES or address + size > kernel.pointer_mask:
        raise CorruptGuest(f"a buffer of {size} bytes at {address:#x}")
    if not size:
        return ()
    vas = np.arange(first, end, dtype=np.uint64) * np.uint64(page)
    starts, mapped = translate(kernel.memory, space.format, space.root, vas)
    sizes = np.full(len(vas), page, np.uint64)
    starts[0] += np.uint64(address - first * page)
    sizes[0] -= np.uint64(address - first * page)
    sizes[-1] -= np.uint64(end * page - address - size)
    starts, sizes = starts[mapped], sizes[mapped]
    begins = np.flatnonzero(np.concatenate(([True], starts[1:] != starts[:-1] + sizes[:-1]))[: len(starts)])
    if not len(begins):
        return ()
    totals = np.add.reduceat(sizes, begins).tolist()
    return tuple(
        (PhysAddr(start), count) for start, count in zip(starts[begins].tolist(), totals, strict=True)
    )


def _pools(kernel: Kernel) -> Iterator[DmaBuffer]:
    for pool in dma.device_pools(kernel):
        for phys, bus, address in zip(pool.pages, pool.buses, pool.addresses, strict=True):
            yield DmaBuffer(
                device=pool.device,
                kind="pool",
                label=pool.name,
                bus=bus,
                address=address,
                size=pool.allocation,
                extents=((phys, pool.allocation),),
                direction=BOTH,
                source="dma_pool",
            )


def _managed(kernel: Kernel) -> Iterator[DmaBuffer]:
    loaded = modules(kernel)
    for view in devices.device_views(kernel):
        device = view.at("dev")
        for each in devres.managed_dma(kernel, devres.managed(kernel, device, loaded)):
            yield DmaBuffer(
                device=devices.name_of(device),
                kind="managed",
                label="",
                bus=each.bus,
                address=each.address,
                size=each.size,
                extents=extents(kernel, each.address, each.size),
                direction=BOTH,
                source="devres",
            )


def _books(kernel: Kernel) -> Iterator[DmaBuffer]:
    """What the drivers say whose books we can read."""
    for view in devices.device_views(kernel):
        for entry in driver_books.entries(view):
            if entry.place is not None:
                runs: tuple[tuple[PhysAddr, int], ...] = ((entry.place, entry.size),)
            else:
                runs = extents(kernel, entry.address, entry.size) if entry.address else ()
            yield DmaBuffer(
                device=devices.name_of(view.at("dev")),
                kind=entry.kind,
                label=entry.label,
                bus=entry.bus,
                address=entry.address,
                size=entry.size,
                extents=runs,
                direction=entry.direction,
                source=entry.driver,
                pid=entry.pid,
                transfer=entry.transfer,
                transfers=entry.transfers,
            )


def _coherent_areas(kernel: Kernel) -> Iterator[DmaBuffer]:
    """Coherent memory that is vmapped; for which device, the kernel does not keep."""
    rows = vmalloc.busy_areas(kernel)
    rows = rows[rows["flags"] & np.uint64(vmalloc.VM_FLAGS["dma-coherent"]) != 0]
    for area in vmalloc.areas(kernel, rows):
        runs = extents(kernel, area.start, area.end - area.start)
        yield DmaBuffer(
            device=None,
            kind="coherent",
            label=area.caller,
            bus=None,
            address=area.start,
            size=sum(size for _, size in runs),  # its guard page is not mapped
            extents=runs,
            direction=BOTH,
            source="vmap area",
        )


def _bounces(kernel: Kernel, known: list[DmaBuffer]) -> Iterator[DmaBuffer]:
    """Memory that the device works in instead of the driver's; whose it is, a driver's book may tell."""
    found = swiotlb.swiotlb(kernel)
    for bounce in found.bounces if found else ():
        size = bounce.slots * swiotlb.SLOT if bounce.size is None else bounce.size
        whose = next((each for each in known if bounce.start <= (each.bus or 0) < bounce.end), None)
        yield DmaBuffer(
            device=whose.device if whose else None,
            kind="bounce",
            label=f"for {whose.label if whose and whose.label else hex(bounce.origin)}",
            bus=whose.bus if whose else None,
            address=None,
            size=size,
            extents=((bounce.start, size),),
            direction=whose.direction if whose else None,
            source="swiotlb",
            pid=whose.pid if whose else None,
            transfer=whose.transfer if whose else None,
            transfers=whose.transfers if whose else None,
        )
