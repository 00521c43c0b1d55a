"""What can be asked of a Linux whose memory can be read: every answer from one moment."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.kernel import (
    buddy,
    cma,
    devices,
    dma,
    dma_buffers,
    ksyms,
    memcg,
    meminfo,
    modules,
    owners,
    pageblocks,
    pages,
    resources,
    slab_objects,
    slabs,
    swap,
    swiotlb,
    tasks,
    vmalloc,
    vmstat,
    zones,
)
from inspector.kernel.cma import CmaArea
from inspector.kernel.devices import PciDevice
from inspector.kernel.dma import DmaPool
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.memcg import MemoryGroup
from inspector.kernel.memmap import MemMap
from inspector.kernel.modules import Module
from inspector.kernel.owners import Owners
from inspector.kernel.pages import Owned, Page
from inspector.kernel.resources import Resource
from inspector.kernel.rmap import Alias, ReverseMap
from inspector.kernel.slab_objects import SlabObject
from inspector.kernel.slabs import SlabCache
from inspector.kernel.swap import SwapArea
from inspector.kernel.swiotlb import BounceBuffer, Swiotlb
from inspector.kernel.tasks import Task
from inspector.kernel.vmalloc import VmallocArea
from inspector.kernel.zones import Zone
from inspector.symbols import Kernel, Symbol
from inspector.units import Pfn, VirtAddr


@dataclass(frozen=True, slots=True)
class FreeCounts:
    """One zone's free blocks: `counts[migratetype, order]`, as in /proc/pagetypeinfo."""

    node: int
    zone: str
    migratetypes: tuple[str, ...]
    counts: NDArray[np.int64]


