"""Where Linux is in a guest's memory, found from the registers of one CPU, however much RAM there is.

The way: CR3 -> page tables -> IDT -> a handler in kernel text -> the mappings of the kernel image -> a
pointer there to the page that begins with OSRELEASE=.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.arch import X86_64_4LEVEL, X86_64_5LEVEL, AddressSpace, PagingFormat, paging_of
from inspector.errors import BadFormat, CorruptGuest, NoSuchSymbol, OutsideRam, PageFault
from inspector.memory import PhysicalMemory
from inspector.symbols import vmcoreinfo
from inspector.symbols.vmcoreinfo import Vmcoreinfo
from inspector.units import PhysAddr, VirtAddr

# The kernel image of x86-64 lies in these, wherever KASLR puts it (Documentation/arch/x86/x86_64/mm.rst).
_IMAGE_START, _IMAGE_END = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000
# __START_KERNEL_map, arch/x86/include/asm/page_64_types.h
_START_KERNEL_MAP = _IMAGE_START
_WORD = (1 << 64) - 1
_MAX_HOLE = 32 << 20
_HEAD = np.dtype(f"S{len(vmcoreinfo.MAGIC)}")
_MAX_IMAGE = 256 << 20  # bytes of the image that are searched; a stock kernel has 40 to 60 MiB
_PTI_USER_BIT = (
    1 << 12
)  # page table isolation: the user half of a task's pair of PGDs (arch/x86/include/asm/pgtable.h)
_PIECE = 1 << 16  # words that are searched at once: what fits into a cache
_MAX_POINTERS = 1 << 20  # that are followed; a stock kernel has about 60,000
_GATE = 16  # bytes of an IDT gate (SDM Vol. 3A, 6.14.1)
_NOT_BOOTED = "is the guest still in its firmware, or not booted far enough?"


class CpuState(Protocol):
    """The registers that lead to the kernel, as plain numbers."""

    @property
    def cr0(self) -> int: ...
    @property
    def cr3(self) -> int: ...
    @property
    def cr4(self) -> int: ...
    @property
    def efer(self) -> int: ...
    @property
    def idt_base(self) -> int: ...


@dataclass(frozen=True, slots=True)
class KernelLocation:
    """A running Linux: its VMCOREINFO, its own page tables (swapper_pg_dir) and its image [start, end)."""

    vmcoreinfo: Vmcoreinfo
    format: PagingFormat
    root: PhysAddr
    image_start: VirtAddr
    image_end: VirtAddr
    image_phys: PhysAddr


def locate(memory: PhysicalMemory, cpu: CpuState) -> KernelLocation:
    """Find the kernel that a CPU runs, be it in user or in kernel mode. Raises BadFormat with the reason."""
    try:
        format_, root = paging_of(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
    except BadFormat as error:
        raise BadFormat(f"no Linux kernel found: {error}") from error
    failure: BadFormat | None = None
    # Under page table isolation a CPU in user mode has the PGD without the kernel: try its sibling first.
    for candidate in dict.fromkeys((root & ~_PTI_USER_BIT, root)):
        space = AddressSpace(memory, format_, PhysAddr(candidate))
        try:
            return _locate(space, cpu.idt_base)
        except BadFormat as error:
            failure = error
    raise BadFormat(f"no Linux kernel found: {failure}; {_NOT_BOOTED}")


def locate_by(memory: PhysicalMemory, info: Vmcoreinfo) -> KernelLocation:
    """Find the kernel that wrote this VMCOREINFO: a crash dump has it, and no control registers.

    C: arch_crash_save_vmcoreinfo() of arch/x86. Raises BadFormat.
    """
    try:
        root = info.symbol("swapper_pg_dir") - _START_KERNEL_MAP + info.number("phys_base")
        deep = info.has("NUMBER(pgtable_l5_enabled)") and info.number("pgtable_l5_enabled") != 0
        text = info.symbol("_stext")
    except NoSuchSymbol as error:
        raise BadFormat(f"no Linux kernel found: {error}") from error
    if not memory.contains(np.array([root & _WORD], np.uint64), 1)[0]:
        raise BadFormat(f"no Linux kernel found: VMCOREINFO has swapper_pg_dir at {root:#x}, outside of RAM")
    space = AddressSpace(memory, X86_64_5LEVEL if deep else X86_64_4LEVEL, PhysAddr(root))
    try:
        return _location(space, _image(space, text), info)
    except BadFormat as error:
        raise BadFormat(f"no Linux kernel found where VMCOREINFO has it: {error}") from error


def _locate(space: AddressSpace, idt_base: int) -> KernelLocation:
    handler = _handler(space, idt_base)
    if not _IMAGE_START <= handler < _IMAGE_END:
        raise BadFormat(f"the IDT's first handler, {handler:#x}, is not in a kernel image")
    image = _image(space, handler)
    return _location(space, image, _vmcoreinfo(space, image))


def _image(space: AddressSpace, inside: int) -> NDArray[np.void]:
    """The mappings of the kernel image, of which an address is known."""
    try:
        rows = space.scan(_IMAGE_START, _IMAGE_END)
    except CorruptGuest as error:
        raise BadFormat(str(error)) from error
    return _image_around(rows, inside)


def _location(space: AddressSpace, image: NDArray[np.void], info: Vmcoreinfo) -> KernelLocation:
    try:
        root = space.translate(info.symbol("swapper_pg_dir"))
    except NoSuchSymbol as error:
        raise BadFormat(str(error)) from error
    if root is None:
        raise BadFormat("swapper_pg_dir, which VMCOREINFO names, is not mapped")
    last = image[-1]
    return KernelLocation(
        vmcoreinfo=info,
        format=space.format,
        root=root,
        image_start=VirtAddr(int(image["va"][0])),
        image_end=VirtAddr(int(last["va"]) + int(last["size"])),
        image_phys=PhysAddr(int(image["pa"][0])),
    )


def _handler(space: AddressSpace, idt_base: int) -> int:
    """The address of the first exception's handler: bits 0-15, 48-63 and 64-95 of its gate."""
    try:
        gate = int.from_bytes(space.read(VirtAddr(idt_base), _GATE), "little")
    except PageFault as error:
        raise BadFormat(f"the IDT at {idt_base:#x} is not mapped") from error
    return gate & 0xFFFF | (gate >> 48 & 0xFFFF) << 16 | (gate >> 64 & 0xFFFF_FFFF) << 32


