"""What the kernel's half of the address space is for (Documentation/arch/x86/x86_64/mm.rst)."""

from __future__ import annotations

from dataclasses import dataclass

from inspector.symbols import Kernel
from inspector.units import VirtAddr

_P4D = 39  # the bit that a P4D entry's index begins at: fixed areas are counted in its spans from the top
_TOP = 1 << 64
_IMAGE_BASE = _TOP - (2 << 30)  # __START_KERNEL_map
_FIXMAP_TOP = _TOP - (10 << 20)  # VSYSCALL_ADDR, rounded down to 2 MiB: the module area ends below the fixmap


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the kernel's address space, `start` to `end` exclusive."""

    name: str
    start: VirtAddr
    end: int


def regions(kernel: Kernel) -> tuple[Region, ...]:
    """The regions in address order. Where each one really ends is not kept: it ends where the next begins."""
    image_end = _IMAGE_BASE + kernel.vmcoreinfo.number("KERNEL_IMAGE_SIZE")
    starts = [
        ("direct map", kernel.page_offset),
        ("vmalloc", kernel.vmalloc_base),
        ("vmemmap", kernel.vmemmap_base),
        ("cpu entry area", _TOP - (4 << _P4D)),
        ("LDT remap", _TOP - (3 << _P4D)),
        ("espfix", _TOP - (2 << _P4D)),
        ("EFI", _TOP - (68 << 30)),
        ("kernel image", _IMAGE_BASE),
        ("modules", image_end),
        ("fixmap", _FIXMAP_TOP - (2 << 20) * 5),
    ]
    starts.sort(key=lambda named: named[1])
    ends = [start for _, start in starts[1:]] + [_TOP]
    return tuple(Region(name, VirtAddr(start), end) for (name, start), end in zip(starts, ends, strict=True))
