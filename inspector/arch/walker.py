"""One virtual address followed level by level, as the MMU does it; a fault is an answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from inspector.arch.format import EntryKind, Level, PagingFormat, Shape, field
from inspector.errors import OutsideRam
from inspector.memory import PhysicalMemory
from inspector.units import Pfn, PhysAddr, VirtAddr


class FaultKind(Enum):
    """Why an address does not translate."""

    NON_CANONICAL = "non-canonical address"
    NOT_PRESENT = "entry not present"
    RESERVED_BITS = "reserved bits set"
    OUTSIDE_RAM = "table outside RAM"


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One entry on the way: where it is, its raw value, how it reads; `target` is the next table or the page.

    `shape` and `target` are None where the entry is not present; target also where reserved bits are set.
    """

    level: Level
    index: int
    entry_address: PhysAddr
    entry: int
    flags: tuple[str, ...]
    shape: Shape | None
    target: PhysAddr | None

    def __repr__(self) -> str:
        return f"{self.level.name}[{self.index}]={self.entry:#x}"

    @property
    def leaf(self) -> bool:
        """Does the entry map memory, rather than lead to a table?"""
        return self.shape is not None and self.shape.leaf


@dataclass(frozen=True, slots=True)
class WalkFault:
    """Where a walk ended without a page, and `what` the MMU would do about it.

    `level` and what follows are None where no entry was read: a non-canonical address.
    `entry` is None where the table is outside RAM.
    """

    kind: FaultKind
    level: Level | None
    entry_address: PhysAddr | None
    entry: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Walk:
    """A virtual address and every entry on its way to a physical one.

    Either `phys` (of this very byte) and `page_size` (bytes) are set, or `fault`. The page need not be RAM.
    """

    format: PagingFormat
    root: PhysAddr
    va: VirtAddr
    steps: tuple[WalkStep, ...]
    phys: PhysAddr | None
    page_size: int | None
    fault: WalkFault | None

    def __repr__(self) -> str:
        end = f"{self.phys:#x}" if self.phys is not None else self.fault.what if self.fault else "nothing"
        return f"<Walk {self.va:#x}: {' '.join(map(repr, self.steps))} -> {end}>"

    @property
    def leaf(self) -> WalkStep | None:
        """The entry that maps the page; None after a fault."""
        return self.steps[-1] if self.phys is not None else None

    @property
    def pfn(self) -> Pfn | None:
        """The frame of the smallest page size that holds the byte."""
        return None if self.phys is None else Pfn(self.phys // self.format.page_size)

    @property
    def writable(self) -> bool:
        """Does every level grant writing? False after a fault."""
        return self.phys is not None and all(_holds(s.shape.writable, s.entry) for s in self.steps if s.shape)

    @property
    def user(self) -> bool:
        """Does every level grant access to user mode? False after a fault."""
        return self.phys is not None and all(_holds(s.shape.user, s.entry) for s in self.steps if s.shape)

    @property
    def executable(self) -> bool:
        """Does no level forbid execution? False after a fault."""
        return self.phys is not None and all(
            _holds(s.shape.executable, s.entry) for s in self.steps if s.shape
        )

    @property
    def memory_type(self) -> int | None:
        """The page's memory-type index (x86: PAT, PCD and PWT, an index into IA32_PAT)."""
        leaf = self.leaf
        return field(leaf.shape.memory_type, leaf.entry) if leaf and leaf.shape else None

    @property
    def pkey(self) -> int | None:
        """The page's protection key (it counts only while CR4.PKE or CR4.PKS is set)."""
        leaf = self.leaf
        return field(leaf.shape.pkey, leaf.entry) if leaf and leaf.shape else None


def walk(memory: PhysicalMemory, format: PagingFormat, root: PhysAddr, va: VirtAddr) -> Walk:
    """Follow `va` from the topmost table at `root`. Never raises for what the guest's memory holds."""
    if not format.is_canonical(va):
        return Walk(format, root, va, (), None, None, _non_canonical(format))
    steps: list[WalkStep] = []
    table = root
    for level in format.levels:
        index = level.index(va)
        address = PhysAddr(table + index * format.entry_size)
        try:
            entry = int.from_bytes(memory.read(address, format.entry_size), "little")
        except OutsideRam:
            what = (
                f"no RAM answers at {address:#x}, where the {level.name} entry should be: "
                "the CPU would take whatever the bus gives it for an entry"
            )
            fault = WalkFault(FaultKind.OUTSIDE_RAM, level, address, None, what)
            return Walk(format, root, va, tuple(steps), None, None, fault)
        shape = level.shape(entry)
        bad = shape.reserved & entry if shape else 0
        target = PhysAddr(entry & shape.address) if shape and not bad else None
        flags = shape.names(entry) if shape else ()
        steps.append(WalkStep(level, index, address, entry, flags, shape, target))
        if shape is None or target is None:
            fault = _bad_entry(level, address, entry, bad)
            return Walk(format, root, va, tuple(steps), None, None, fault)
        if shape.kind is not EntryKind.TABLE:
            phys = PhysAddr(target | va & level.span - 1)
            return Walk(format, root, va, tuple(steps), phys, level.span, None)
        table = target
    raise AssertionError(f"the last level of {format.name} has an entry shape that leads to a table")


def _holds(test: tuple[int, int], entry: int) -> bool:
    return entry & test[0] == test[1]


def _non_canonical(format: PagingFormat) -> WalkFault:
    what = (
        f"#GP(0), or #SS(0) for a stack reference: bits {8 * format.pointer_size - 1}..{format.va_bits - 1} "
        "of the address are not all equal"
    )
    return WalkFault(FaultKind.NON_CANONICAL, None, None, None, what)


def _bad_entry(level: Level, address: PhysAddr, entry: int, bad: int) -> WalkFault:
    if bad:
        bits = ", ".join(str(bit) for bit in range(bad.bit_length()) if bad >> bit & 1)
        what = f"#PF with error code P=1, RSVD=1: the {level.name} entry sets reserved bits ({bits})"
        return WalkFault(FaultKind.RESERVED_BITS, level, address, entry, what)
    what = f"#PF with error code P=0: the {level.name} entry is not present"
    return WalkFault(FaultKind.NOT_PRESENT, level, address, entry, what)
