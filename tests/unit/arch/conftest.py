"""Hand-made x86-64 page tables, and a naive MMU to judge by, both written from SDM Vol. 3A, 4.5 alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from inspector.arch import X86_64_4LEVEL, X86_64_5LEVEL, AddressSpace, PagingFormat
from inspector.memory import MappedRam, RamBlock
from inspector.units import PhysAddr

PAGE = 0x1000
P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63


class Tables:
    """Page tables built by hand in a bytearray of RAM; RAM starts at `base` in the guest."""

    def __init__(self, levels: int = 4, pages: int = 32, base: int = 0x40000) -> None:
        self.levels = levels
        self.base = base
        self.bytes = bytearray(pages * PAGE)
        self.root = PhysAddr(base)
        self._next = base + PAGE

    @property
    def format(self) -> PagingFormat:
        return X86_64_5LEVEL if self.levels == 5 else X86_64_4LEVEL

    @property
    def ram(self) -> MappedRam:
        return MappedRam(self.bytes, [RamBlock(PhysAddr(self.base), len(self.bytes), 0)])

    @property
    def space(self) -> AddressSpace:
        return AddressSpace(self.ram, self.format, self.root)

    def page(self) -> int:
        """The physical address of a fresh page."""
        self._next += PAGE
        return self._next - PAGE

    def put(self, pa: int, data: bytes) -> None:
        self.bytes[pa - self.base : pa - self.base + len(data)] = data

    def put_entry(self, table: int, index: int, entry: int) -> int:
        self.put(table + 8 * index, struct.pack("<Q", entry))
        return table + 8 * index

    def get_entry(self, table: int, index: int) -> int:
        at = table - self.base + 8 * index
        return int(struct.unpack("<Q", self.bytes[at : at + 8])[0])

    def map(self, va: int, entry: int, height: int = 1, above: int = P | RW | US) -> int:
        """Write `entry` for `va` into a table `height` levels up (1: PTE); where it is.

        Missing tables on the way get `above` as their flags.
        """
        table = int(self.root)
        for level in range(self.levels, height, -1):
            index = va >> 12 + 9 * (level - 1) & 511
            down = self.get_entry(table, index)
            if not down & P:
                down = self.page() | above
                self.put_entry(table, index, down)
            table = down & 0xF_FFFF_FFFF_F000
        return self.put_entry(table, va >> 12 + 9 * (height - 1) & 511, entry)


@dataclass
class Outcome:
    """What the naive MMU says: `kind` is ok, gp, p (not present), rsvd or bus (no RAM under the table)."""

    kind: str
    level: int = 0
    pa: int = 0
    size: int = 0
    entry: int = 0
    rights: str = ""


class NaiveMmu:
    """One address at a time, one bit at a time; `read8` gives 8 bytes of RAM or None."""

    def __init__(self, read8: Callable[[int], bytes | None], cr3: int, levels: int) -> None:
        self.read8, self.cr3, self.levels = read8, cr3, levels
        self.maxphyaddr = 52
        self.nxe = True

    def translate(self, va: int) -> Outcome:
        width = {4: 48, 5: 57}[self.levels]
        top = [va >> bit & 1 for bit in range(width - 1, 64)]
        if len(set(top)) != 1:
            return Outcome("gp")
        table, rights = self.cr3, {"w", "u", "x"}
        for level in range(self.levels, 0, -1):
            low = 12 + 9 * (level - 1)
            raw = self.read8(table + 8 * (va >> low & 0x1FF))
            if raw is None:
                return Outcome("bus", level)
            entry = struct.unpack("<Q", raw)[0]

            def bit(number: int, entry: int = entry) -> bool:
                return bool(entry >> number & 1)

            if not bit(0):
                return Outcome("p", level, entry=entry)
            reserved = [number for number in range(self.maxphyaddr, 52) if bit(number)]
            if bit(63) and not self.nxe:
                reserved.append(63)
            leaf = level == 1 or (level in (2, 3) and bit(7))
            if level in (4, 5) and bit(7):
                reserved.append(7)
            if leaf and level > 1:
                reserved += [number for number in range(13, low) if bit(number)]
            if reserved:
                return Outcome("rsvd", level, entry=entry)
            rights -= {
                name for name, missing in (("w", not bit(1)), ("u", not bit(2)), ("x", bit(63))) if missing
            }
            if leaf:
                frame = sum(1 << number for number in range(low, self.maxphyaddr) if bit(number))
                pa = frame + va % (1 << low)
                return Outcome("ok", level, pa, 1 << low, entry, "".join(sorted(rights)))
            table = sum(1 << number for number in range(12, self.maxphyaddr) if bit(number))
        raise AssertionError("level 1 is always a leaf")

    def leaves(self) -> Iterator[tuple[int, Outcome]]:
        """Every (va, outcome) that is mapped, by trying every entry of every table."""
        yield from self._below(self.cr3, self.levels, 0)

    def _below(self, table: int, level: int, va: int) -> Iterator[tuple[int, Outcome]]:
        width = {4: 48, 5: 57}[self.levels]
        low = 12 + 9 * (level - 1)
        for index in range(512):
            raw = self.read8(table + 8 * index)
            if raw is None or not raw[0] & 1:
                continue
            here = va + (index << low)
            if level == self.levels and here >> width - 1:
                here += (1 << 64) - (1 << width)
            outcome = self.translate(here)
            if outcome.level == level:
                if outcome.kind == "ok":
                    yield here, outcome
            else:
                yield from self._below(int.from_bytes(raw, "little") & 0xF_FFFF_FFFF_F000, level - 1, here)


@pytest.fixture(params=[4, 5], ids=["4-level", "5-level"])
def tables(request: pytest.FixtureRequest) -> Tables:
    """Empty page tables of 4 and of 5 levels."""
    return Tables(request.param)


@pytest.fixture(scope="session")
def make_tables() -> type[Tables]:
    """The builder itself."""
    return Tables


@pytest.fixture(scope="session")
def naive_mmu() -> type[NaiveMmu]:
    """The MMU to judge by."""
    return NaiveMmu
