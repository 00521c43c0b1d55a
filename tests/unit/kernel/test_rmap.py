"""Many addresses of a frame told as one, and cache attributes that differ, on rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.kernel.rmap import KERNEL, ROW, ReverseMap, cache_modes
from inspector.symbols import Symbol, SymbolTable, Vmcoreinfo
from inspector.units import Pfn, VirtAddr

PAGE, LARGE = 4096, 2 << 20
ESPFIX = 0xFFFF_FF00_0000_0000
DIRECT = 0xFFFF_8880_0000_0000
SMALL_WB, SMALL_UC, LARGE_WB, LARGE_PAT = 0x163, 0x17B, 0x1E3, 0x11E3


@pytest.fixture(scope="module")
def kernel(tiny_factory: Any) -> Any:
    """A kernel that knows its regions."""
    made = tiny_factory()
    made.vmcoreinfo = Vmcoreinfo.parse(b"OSRELEASE=tiny\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n")
    return made


def rows(*given_rows: tuple[int, int, int, int]) -> np.ndarray:
    """Kernel rows from (va, pa, size, entry)."""
    return np.array([(va, pa, size, entry, 1, KERNEL) for va, pa, size, entry in given_rows], ROW)


def test_addresses_at_even_distances_are_one(kernel: Any) -> None:
    many = [(ESPFIX + 0x9000 + i * 0x10000, 0x5000, PAGE, SMALL_WB) for i in range(1 << 16)]
    found = ReverseMap(kernel, [], rows(*many, (DIRECT, 0, LARGE, LARGE_WB))).of(Pfn(5))
    assert [(alias.region, alias.va, alias.count, alias.stride) for alias in found] == [
        ("direct map", DIRECT + 0x5000, 1, 0),
        ("espfix", ESPFIX + 0x9000, 65536, 0x10000),
    ]
    assert found[1].last == ESPFIX + 0x9000 + 0xFFFF * 0x10000
    assert list(found[1].vas) == [va for va, *_ in many]


def test_two_addresses_are_two(kernel: Any) -> None:
    found = ReverseMap(kernel, [], rows(*((ESPFIX + at, 0, PAGE, SMALL_WB) for at in (0, 0x7000)))).of(Pfn(0))
    assert [(alias.va, alias.count, list(alias.vas)) for alias in found] == [
        (ESPFIX, 1, [ESPFIX]),
        (ESPFIX + 0x7000, 1, [ESPFIX + 0x7000]),
    ]


def test_another_entry_is_another_alias(kernel: Any) -> None:
    entries = [SMALL_WB, SMALL_WB, SMALL_WB, SMALL_UC, SMALL_WB, SMALL_WB, SMALL_WB]
    found = ReverseMap(
        kernel, [], rows(*((ESPFIX + i * PAGE, 0, PAGE, entry) for i, entry in enumerate(entries)))
    ).of(Pfn(0))
    assert [((alias.va - ESPFIX) // PAGE, alias.count, alias.memory_type) for alias in found] == [
        (0, 3, 0),
        (3, 1, 3),
        (4, 3, 0),
    ]


@given(
    st.sets(st.tuples(st.integers(0, 60), st.sampled_from([SMALL_WB, SMALL_UC])), max_size=40).map(
        lambda pairs: dict(pairs)
    )
)
def test_no_address_is_lost_or_made_up(tiny_factory: Any, entries: dict[int, int]) -> None:
    kernel = tiny_factory()
    kernel.vmcoreinfo = Vmcoreinfo.parse(b"OSRELEASE=tiny\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n")
    given_rows = rows(*((ESPFIX + place * PAGE, 0x3000, PAGE, entry) for place, entry in entries.items()))
    found = ReverseMap(kernel, [], given_rows).of(Pfn(3))
    told = [(va, alias.entry) for alias in found for va in alias.vas]
    assert len(told) == len(set(told)) == sum(alias.count for alias in found)
    assert set(told) == {(ESPFIX + place * PAGE, entry) for place, entry in entries.items()}


def test_frames_whose_cache_modes_differ(kernel: Any) -> None:
    """A large page holds 512 frames; one of them is mapped uncached too, another as the large page is."""
    index = ReverseMap(
        kernel,
        [],
        rows(
            (DIRECT, 0, LARGE, LARGE_WB),
            (ESPFIX, 7 * PAGE, PAGE, SMALL_UC),
            (ESPFIX + PAGE, 8 * PAGE, PAGE, SMALL_WB),
            (ESPFIX + 2 * PAGE, 600 * PAGE, PAGE, SMALL_UC),
        ),
    )
    assert index.mixed_cache_modes(Pfn(1024)).tolist() == [7]
    assert index.mixed_cache_modes(Pfn(7)).tolist() == []


def test_cache_modes_are_the_kernels(tiny_factory: Any) -> None:
    """The table and enum of 6.1; indexes 0 and 4 both say write-back, so a mix of them is none."""
    kernel = tiny_factory()
    assert cache_modes(kernel)[:2] == ("PAT 0", "PAT 1")
    kernel.ram[0x8000:0x8008] = bytes([0, 1, 2, 3, 0, 5, 2, 4])
    kernel.symbols = SymbolTable.of([Symbol("__pte2cachemode_tbl", VirtAddr(0x8000), "d")], floor=0x1000)
    names = ("WB", "WC", "UC_MINUS", "UC", "WT", "WP")
    modes = {f"_PAGE_CACHE_MODE_{name}": value for value, name in enumerate(names)}
    kernel.types = type(kernel.types)({}, {"page_cache_mode": {**modes, "_PAGE_CACHE_MODE_NUM": 8}})
    kernel.vmcoreinfo = Vmcoreinfo.parse(b"OSRELEASE=tiny\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n")
    assert cache_modes(kernel) == ("WB", "WC", "UC-", "UC", "WB", "WP", "UC-", "WT")
    index = ReverseMap(kernel, [], rows((DIRECT, 0, LARGE, LARGE_WB), (DIRECT + LARGE, 0, LARGE, LARGE_PAT)))
    assert [alias.cache_mode for alias in index.of(Pfn(1))] == ["WB", "WB"]
    assert [alias.memory_type for alias in index.of(Pfn(1))] == [0, 4]
    assert index.mixed_cache_modes(Pfn(512)).size == 0
