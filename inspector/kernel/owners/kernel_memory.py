"""What the kernel's page tables show beside the direct map, and slabs and other pages that bear a mark."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest, KernelError
from inspector.kernel import ksyms, modules, vmalloc
from inspector.kernel.bulk import mapped_frames
from inspector.kernel.frames import FrameState
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners.canvas import UNCLAIMED, Canvas
from inspector.kernel.owners.model import Owner
from inspector.kernel.owners.survey import all_threads
from inspector.kernel.pageflags import PageTypes
from inspector.kernel.recall import recall
from inspector.kernel.slab_caches import Caches
from inspector.kernel.slabs import slab_owners
from inspector.symbols import Kernel
from inspector.units import VirtAddr

_MAX_FTRACE_PAGES = 1 << 16
_MAX_ORDER = 20

Frames = tuple[NDArray[np.uint64], Owner, list[str], NDArray[np.uint32]]
"""PFNs, their owner, and for each which of the texts is its label."""

_MOVABLE = np.uint64(2)  # PAGE_MAPPING_MOVABLE, alone in the low bits of page->mapping


def paint(canvas: Canvas) -> None:
    """mem_map, modules, vmalloc and per-CPU memory; slabs and marked pages."""
    for frames in (_standing, _vmalloc):
        for pfns, owner, texts, which in recall(canvas.kernel, frames):
            canvas.paint(pfns, owner, canvas.labelled(texts)[which])
    _slabs(canvas)
    _marked(canvas)


def paint_stacks(canvas: Canvas) -> None:
    """Each thread's kernel stack: a vmalloc area of its own, or pages of the direct map."""
    pfns, owner, names, which = recall(canvas.kernel, _stacks)
    canvas.paint(pfns, owner, canvas.labelled(names)[which], (*UNCLAIMED, Owner.VMALLOC))


def _stacks(kernel: Kernel) -> Frames:
    threads = recall(kernel, all_threads)
    found = mapped_frames(kernel, threads.stacks, threads.stacks + np.uint64(stack_size(kernel)))
    return found["pfn"].copy(), Owner.KERNEL_STACK, threads.names, found["index"].copy()


def stack_size(kernel: Kernel) -> int:
    """Bytes of a kernel stack (C: THREAD_SIZE), from the linker's bounds of the first task's."""
    for name in ("stack", "task"):  # 4d99fa1b2cd4 (6.10) renamed them
        if f"__start_init_{name}" in kernel.symbols:
            return kernel.symbol(f"__end_init_{name}") - kernel.symbol(f"__start_init_{name}")
    raise KernelError("this kernel does not bound its first task's stack")


def _standing(kernel: Kernel) -> list[Frames]:
    """What seldom changes: mem_map, modules and the records of all functions that can be traced."""
    memmap = MemMap(kernel)
    bounds = memmap.addresses(np.array(memmap.runs, np.uint64))
    structs = mapped_frames(kernel, bounds[:, 0], bounds[:, 1])
    loaded = modules.modules(kernel)
    code = modules.module_frames(kernel, loaded)
    records = np.array(_ftrace_records(kernel), np.uint64).reshape(-1, 2)
    traced = mapped_frames(kernel, records[:, 0], records[:, 1])
    return [
        _labelled(structs, Owner.MEMMAP),
        (code["pfn"].copy(), Owner.MODULE, [module.name for module in loaded], code["index"].copy()),
        _labelled(traced, Owner.MARKED, "ftrace records"),
    ]


def _labelled(found: NDArray[np.void], owner: Owner, label: str = "") -> Frames:
    """Frames that all have one label."""
    return found["pfn"].copy(), owner, [label], np.zeros(len(found), np.uint32)


