"""Entries that are not present, made by hand from arch/x86/include/asm/pgtable_64.h and swap.h."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inspector.kernel import ptes
from inspector.kernel.ptes import EXCLUSIVE, SOFT_DIRTY, UFFD_WP, EntryUse
from inspector.symbols import Symbol, SymbolTable
from inspector.units import VirtAddr

BASE = 0xFFFF_FFFF_8000_0000


def kernel_of(tiny: Any, areas: int, *names: str, exclusive: bool = True, marker: bool = True) -> Any:
    """A kernel with room for so many swap areas and these symbols."""
    symbols = [("swap_info", BASE), ("behind", BASE + 8 * areas)]
    symbols += [(name, BASE + 0x1000 + 8 * i) for i, name in enumerate(names)]
    tiny.symbols = SymbolTable.of([Symbol(name, VirtAddr(at), "b") for name, at in symbols])
    tiny.types._enums = {"pageflags": {"PG_locked": 0, **({"PG_anon_exclusive": 1} if exclusive else {})}}
    tiny.types._ids["pageflags"] = 7000
    if marker:
        tiny.types._structs |= {"pte_marker": (8, ())}
        tiny.types._ids["pte_marker"] = 7001
    return tiny


def names(kernel: Any) -> list[str]:
    """The types above the areas."""
    types = ptes.swap_types(kernel)
    return [types.use(number)[1] for number in range(types.areas, 32)]


POISON, MIGRATION = "num_poisoned_pages", "migrate_pages"
MIGRATIONS = ["migration read", "migration read exclusive", "migration write"]
DEVICES = ["device write", "device read"]


@pytest.mark.parametrize(
    ("areas", "symbols", "exclusive", "marker", "expected"),
    [
        # 5.10: hwpoison, two migration types; with CONFIG_DEVICE_PRIVATE two more.
        (29, (POISON, MIGRATION), False, False, ["hwpoison", "migration read", "migration write"]),
        (27, (POISON, MIGRATION), False, False, ["hwpoison", "migration read", "migration write", *DEVICES]),
        # 6.1: a marker and an error behind three migration types, with device types or without.
        (26, (POISON, MIGRATION), True, True, ["hwpoison", *MIGRATIONS, "pte marker", "swapin error"]),
        (
            22,
            (POISON, MIGRATION, "make_device_exclusive_range"),
            True,
            True,
            [
                *("hwpoison", *MIGRATIONS, *DEVICES),
                *("device exclusive write", "device exclusive read", "pte marker", "swapin error"),
            ],
        ),
        # 6.12: no error type; 7.2: one type for what a device has to itself.
        (27, (POISON, MIGRATION), True, True, ["hwpoison", *MIGRATIONS, "pte marker"]),
        (
            24,
            (POISON, MIGRATION, "make_device_exclusive"),
            True,
            True,
            ["hwpoison", *MIGRATIONS, *DEVICES, "device exclusive", "pte marker"],
        ),
        # Neither CONFIG_MEMORY_FAILURE nor CONFIG_MIGRATION.
        (31, (), True, True, ["pte marker"]),
        # What does not add up is not named.
        (
            20,
            (POISON, MIGRATION),
            True,
            True,
            ["hwpoison", *MIGRATIONS, *(f"swap type {n}" for n in range(24, 32))],
        ),
    ],
)
def test_types(
    tiny: Any, areas: int, symbols: tuple[str, ...], exclusive: bool, marker: bool, expected: list[str]
) -> None:
    assert names(kernel_of(tiny, areas, *symbols, exclusive=exclusive, marker=marker)) == expected


def swap_entry(number: int, offset: int, low: int = 0) -> int:
    """__swp_entry(): the type on top, the offset inverted from bit 9 on."""
    return number << 59 | (~offset & (1 << 50) - 1) << 9 | low


@pytest.fixture
def kernel(tiny: Any) -> Any:
    return kernel_of(tiny, 27, POISON, MIGRATION)


def test_uses(kernel: Any) -> None:
    entries = [
        0,
        swap_entry(0, 0x1234),
        swap_entry(3, 1, low=0b10),
        swap_entry(27, 0x77),
        swap_entry(30, 0x88, low=0b1100),
        swap_entry(31, 0b101),
        (~0x5000 & (1 << 52) - 1 & ~0xFFF) | 0x100,  # PROT_NONE
        (~0x200000 & (1 << 52) - 1 & ~0xFFF) | 0x80,  # a huge page that is being split
    ]
    rows = ptes.decode(kernel, np.array(entries, np.uint64))
    assert [(EntryUse(use).name, *rest) for use, *rest in rows.tolist()] == [
        ("NONE", 0, 0, 0, 0),
        ("SWAP", 0, 0x1234, 0, 0),
        ("SWAP", 3, 1, 0, SOFT_DIRTY),
        ("HWPOISON", 27, 0x77, 0x77, 0),
        ("MIGRATION", 30, 0x88, 0x88, UFFD_WP | EXCLUSIVE),
        ("MARKER", 31, 0b101, 0, 0),
        ("PROT_NONE", 0, 0, 5, 0),
        ("INVALID", 0, 0, 0x200, 0),
    ]


def test_one_entry(kernel: Any) -> None:
    marker = ptes.nonpresent(kernel, swap_entry(31, 0b101))
    assert (marker.use, marker.name, marker.markers) == (EntryUse.MARKER, "pte marker", ("uffd-wp", "guard"))
    moving = ptes.nonpresent(kernel, swap_entry(28, 0x99))
    assert (moving.name, moving.type, moving.offset, moving.pfn) == ("migration read", 28, 0x99, 0x99)
    none = ptes.nonpresent(kernel, 0)
    assert (none.name, none.type, none.offset, none.pfn) == ("none", None, None, None)
    swapped = ptes.nonpresent(kernel, swap_entry(2, 7))
    assert (swapped.name, swapped.type, swapped.offset, swapped.pfn) == ("swap", 2, 7, None)


def test_age_and_dirt_are_no_part_of_a_pfn(kernel: Any) -> None:
    """SWP_MIG_YOUNG and SWP_MIG_DIRTY stand above the bits of a PFN."""
    from inspector.symbols import Vmcoreinfo

    kernel.vmcoreinfo = Vmcoreinfo.parse(b"OSRELEASE=x\nNUMBER(MAX_PHYSMEM_BITS)=46\n")
    young_and_dirty = 3 << 34
    found = ptes.nonpresent(kernel, swap_entry(28, young_and_dirty | 0x99))
    assert (found.pfn, found.offset) == (0x99, young_and_dirty | 0x99)
