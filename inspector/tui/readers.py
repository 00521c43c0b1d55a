"""What the screens of slabs, vmalloc, swap, memory and allocations read: each a snapshot of one stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector.arch import translate
from inspector.errors import CorruptGuest, KernelError, NoSuchFrame, OutsideRam, UsageError
from inspector.guest import Guest
from inspector.kernel import buddy, pageblocks, ptes, slab_objects, swap
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.memcg import ChargeKind
from inspector.kernel.owners import Owner
from inspector.kernel.pages import Page
from inspector.kernel.ptes import EntryUse, SwapTypes
from inspector.kernel.slabs import SlabCache
from inspector.kernel.tasks import Task, user_end
from inspector.kernel.vmalloc import BUSY
from inspector.tui.dma import BufferKey, ChosenBuffer, Devices, FrameRow, buffer_key
from inspector.tui.source import Frames, Memory, SlabRow, Slabs, Swap, SwapRow, VmallocRow
from inspector.tui.tracing import Watched
from inspector.units import Pfn, PhysAddr, VirtAddr, printable

BUFFER_FRAMES = 16
"""Frames of a buffer for DMA that are looked at."""

BUFFER_BYTES = 128
"""Bytes of it."""

_NOT_SWAP = {
    EntryUse.NONE: "none",
    EntryUse.PROT_NONE: "PROT_NONE",
    EntryUse.INVALID: "huge page being split",
}
_FRAMED = (
    EntryUse.PROT_NONE,
    EntryUse.INVALID,
    EntryUse.MIGRATION,
    EntryUse.HWPOISON,
    EntryUse.DEVICE,
    EntryUse.DEVICE_EXCLUSIVE,
)
"""Entries that name a frame, and no slot of a swap area."""


def slabs(guest: Guest) -> Slabs:
    """Every slab cache, and its objects counted."""
    with guest.still():
        caches = guest.slabs()
        try:
            held = slab_objects.allocated_count(guest.kernel).tolist()
        except CorruptGuest:  # a live guest changes its lists while they are followed
            held = [None] * len(caches)
    rows = tuple(SlabRow(cache, count) for cache, count in zip(caches, held, strict=True))
    return Slabs(rows, guest.kernel.space.format.page_size)


def objects_around(guest: Guest, page: Page, cache: SlabCache | None) -> NDArray[np.void]:
    """The objects of the slab of `cache` that a page is in; none where it is in none."""
    if cache is None:
        return np.empty(0, slab_objects.OBJECT)
    page_size = guest.kernel.space.format.page_size
    first = guest.kernel.phys_to_virt(PhysAddr(page.head * page_size))
    try:
        found = guest.slab_objects(cache)
    except (CorruptGuest, UsageError):
        return np.empty(0, slab_objects.OBJECT)
    last = np.uint64(first + (page_size << page.order) - 1)
    return found[(found["address"] >= np.uint64(first)) & (found["address"] <= last)]


def vmalloc(guest: Guest) -> tuple[VmallocRow, ...]:
    """Every vmalloc area and the frame of its first page."""
    space = guest.kernel.space
    with guest.still():
        areas = guest.vmalloc_areas()
        starts = np.array([area.start for area in areas], np.uint64)
        found, mapped = translate(guest.memory, space.format, space.root, starts)
    pfns = (found // np.uint64(space.format.page_size)).tolist()
    return tuple(
        VmallocRow(area, Pfn(pfn) if there and area.kind == BUSY else None)
        for area, pfn, there in zip(areas, pfns, mapped.tolist(), strict=True)
    )


def swapped(guest: Guest, owners: NDArray[np.uint8]) -> Swap:
    """Swap areas, and every task's entries that are not present, by kind; `owners` count the swap cache."""
    with guest.still():
        types = ptes.swap_types(guest.kernel)
        known: set[VirtAddr] = set()
        rows: list[SwapRow] = []
        for task in guest.tasks():
            if task.mm and task.mm.address not in known:  # an address space that many share counts once
                known.add(task.mm.address)
                rows += _entries(guest, task, types)
        return Swap(
            areas=tuple(guest.swap_areas()),
            rows=tuple(rows),
            cached=int((owners == Owner.SWAP_CACHE).sum()),
            page_size=guest.kernel.space.format.page_size,
        )


def _entries(guest: Guest, task: Task, types: SwapTypes) -> Iterator[SwapRow]:
    """A row for each use and swap type in a task's page tables."""
    found = swap.entries(guest.kernel, task.space, 0, user_end(guest.kernel))
    page_size = guest.kernel.space.format.page_size
    kinds = found["use"].astype(np.int64) << 8 | found["type"]
    for kind in np.unique(kinds).tolist():
        rows = found[kinds == kind]
        use, number = EntryUse(kind >> 8), kind & 0xFF
        in_swap = use not in _NOT_SWAP
        offsets = None
        if in_swap and use not in _FRAMED:
            offsets = int(rows["offset"].min()), int(rows["offset"].max())
        yield SwapRow(
            pid=task.pid,
            name=printable(task.name),
            use=types.use(number)[1] if in_swap else _NOT_SWAP[use],
            type=number if in_swap else None,
            count=len(rows),
            pages=int(rows["size"].sum()) // page_size,
            va=VirtAddr(int(rows["va"][0])),
            offsets=offsets,
            pfn=Pfn(int(rows["pfn"][0])) if use in _FRAMED else None,
        )