def _vmalloc(kernel: Kernel) -> list[Frames]:
    """Areas by caller; an ioremap()ed device has no struct page, or is not ours to give."""
    table = vmalloc.busy_areas(kernel)
    who, which = np.unique(table["caller"], return_inverse=True)
    callers = _callers(kernel, who.tolist())
    percpu = np.array([caller.startswith("pcpu_") for caller in callers], np.bool_)[which]
    found = vmalloc.area_frames(kernel, table)
    io = (table["flags"] & np.uint64(vmalloc.VM_FLAGS["ioremap"])) != 0
    chunks, rest = found[(percpu & ~io)[found["index"]]], found[~(percpu | io)[found["index"]]]
    return [
        _labelled(chunks, Owner.PERCPU),
        (rest["pfn"].copy(), Owner.VMALLOC, callers, which[rest["index"]].astype(np.uint32)),
    ]


def _callers(kernel: Kernel, callers: list[int]) -> list[str]:
    """What %pS prints of each return address; nothing for none."""
    named = ksyms.symbolise(kernel, (each for each in callers if each), modules.modules(kernel))
    return [named.get(each, "") for each in callers]


def _slabs(canvas: Canvas) -> None:
    """Slabs by cache."""
    caches = Caches(canvas.kernel)
    cache, order = slab_owners(canvas.kernel, caches, canvas.frames.slab_structs)
    names = canvas.labelled([*caches.names, "no cache"])
    index = np.minimum(cache, len(caches.names))  # NO_CACHE is beyond all
    canvas.paint_blocks(canvas.frames.slabs.view(np.uint64), order, Owner.SLAB, names[index])


def _ftrace_records(kernel: Kernel) -> list[tuple[VirtAddr, int]]:
    """Where each block of them begins and ends (kernel/trace/ftrace.c)."""
    found: list[tuple[VirtAddr, int]] = []
    page_size = kernel.space.format.page_size
    at = kernel.word("ftrace_pages_start") if "ftrace_pages_start" in kernel.symbols else 0
    for _ in range(_MAX_FTRACE_PAGES):
        if not at:
            return found
        block = kernel.view("ftrace_page", VirtAddr(at))
        # db42523b4f3e (5.13) keeps the order; before, how many records there is room for.
        if block.has("order"):
            size = page_size << block.int("order") if 0 <= block.int("order") <= _MAX_ORDER else 0
        else:
            size = block.int("size") * kernel.types.sizeof("dyn_ftrace")
        found.append((block.ptr("records"), VirtAddr(block.ptr("records") + size & kernel.pointer_mask)))
        at = block.ptr("next")
    raise CorruptGuest("the blocks of ftrace records do not end")


def _marked(canvas: Canvas) -> None:
    """Pages whose page_type says what they are, or that a driver of a known kind can move."""
    kernel, frames = canvas.kernel, canvas.frames
    places = np.flatnonzero(frames.used_as(FrameState.KERNEL))
    places = places[canvas.owner[frames.used[places]] == Owner.UNMARKED]
    types = PageTypes(kernel)
    # A compound page's type is its head's.
    kinds = types.kinds(frames.word[frames.head[places]])
    labels = canvas.labelled([name.replace("_", " ") for name in types.names])
    typed = kinds != 0
    canvas.paint(frames.used[places[typed]].astype(np.uint64), Owner.MARKED, labels[kinds[typed]])
    movable = places[~typed & (frames.mapping[places] & np.uint64(3) == _MOVABLE)]
    if not len(movable):
        return
    movers, which = np.unique(frames.mapping[movable] & ~np.uint64(3), return_inverse=True)
    # 68f2736a8583 (6.0) put the driver's struct movable_operations there; an address_space before.
    if len(movers) and kernel.types.has("address_space_operations", "isolate_page"):
        at = movers + np.uint64(kernel.types.offsetof("address_space", "a_ops"))
        movers, _ = kernel.space.gather(at, np.dtype(np.uint64))
    named = ksyms.symbolise(kernel, movers.tolist(), modules.modules(kernel))
    labels = canvas.labelled([named[mover].partition("+")[0] for mover in movers.tolist()])
    canvas.paint(frames.used[movable].astype(np.uint64), Owner.MARKED, labels[which])
