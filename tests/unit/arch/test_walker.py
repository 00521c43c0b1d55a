from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.arch import X86_64_4LEVEL, X86_64_5LEVEL, FaultKind, Walk, walk, x86_64
from inspector.memory import MappedRam, RamBlock
from inspector.units import PhysAddr, VirtAddr

if TYPE_CHECKING:
    from tests.unit.arch.conftest import Tables

P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
KERNEL_VA = 0xFFFF_FFFF_8123_4567
USER_VA = 0x7F12_3456_7ABC


def go(tables: Tables, va: int) -> Walk:
    return walk(tables.ram, tables.format, tables.root, VirtAddr(va))


@pytest.mark.parametrize("va", [USER_VA, KERNEL_VA, 0, 0xFFFF_FFFF_FFFF_FFFF])
def test_small_page(tables: Tables, va: int) -> None:
    at = tables.map(va, 0x1234_5000 | P | RW | US)
    found = go(tables, va)
    assert found.fault is None
    assert found.phys == 0x1234_5000 + va % 0x1000
    assert found.page_size == 0x1000
    assert found.pfn == 0x12345
    assert (found.writable, found.user, found.executable) == (True, True, True)
    leaf = found.steps[-1]
    assert (leaf.level.name, leaf.entry_address, leaf.entry, leaf.leaf) == ("PTE", at, 0x1234_5007, True)
    assert leaf.flags == ("P", "RW", "US")
    assert [step.index for step in found.steps] == [
        va >> shift & 511 for shift in (48, 39, 30, 21, 12)[-tables.levels :]
    ]
    assert [step.target for step in found.steps[:-1]] == [
        step.entry_address & ~0xFFF for step in found.steps[1:]
    ]


@pytest.mark.parametrize(("height", "name"), [(2, "PMD"), (3, "PUD")])
def test_large_page(tables: Tables, height: int, name: str) -> None:
    size = 0x1000 << 9 * (height - 1)
    tables.map(KERNEL_VA, 0x40_C000_0000 | P | RW | PS | 1 << 12 | NX, height)
    found = go(tables, KERNEL_VA)
    assert found.phys == 0x40_C000_0000 + KERNEL_VA % size
    assert found.page_size == size
    assert found.pfn == (0x40_C000_0000 + KERNEL_VA % size) >> 12
    assert (found.writable, found.user, found.executable) == (True, False, False)
    assert found.steps[-1].level.name == name
    assert found.steps[-1].flags == ("P", "RW", "PS", "PAT", "NX")
    assert found.memory_type == 4


def test_rights_are_and_ed_over_all_levels(tables: Tables) -> None:
    tables.map(USER_VA, 0x5000 | P | RW | US, above=P | US | NX)
    found = go(tables, USER_VA)
    assert (found.writable, found.user, found.executable) == (False, True, False)


def test_memory_type_and_protection_key(tables: Tables) -> None:
    tables.map(USER_VA, 0x5000 | P | 0x10 | 0x80 | 0xB << 59)  # PCD, PAT
    found = go(tables, USER_VA)
    assert (found.memory_type, found.pkey) == (6, 11)


def test_the_page_may_be_outside_ram(tables: Tables) -> None:
    tables.map(KERNEL_VA, 0xFEE0_0000 | P | RW | 0x10 | NX)  # the local APIC
    assert go(tables, KERNEL_VA).phys == 0xFEE0_0000 + KERNEL_VA % 0x1000


@pytest.mark.parametrize("height", [1, 2, 3, 4])
@pytest.mark.parametrize("entry", [0, 0x1234_5000, NX | 0xFFFF_FFFF_FFFE])
def test_not_present(tables: Tables, height: int, entry: int) -> None:
    at = tables.map(USER_VA, entry, height)
    found = go(tables, USER_VA)
    assert found.fault is not None
    assert found.fault.kind is FaultKind.NOT_PRESENT
    assert found.fault.level is tables.format.levels[-height]
    assert (found.fault.entry_address, found.fault.entry) == (at, entry)
    assert "#PF" in found.fault.what
    assert "P=0" in found.fault.what
    assert (found.phys, found.page_size, found.pfn, found.leaf) == (None, None, None, None)
    assert (found.writable, found.user, found.executable) == (False, False, False)
    assert found.steps[-1].entry == entry
    assert found.steps[-1].flags == ()


