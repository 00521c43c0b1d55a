"""4-level and 5-level paging of x86-64 (Intel SDM Vol. 3A, 4.5; AMD APM Vol. 2, 5.3)."""

from __future__ import annotations

from functools import cache

from inspector.arch.format import EntryFlag, EntryKind, Level, PagingFormat, Shape
from inspector.errors import BadFormat
from inspector.units import PhysAddr

_TABLE = frozenset({EntryKind.TABLE})
_LARGE = frozenset({EntryKind.LARGE})
_PAGE = frozenset({EntryKind.PAGE})
_LEAF = _LARGE | _PAGE
_ALL = _TABLE | _LEAF

_P, _RW, _US, _PS, _NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63

FLAGS = (
    EntryFlag("P", 0, _ALL, "present: without it any use faults and the other 63 bits are the system's own"),
    EntryFlag("RW", 1, _ALL, "writable: without it writes fault (the kernel's too while CR0.WP=1)"),
    EntryFlag("US", 2, _ALL, "user: without it CPL 3 may not touch what lies below"),
    EntryFlag("PWT", 3, _ALL, "page-level write-through: bit 0 of the index into the PAT"),
    EntryFlag("PCD", 4, _ALL, "page-level cache disable: bit 1 of the index into the PAT"),
    EntryFlag("A", 5, _ALL, "accessed: the MMU sets it when it uses the entry, and never clears it"),
    EntryFlag("D", 6, _LEAF, "dirty: the MMU sets it when the page is written, and never clears it"),
    EntryFlag("PS", 7, _LARGE, "page size: the entry maps a large page, not a table"),
    EntryFlag("PAT", 7, _PAGE, "bit 2 of the index into the PAT (bit 12 in a large page's entry)"),
    EntryFlag("G", 8, _LEAF, "global: the translation outlives a load of CR3 while CR4.PGE=1"),
    EntryFlag("SW9", 9, _ALL, "ignored by the MMU, free for the system"),
    EntryFlag("SW10", 10, _ALL, "ignored by the MMU, free for the system"),
    EntryFlag("SW11", 11, _ALL, "ignored by the MMU (with HLAT paging: restart), free for the system"),
    EntryFlag("PAT", 12, _LARGE, "bit 2 of the index into the PAT (bit 7 in a 4 KiB page's entry)"),
    *(EntryFlag(f"SW{bit}", bit, _ALL, "ignored by the MMU, free for the system") for bit in range(52, 59)),
    EntryFlag(
        "PKEY", 59, _LEAF, "protection key: selects the rights in PKRU (user) or IA32_PKRS (kernel)", 4
    ),
    EntryFlag("NX", 63, _ALL, "no execute: instruction fetches from below fault while EFER.NXE=1"),
)


def _bits(low: int, high: int) -> int:
    """A mask of the bits low..high, both included."""
    return (1 << high + 1) - (1 << low)


@cache
def x86_64(levels: int = 4, maxphyaddr: int = 52, nx: bool = True) -> PagingFormat:
    """The format for 4 or 5 levels.

    maxphyaddr: physical address bits of the CPU (CPUID 80000008H:EAX[7:0]); those above it are reserved.
    nx: EFER.NXE; where it is off, bit 63 is reserved and everything is executable. 1 GiB pages are taken as
    supported (CPUID 80000001H:EDX.Page1GB).
    """
    above = _bits(maxphyaddr, 51) | (0 if nx else _NX)

    def shape(kind: EntryKind, test: int, value: int, low: int, reserved: int, pat: int = 0) -> Shape:
        """An entry whose address begins at bit `low`."""
        leaf = kind is not EntryKind.TABLE
        return Shape(
            kind=kind,
            test=(test, value),
            address=_bits(low, maxphyaddr - 1),
            reserved=above | reserved,
            writable=(_RW, _RW),
            user=(_US, _US),
            executable=(_NX if nx else 0, 0),
            memory_type=(3, 4, pat) if leaf else (3, 4),
            pkey=(59, 60, 61, 62) if leaf else (),
            flags=tuple(flag for flag in FLAGS if kind in flag.kinds),
        )

    def large(low: int) -> Shape:
        return shape(EntryKind.LARGE, _P | _PS, _P | _PS, low, _bits(13, low - 1), pat=12)

    top = shape(EntryKind.TABLE, _P, _P, 12, _PS)  # no large page is possible, so PS is reserved
    table = shape(EntryKind.TABLE, _P | _PS, _P, 12, 0)
    page = shape(EntryKind.PAGE, _P, _P, 12, 0, pat=7)
    tree = (
        Level("PGD", 48, 9, "PML5E", (top,)),
        Level("P4D" if levels == 5 else "PGD", 39, 9, "PML4E", (top,)),
        Level("PUD", 30, 9, "PDPTE", (large(30), table)),
        Level("PMD", 21, 9, "PDE", (large(21), table)),
        Level("PTE", 12, 9, "PTE", (page,)),
    )
    return PagingFormat(
        name=f"x86-64 {levels}-level",
        entry_size=8,
        pointer_size=8,
        va_bits=12 + 9 * levels,
        pa_bits=maxphyaddr,
        present_mask=_P,
        levels=tree[-levels:],
        flags=FLAGS,
        sign_extended=True,
    )


X86_64_4LEVEL = x86_64(levels=4, nx=True)
X86_64_5LEVEL = x86_64(levels=5, nx=True)

_CR0_PG, _CR4_PAE, _CR4_LA57, _EFER_LMA, _EFER_NXE = 1 << 31, 1 << 5, 1 << 12, 1 << 10, 1 << 11


def paging_of(cr0: int, cr3: int, cr4: int, efer: int) -> tuple[PagingFormat, PhysAddr]:
    """The format and the topmost table that a CPU's registers select (SDM Vol. 3A, 4.1.1).

    CR3's low 12 bits (PCID, or PWT and PCD) and its LAM bits are left out. Raises BadFormat where the CPU
    does not use 64-bit paging.
    """
    if not cr0 & _CR0_PG:
        raise BadFormat("paging is off on this CPU (CR0.PG=0); let the guest boot further")
    if not (cr4 & _CR4_PAE and efer & _EFER_LMA):
        raise BadFormat("this CPU is not in 64-bit mode (EFER.LMA=0); only x86-64 paging can be read")
    paging = x86_64(levels=5 if cr4 & _CR4_LA57 else 4, nx=bool(efer & _EFER_NXE))
    return paging, PhysAddr(cr3 & _bits(12, 51))
