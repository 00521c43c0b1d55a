"""What Linux keeps in entries that the MMU takes for not present (arch/x86/include/asm/pgtable.h)."""

from __future__ import annotations

from inspector.symbols import Kernel
from inspector.units import Pfn

_PRESENT = 1 << 0
_PROTNONE = 1 << 8  # _PAGE_BIT_PROTNONE: the global bit, which means nothing without P


def prot_none_pfn(kernel: Kernel, entry: int) -> Pfn | None:
    """The frame of a PROT_NONE page: mapped for Linux, not present for the MMU. None for other entries.

    The address bits stand inverted, so that a CPU with the L1TF flaw finds nothing: 6b28baca9b1f (4.19).
    """
    if entry & _PRESENT or not entry & _PROTNONE:
        return None
    paging = kernel.space.format
    return Pfn((~entry & (1 << paging.pa_bits) - 1) // paging.page_size)