@pytest.mark.parametrize(
    ("height", "entry", "bits"),
    [
        (2, 0x4000_0000 | P | PS | 1 << 13, "13"),
        (2, 0x4000_0000 | P | PS | 1 << 20, "20"),
        (3, 0x4000_0000 | P | PS | 1 << 13 | 1 << 29, "13, 29"),
        (4, 0x41000 | P | PS, "7"),
        (5, 0x41000 | P | PS, "7"),
    ],
)
def test_reserved_bits(make_tables: type[Tables], height: int, entry: int, bits: str) -> None:
    tables = make_tables(5)
    at = tables.map(USER_VA, entry, height)
    fault = go(tables, USER_VA).fault
    assert fault is not None
    assert fault.kind is FaultKind.RESERVED_BITS
    assert (fault.entry_address, fault.entry) == (at, entry)
    assert "RSVD=1" in fault.what
    assert f"({bits})" in fault.what


def test_reserved_by_the_cpu(make_tables: type[Tables]) -> None:
    tables = make_tables(4)
    tables.map(USER_VA, 1 << 46 | 0x5000 | P | NX)
    assert go(tables, USER_VA).fault is None
    for format_ in (x86_64(maxphyaddr=46), x86_64(nx=False)):
        fault = walk(tables.ram, format_, tables.root, VirtAddr(USER_VA)).fault
        assert fault is not None
        assert fault.kind is FaultKind.RESERVED_BITS


@pytest.mark.parametrize(
    ("levels", "va"),
    [
        (4, 0x0000_8000_0000_0000),
        (4, 0xFFFF_7FFF_FFFF_FFFF),
        (4, 0x8000_0000_0000_0000),
        (5, 0x0100_0000_0000_0000),
        (5, 0xFEFF_FFFF_FFFF_FFFF),
    ],
)
def test_non_canonical(make_tables: type[Tables], levels: int, va: int) -> None:
    found = go(make_tables(levels), va)
    assert found.fault is not None
    assert found.fault.kind is FaultKind.NON_CANONICAL
    assert (found.fault.level, found.fault.entry_address, found.steps) == (None, None, ())
    assert "#GP(0)" in found.fault.what
    assert f"bits 63..{47 if levels == 4 else 56}" in found.fault.what


@pytest.mark.parametrize("va", [0x0000_7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000])
def test_the_last_canonical_addresses(make_tables: type[Tables], va: int) -> None:
    fault = go(make_tables(4), va).fault
    assert fault is not None
    assert fault.kind is FaultKind.NOT_PRESENT


def test_table_outside_ram(tables: Tables) -> None:
    tables.map(USER_VA, 0x5_0000_0000 | P, 2)
    found = go(tables, USER_VA)
    assert found.fault is not None
    assert found.fault.kind is FaultKind.OUTSIDE_RAM
    assert found.fault.level is tables.format.levels[-1]
    assert found.fault.entry_address == 0x5_0000_0000 + 8 * (USER_VA >> 12 & 511)
    assert found.fault.entry is None
    assert found.steps[-1].level.name == "PMD"


def test_root_outside_ram(tables: Tables) -> None:
    found = walk(tables.ram, tables.format, PhysAddr(0), VirtAddr(USER_VA))
    assert found.fault is not None
    assert found.fault.kind is FaultKind.OUTSIDE_RAM
    assert found.steps == ()


@given(st.integers(0, 1 << 32), st.integers(0, (1 << 64) - 1), st.booleans(), st.booleans())
def test_garbage_is_always_an_answer(seed: int, va: int, five: bool, inside: bool) -> None:
    garbage = np.random.default_rng(seed).integers(0, 1 << 64, 1024, np.uint64)
    if inside:  # bend the addresses into the two pages, so that walks go deep
        garbage &= np.uint64(0x8000_0000_0000_1FFF)
    ram = MappedRam(garbage.tobytes(), [RamBlock(PhysAddr(0), 8192, 0)])
    format_ = X86_64_5LEVEL if five else X86_64_4LEVEL
    found = walk(ram, format_, PhysAddr(0), format_.canonical(va))
    assert (found.phys is None) == (found.fault is not None)
    assert len(found.steps) <= len(format_.levels)