def _image_around(rows: NDArray[np.void], inside: int) -> NDArray[np.void]:
    """The kernel image: the mapping of an address inside, and all that lie around it without a wide gap.

    Small holes are its own: freed init memory, and under page table isolation the ends of its sections.
    """
    start, end = rows["va"], rows["va"] + rows["size"]
    at = int(np.searchsorted(start, np.uint64(inside), "right")) - 1
    if at < 0 or inside >= int(end[at]):
        raise BadFormat(f"the kernel's address {inside:#x} is not mapped")
    breaks = np.flatnonzero(start[1:] - end[:-1] > np.uint64(_MAX_HOLE)) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    piece = bisect_right(edges, at)
    return rows[edges[piece - 1] : edges[piece]]


def _vmcoreinfo(space: AddressSpace, image: NDArray[np.void]) -> Vmcoreinfo:
    """Follow every pointer to a page in the image to one that begins with OSRELEASE=.

    C: vmcoreinfo_data, a page that crash_save_vmcoreinfo_init() allocates and fills (subsys_initcall).
    """
    page = space.format.page_size
    candidates = [np.empty(0, np.uint64)]
    for pa, size in _physical_runs(image):
        try:
            words = space.memory.array(pa, size).view("<u8")
        except OutsideRam as error:
            raise BadFormat(f"the kernel image is not in RAM: {error}") from error
        for at in range(0, len(words), _PIECE):
            piece = words[at : at + _PIECE]
            candidates.append(piece[piece & np.uint64(page - 1 | 1 << 63) == np.uint64(1 << 63)])
    pages = np.concatenate(candidates)[:_MAX_POINTERS]
    heads, ok = space.gather(pages, _HEAD)
    for address in pages[ok & (heads == vmcoreinfo.MAGIC)].tolist():
        with suppress(BadFormat, PageFault, OutsideRam):
            return Vmcoreinfo.parse(space.read(VirtAddr(address), vmcoreinfo.SIZE))
    raise BadFormat("nothing in the kernel image points to VMCOREINFO")


def _physical_runs(image: NDArray[np.void]) -> Iterator[tuple[PhysAddr, int]]:
    """What lies together in physical memory, up to _MAX_IMAGE bytes in all."""
    left = _MAX_IMAGE
    ends = image["pa"] + image["size"]
    firsts = np.flatnonzero(np.concatenate(([True], image["pa"][1:] != ends[:-1])))
    for first, last in zip(firsts.tolist(), [*(firsts[1:] - 1).tolist(), len(image) - 1], strict=True):
        pa = int(image["pa"][first])
        size = min(int(ends[last]) - pa, left)
        left -= size
        if size:
            yield PhysAddr(pa), size