def entry(guest: Guest, raw: int) -> tuple[str, Pfn | None, bool]:
    """What an entry that is not present holds, the frame that it names, and whether it is in a swap area."""
    found = ptes.nonpresent(guest.kernel, raw)
    words = [found.name]
    swapped = found.use is EntryUse.SWAP
    if swapped:
        area = next((area for area in guest.swap_areas() if area.type == found.type), None)
        words = [f"swapped out: slot {found.offset:#x} of swap area {found.type}"]
        words += [f"({area.path})"] if area else []
    elif found.markers:
        words.append(", ".join(found.markers))
    if found.pfn is not None:
        words.append(f"of PFN {found.pfn:#x}")
    words += [name for name, on in (("soft-dirty", found.soft_dirty), ("uffd-wp", found.uffd_wp)) if on]
    return " ".join(words), found.pfn, swapped


def memory(guest: Guest) -> Memory:
    """Counters of all memory and of each memory cgroup."""
    with guest.still():
        lines = tuple(guest.meminfo().items())
        groups = tuple(guest.memory_groups())
    return Memory(lines, groups, guest.kernel.space.format.page_size)


def devices(guest: Guest, recent: Frames, chosen: BufferKey | None) -> Devices:
    """PCI devices and buffers, one of them closely; frames' owners are those of `recent`."""
    with guest.still():
        buffers = guest.dma_buffers()
        found = next((each for each in buffers if buffer_key(each) == chosen), None)
        return Devices(
            devices=tuple(guest.pci_devices()),
            buffers=tuple(buffers),
            zones=recent.zones,
            swiotlb=guest.bounce_buffer(),
            chosen=_chosen(guest, recent, found) if found else None,
            memory_end=PhysAddr(max((zone.end_pfn for zone in recent.zones), default=0) * recent.page_size),
            page_size=recent.page_size,
        )


def _chosen(guest: Guest, recent: Frames, buffer: DmaBuffer) -> ChosenBuffer:
    """A buffer's frames as struct page has them now, and the bytes where the device has it."""
    pfns = buffer.frames(recent.page_size)
    rows: list[FrameRow] = []
    for pfn in pfns[:BUFFER_FRAMES].tolist():
        with contextlib.suppress(NoSuchFrame):  # a device's own memory
            rows.append(_frame(guest, recent, Pfn(pfn)))
    contents = b""
    if buffer.extents:
        start, size = buffer.extents[0]
        with contextlib.suppress(OutsideRam):
            contents = guest.read_phys(start, min(size, BUFFER_BYTES))
    return ChosenBuffer(buffer, tuple(rows), len(pfns), contents)


def _frame(guest: Guest, recent: Frames, pfn: Pfn) -> FrameRow:
    page = guest.page(pfn, recent)
    counted = guest.page(Pfn(page.head), recent) if page.is_tail else page
    return FrameRow(
        pfn=pfn,
        owner=page.owner,
        label=printable(page.owner_label),
        migratetype=page.migratetype,
        refcount=counted.refcount,
        mapcount=page.mapcount,
        head=counted.pfn if page.is_tail else None,
    )


def charge(page: Page) -> str:
    """The memory cgroup that pays for a frame, in words; empty where none does."""
    if page.charge is ChargeKind.NONE:
        return ""
    if page.charge is ChargeKind.OBJECTS:
        return "each object on its own"
    whose = page.memory_group or "a group that is gone"
    return f"{whose}, as {'kernel' if page.charge is ChargeKind.KERNEL else 'user'} memory"


def watched(guest: Guest, pid: int, pfn: Pfn | None) -> Watched:
    """A task and a frame as they are now, and how memory lies. PID 0 and no PFN: none."""
    kernel = guest.kernel
    with guest.still():
        name, page = "", None
        with contextlib.suppress(KernelError):
            name = guest.task(pid).name if pid else ""
        with contextlib.suppress(KernelError):
            page = guest.page(pfn) if pfn is not None else None
        return Watched(
            pid=pid,
            name=name,
            owner=page.owner if page else None,
            label=printable(page.owner_label) if page else "",
            zones=tuple(zone for zone in guest.zones() if zone.populated),
            blocks=pageblocks.migratetypes(kernel),
            block_order=pageblocks.order(kernel),
            migratetypes=buddy.migratetypes(kernel),
            page_size=kernel.space.format.page_size,
        )
