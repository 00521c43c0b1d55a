"""What memory was for before there was a page allocator: firmware, the kernel's image, what boot took."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inspector.errors import InspectorError
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners.canvas import Canvas
from inspector.kernel.owners.model import Owner
from inspector.kernel.recall import recall
from inspector.kernel.resources import iomem
from inspector.kernel.swiotlb import bounce_buffer
from inspector.kernel.zones import nodes
from inspector.symbols import Kernel
from inspector.units import Pfn, VirtAddr

Run = tuple[int, int, Owner, str, Owner]
"""Physical start and end, the owner, its label, and which owner it takes the place of."""

Segments = tuple[NDArray[np.int64], NDArray[np.uint8], list[str], NDArray[np.uint32]]
"""The first PFN of each, its owner, and which of the texts is its label."""


def paint(canvas: Canvas) -> None:
    """Firmware, the image and what symbols lead to in boot memory."""
    starts, owners, texts, labels = recall(canvas.kernel, _segments)
    pfns = canvas.frames.reserved
    edges = [*pfns.searchsorted(starts).tolist(), len(pfns)]
    sizes = [end - first for first, end in pairwise(edges)]
    canvas.owner[pfns] = np.repeat(owners, sizes)
    canvas.detail[pfns] = np.repeat(canvas.labelled(texts)[labels], sizes)


def _segments(kernel: Kernel) -> Segments:
    """What each reserved frame is by its place, from 0 on: all runs, one over the other."""
    memmap = MemMap(kernel)
    size, end = memmap.page_size, memmap.end * memmap.page_size
    runs = [
        (first // size, -(-last // size), owner, label, over)
        for first, last, owner, label, over in (
            *_resources(kernel, end),
            *_boot_memory(kernel),
            *_first_percpu_chunk(kernel),
        )
    ]
    starts = sorted({0, *(min(edge, memmap.end) for first, last, *_ in runs for edge in (first, last))})
    owners, labels, texts = [], [], {"": 0}
    for start in starts:
        now, text = Owner.RESERVED, ""
        for first, last, owner, label, over in runs:
            if first <= start < last and now == over:
                now, text = owner, label
        owners.append(now)
        labels.append(texts.setdefault(text, len(texts)))
    return np.array(starts), np.array(owners, np.uint8), list(texts), np.array(labels, np.uint32)


def paint_zero_pages(canvas: Canvas) -> None:
    """The page of zeros, and the huge one where it has been made."""
    for pfns, owner in recall(canvas.kernel, _zero_pages):
        canvas.paint(pfns, owner, over=tuple(Owner))


def _zero_pages(kernel: Kernel) -> list[tuple[NDArray[np.uint64], Owner]]:
    """The PFNs of each."""
    size = kernel.space.format.page_size
    found: list[tuple[NDArray[np.uint64], Owner]] = []
    if "empty_zero_page" in kernel.symbols:
        zero = kernel.virt_to_phys(kernel.symbol("empty_zero_page")) // size
        found.append((np.array([zero], np.uint64), Owner.ZERO_PAGE))
    first = _huge_zero(kernel)
    if first is not None:
        pfns = np.arange(first, first + kernel.space.format.levels[-2].span // size, dtype=np.uint64)
        found.append((pfns, Owner.HUGE_ZERO_PAGE))
    return found


def _resources(kernel: Kernel, end: int) -> Iterator[Run]:
    """What the resource tree says of memory that the page allocator never had."""
    resources = iomem(kernel)
    border = 0
    for resource in sorted(resources, key=lambda resource: resource.start):
        if resource.depth == 0 and "SYSRAM" in resource.flag_names:
            yield border, resource.start, Owner.FIRMWARE, "", Owner.RESERVED
            border = resource.end
    yield border, end, Owner.FIRMWARE, "", Owner.RESERVED
    for resource in resources:
        if resource.depth == 0 and "SYSRAM" not in resource.flag_names:
            yield resource.start, resource.end, Owner.FIRMWARE, resource.name, Owner.FIRMWARE
        elif resource.name.startswith("Kernel "):
            # What of it boot gave back, such as the unused part of .bss..decrypted, is not reserved.
            label = resource.name.removeprefix("Kernel ")
            yield resource.start, resource.end, Owner.KERNEL_IMAGE, label, Owner.RESERVED


def _boot_memory(kernel: Kernel) -> Iterator[Run]:
    """What was taken before there was a page allocator, as far as symbols lead to it."""
    text = kernel.symbol("_text")
    start = kernel.virt_to_phys(text)
    # _end itself need not be mapped.
    end = start + kernel.symbol("_end") - text
    yield start, end, Owner.KERNEL_IMAGE, "brk and padding", Owner.RESERVED
    # fc4f4be9b5271 (5.13) keeps the first MiB, where real-mode code and the firmware's habits are.
    yield 0, 1 << 20, Owner.RESERVED, "first MiB", Owner.RESERVED
    for node in nodes(kernel):
        start = kernel.virt_to_phys(node.address)
        yield start, start + node.type.size, Owner.RESERVED, "struct pglist_data", Owner.RESERVED
    if bounce := bounce_buffer(kernel):
        yield bounce.start, bounce.end, Owner.RESERVED, "swiotlb", Owner.RESERVED
    for at, size, label in _boot_tables(kernel):
        phys = at - kernel.page_offset
        if phys >= 0:
            yield phys, phys + size, Owner.RESERVED, label, Owner.RESERVED


def _boot_tables(kernel: Kernel) -> Iterator[tuple[int, int, str]]:
    """Address, bytes and name of tables that boot memory holds."""
    symbols = kernel.symbols
    if "dentry_hashtable" in symbols and "d_hash_shift" in symbols:
        bits = 32 - kernel.space.u32(kernel.symbol("d_hash_shift"))  # fs/dcache.c takes the upper ones
        if 0 < bits < 32:
            yield kernel.word("dentry_hashtable"), kernel.pointer_size << bits, "dentry_hashtable"
    if "inode_hashtable" in symbols and "i_hash_mask" in symbols:
        entries = kernel.space.u32(kernel.symbol("i_hash_mask")) + 1
        yield kernel.word("inode_hashtable"), entries * kernel.pointer_size, "inode_hashtable"
    if "mem_section" in symbols:  # with 5 levels 2 MiB of pointers (mm/sparse.c)
        size = kernel.vmcoreinfo.length("mem_section") * kernel.pointer_size
        yield kernel.word("mem_section"), size, "mem_section"


def _first_percpu_chunk(kernel: Kernel) -> Iterator[Run]:
    """The chunk that boot memory holds: one unit a CPU (mm/percpu.c, pcpu_unit_offsets)."""
    symbols = kernel.symbols
    if not all(name in symbols for name in ("pcpu_base_addr", "pcpu_unit_size", "pcpu_unit_offsets")):
        return
    base = kernel.word("pcpu_base_addr")
    size = kernel.space.u32(kernel.symbol("pcpu_unit_size"))
    chunk = kernel.word("pcpu_first_chunk") if "pcpu_first_chunk" in symbols else 0
    if chunk:  # the dynamic part, which is the last: boot gave back the rest of each unit, and used it anew
        dynamic = kernel.view("pcpu_chunk", VirtAddr(chunk))
        end = dynamic.ptr("base_addr") + dynamic.int("nr_pages") * kernel.space.format.page_size
        size = min(max(end - base, 0), size)
    offsets = kernel.word("pcpu_unit_offsets")
    for cpu in kernel.possible_cpus:
        start = base + kernel.space.u64(VirtAddr(offsets + cpu * kernel.pointer_size))
        phys = kernel.space.translate(VirtAddr(start & kernel.pointer_mask))
        if phys is not None:
            yield phys, phys + size, Owner.PERCPU, f"CPU {cpu}", Owner.RESERVED


def _huge_zero(kernel: Kernel) -> Pfn | None:
    """Its first PFN; None where there is none."""
    # 5691753d73a2 (6.10) made it a folio; a page before.
    for name in ("huge_zero_folio", "huge_zero_page"):
        if name in kernel.symbols and (page := kernel.word(name)):
            try:
                return MemMap(kernel).pfn(VirtAddr(page))
            except InspectorError:
                return None
    return None
