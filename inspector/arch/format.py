"""A paging format as data: levels, the shapes of their entries, masks and flags. Knows no processor by name.

The walker and the scanner read these tables and nothing else, so that another architecture is another table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from inspector.units import VirtAddr


class EntryKind(Enum):
    """What an entry that is present leads to."""

    TABLE = "table"
    LARGE = "large page"
    PAGE = "page"


@dataclass(frozen=True, slots=True)
class EntryFlag:
    """A named bit, or a field of `width` bits from `bit` on, of the entries of some kinds."""

    name: str
    bit: int
    kinds: frozenset[EntryKind]
    meaning: str
    width: int = 1

    def value(self, entry: int) -> int:
        """The bit's or field's value in a raw entry."""
        return entry >> self.bit & (1 << self.width) - 1


Test: TypeAlias = tuple[int, int]
"""(mask, value): holds for an entry where `entry & mask == value`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to read an entry of a level; the tests of a level's shapes exclude each other."""

    kind: EntryKind
    test: Test  # the entry is present and has this shape
    address: int  # the bits that hold the physical address of the next table or the page
    reserved: int  # bits that must be zero; the MMU faults where they are not
    writable: Test  # access that this entry grants; it must be granted on every level
    user: Test
    executable: Test
    memory_type: tuple[int, ...] = ()  # the bits of the memory-type index, lowest first
    pkey: tuple[int, ...] = ()  # the bits of the protection key, lowest first
    flags: tuple[EntryFlag, ...] = ()  # those of the format that this kind of entry has

    def __repr__(self) -> str:
        return f"<Shape {self.kind.value}>"

    @property
    def leaf(self) -> bool:
        """Does the entry map memory, rather than lead to a table?"""
        return self.kind is not EntryKind.TABLE

    def names(self, entry: int) -> tuple[str, ...]:
        """The names of the flags that a raw entry sets, lowest bit first; a field as `PKEY=3`."""
        return tuple(
            [
                flag.name if flag.width == 1 else f"{flag.name}={flag.value(entry)}"
                for flag in self.flags
                if entry >> flag.bit & (1 << flag.width) - 1
            ]
        )


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables: `bits` of the virtual address from `shift` on are the index into a table.

    `name` is Linux's for the level, `manual` the processor manual's for an entry.
    """

    name: str
    shift: int
    bits: int
    manual: str
    shapes: tuple[Shape, ...]

    def __repr__(self) -> str:
        return f"<Level {self.name}>"

    @property
    def large(self) -> bool:
        """May an entry map a large page?"""
        return any(shape.kind is EntryKind.LARGE for shape in self.shapes)

    @property
    def entries(self) -> int:
        """Entries of one table."""
        return 1 << self.bits

    @property
    def span(self) -> int:
        """Bytes of virtual memory that one entry covers."""
        return 1 << self.shift

    def index(self, va: int) -> int:
        """The index that an address has into a table of this level."""
        return va >> self.shift & (1 << self.bits) - 1

    def shape(self, entry: int) -> Shape | None:
        """How a raw entry is to be read; None where it is not present."""
        for shape in self.shapes:
            if entry & shape.test[0] == shape.test[1]:
                return shape
        return None


@dataclass(frozen=True, slots=True)
class PagingFormat:
    """A paging format. `levels` stand top first; sizes are in bytes.

    `sign_extended`: the address bits above va_bits must repeat the highest used one (x86's canonical form).
    """

    name: str
    entry_size: int
    pointer_size: int
    va_bits: int
    pa_bits: int
    present_mask: int  # an entry with none of these bits is not present, and its other bits are the system's
    levels: tuple[Level, ...]
    flags: tuple[EntryFlag, ...]
    sign_extended: bool

    def __repr__(self) -> str:
        return f"<PagingFormat {self.name}>"

    @property
    def page_size(self) -> int:
        """The smallest page."""
        return self.levels[-1].span

    @property
    def entry_type(self) -> np.dtype[np.unsignedinteger]:
        """The numpy type of an entry in guest memory."""
        return np.dtype(f"<u{self.entry_size}")

    def canonical(self, va: int) -> VirtAddr:
        """The address with its unused upper bits made what the MMU wants to see."""
        va &= (1 << self.va_bits) - 1
        if self.sign_extended and va >> self.va_bits - 1:
            va |= (1 << 8 * self.pointer_size) - (1 << self.va_bits)
        return VirtAddr(va)

    def is_canonical(self, va: int) -> bool:
        """Can the MMU translate this address at all?"""
        return va == self.canonical(va)

    def canonical_array(self, vas: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """canonical() of many addresses."""
        unused = 64 - self.va_bits
        if not self.sign_extended or not unused:
            return vas & np.uint64((1 << self.va_bits) - 1)
        low = vas << np.uint64(unused)
        return (low.view(np.int64) >> np.int64(unused)).view(np.uint64)

    def present(self, entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which raw entries are present (it tells apart the rows of scan(nonpresent=True))."""
        there: NDArray[np.bool_] = (entries & np.uint64(self.present_mask)) != 0
        return there


def field(bits: tuple[int, ...], entry: int) -> int:
    """The number that scattered bits of an entry make, lowest first."""
    return sum((entry >> bit & 1) << place for place, bit in enumerate(bits))