class Linux:
    """The questions, asked of `kernel`; `still()` makes the moment that an answer is of."""

    kernel: Kernel

    def still(self) -> AbstractContextManager[None]:
        """Inside, memory does not change, if it can be helped."""
        return self.kernel.still()

    def symbol(self, name: str) -> VirtAddr:
        """The address of a symbol of the kernel, or else of a loaded module. Raises NoSuchSymbol."""
        with self.still():
            return ksyms.address_of(self.kernel, name)

    def symbol_at(self, address: VirtAddr) -> tuple[Symbol, int] | None:
        """The symbol, the kernel's or a module's, that an address lies in and the offset into it in bytes.

        None where none is near.
        """
        with self.still():
            return ksyms.symbol_at(self.kernel, address)

    def tasks(self, threads: bool = False) -> list[Task]:
        """Every process by PID, kernel threads too; with `threads` every thread."""
        with self.still():
            return tasks.tasks(self.kernel, threads)

    def task(self, pid: int) -> Task:
        """The process or thread with that PID. Raises NoSuchTask."""
        with self.still():
            return tasks.task(self.kernel, pid)

    def zones(self) -> list[Zone]:
        """Every zone of every node: sizes, watermarks, free counts, in pages."""
        with self.still():
            return zones.zones(self.kernel)

    def buddy(self) -> list[FreeCounts]:
        """Free blocks by migratetype and order, for each zone that has memory."""
        with self.still():
            names = buddy.migratetypes(self.kernel)
            blocks = buddy.free_blocks(self.kernel, MemMap(self.kernel))
            return [
                FreeCounts(zone.node, zone.name, names, buddy.counts(blocks, zone, len(names)))
                for zone in zones.zones(self.kernel)
                if zone.populated
            ]

    def page(self, pfn: Pfn, owners: Owned | None = None) -> Page:
        """All that is known of a frame: its struct page, whose it is, what is charged. Raises NoSuchFrame.

        `owners` are owners() of the same moment: worth giving where many pages are asked for.
        """
        with self.still():
            return pages.page(self.kernel, pfn, owners)

    def pfn(self, page: VirtAddr) -> Pfn:
        """The frame that a struct page, by its address, is of (C: page_to_pfn()). Raises NoSuchFrame."""
        return MemMap(self.kernel).pfn(page)

    def frames(self) -> NDArray[np.void]:
        """A row a PFN for all of memory, as kernel.owners.FRAME; owners() has the labels too."""
        return self.owners().rows

    def slabs(self) -> list[SlabCache]:
        """Every slab cache, with the counts of /proc/slabinfo. Raises CorruptGuest."""
        with self.still():
            return slabs.slabs(self.kernel)

    def slab_objects(self, cache: SlabCache | None = None) -> NDArray[np.void]:
        """Every object of a slab cache, or of all: allocated, or where it waits. Raises CorruptGuest."""
        with self.still():
            return slab_objects.objects(self.kernel, cache)

    def slab_object(self, address: VirtAddr) -> SlabObject | None:
        """The slab object that an address lies in; None where none is."""
        with self.still():
            return slab_objects.object_at(self.kernel, address)

    def vmalloc_areas(self) -> list[VmallocArea]:
        """Every area of the vmalloc region, as /proc/vmallocinfo lists them. Raises CorruptGuest."""
        with self.still():
            return vmalloc.areas(self.kernel)

    def modules(self) -> list[Module]:
        """Every loaded module and where it lies. Raises CorruptGuest."""
        with self.still():
            return modules.modules(self.kernel)

    def iomem(self) -> list[Resource]:
        """What each range of physical addresses is for, as /proc/iomem shows it. Raises CorruptGuest."""
        with self.still():
            return resources.iomem(self.kernel)

    def meminfo(self) -> dict[str, int]:
        """The numbers of /proc/meminfo, computed as the kernel does."""
        with self.still():
            return meminfo.meminfo(self.kernel)

    def vmstat(self) -> Mapping[str, int]:
        """The counters of /proc/vmstat by name, as it prints them."""
        with self.still():
            return vmstat.vmstat(self.kernel)

    def pageblocks(self) -> NDArray[np.uint8]:
        """The migratetype of each pageblock from PFN 0 on; see kernel.pageblocks."""
        with self.still():
            return pageblocks.migratetypes(self.kernel)

    def cma_areas(self) -> list[CmaArea] | None:
        """Every area kept for contiguous allocations; None for a kernel without CMA. Raises CorruptGuest."""
        with self.still():
            return cma.cma_areas(self.kernel)

    def pci_devices(self) -> list[PciDevice]:
        """Every PCI device by address: its BARs, its driver, what memory it reaches. Raises CorruptGuest."""
        with self.still():
            return devices.pci_devices(self.kernel)

    def dma_pools(self) -> list[DmaPool]:
        """The DMA pools of every device. Raises CorruptGuest."""
        with self.still():
            return dma.device_pools(self.kernel)

    def dma_buffers(self) -> list[DmaBuffer]:
        """Every buffer for DMA that the kernel or a known driver keeps books of. Raises CorruptGuest."""
        with self.still():
            return dma_buffers.dma_buffers(self.kernel)

    def bounce_buffer(self) -> BounceBuffer | None:
        """Swiotlb's memory; None where the kernel has taken none."""
        with self.still():
            return swiotlb.bounce_buffer(self.kernel)

    def swiotlb(self) -> Swiotlb | None:
        """Swiotlb's memory and every mapping in it; None where the kernel has taken none."""
        with self.still():
            return swiotlb.swiotlb(self.kernel)

    def memory_groups(self) -> list[MemoryGroup]:
        """Every memory cgroup, with what is charged to it. Raises CorruptGuest."""
        with self.still():
            return memcg.memory_groups(self.kernel)

    def swap_areas(self) -> list[SwapArea]:
        """Every swap area in use, as /proc/swaps lists them."""
        with self.still():
            return swap.areas(self.kernel)

    def swap_entries(self, task: Task) -> NDArray[np.void]:
        """Each of a task's pages that is not present but not nowhere: kernel.swap.entries() has the rows."""
        with self.still():
            return swap.entries(self.kernel, task.space, 0, tasks.user_end(self.kernel))

    def owners(self) -> Owners:
        """Who owns each frame: a class for every PFN, and for most the very task, cache, area or module."""
        with self.still():
            return owners.owners(self.kernel)

    def reverse_map(self) -> ReverseMap:
        """Who maps each frame, from the page tables of every task and the kernel. Raises CorruptGuest."""
        with self.still():
            return ReverseMap.build(self.kernel)

    def mapped_by(self, pfn: Pfn) -> list[Alias]:
        """Every virtual address of a frame, tasks' and the kernel's; reverse_map() answers for many."""
        with self.still():
            return ReverseMap.build(self.kernel, only=pfn).of(pfn)
