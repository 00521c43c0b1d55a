"""Which pages of a file are swapped out, from an xarray made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.errors import CorruptGuest
from inspector.kernel.shmem import _values
from inspector.symbols import Kind, Member, Type
from inspector.units import VirtAddr

U8 = Type(Kind.INT, "unsigned char", 1, 2)
U64 = Type(Kind.INT, "unsigned long", 8, 1)
SLOTS = Type(Kind.ARRAY, "", 64 * 8, 3, target=U64, count=64)
ROOT, TOP, LEFT, RIGHT = 0x8000, 0x9000, 0xA000, 0xB000  # page by page
AT_SLOTS = 0x28
VALUE, POINTER = 0x2A0 << 1 | 1, 0xFFFF_8880_0000_1000


@pytest.fixture
def xarray(tiny: Any) -> Any:
    """A tree of two levels: pages 0 to 63 in one node, 64 to 127 in the other."""
    tiny.types = type(tiny.types)(
        {
            "xarray": (16, (Member("xa_head", U64, 64),)),
            "xa_node": (576, (Member("shift", U8, 0), Member("slots", SLOTS, AT_SLOTS * 8))),
        },
        {},
    )
    node(tiny, TOP, 6, {0: LEFT | 2, 1: RIGHT | 2})
    node(tiny, LEFT, 0, {})
    node(tiny, RIGHT, 0, {})
    tiny.put(ROOT + 8, TOP | 2)
    return tiny


def node(tiny: Any, address: int, shift: int, slots: dict[int, int]) -> None:
    tiny.put(address, shift)
    tiny.put(address + AT_SLOTS, *(slots.get(slot, 0) for slot in range(64)))


def values(tiny: Any) -> list[int]:
    return _values(tiny.view("xarray", VirtAddr(ROOT))).tolist()  # type: ignore[no-any-return]


def test_values_but_no_pages(xarray: Any) -> None:
    node(xarray, LEFT, 0, {0: VALUE, 1: POINTER, 63: VALUE})
    node(xarray, RIGHT, 0, {5: VALUE})
    assert values(xarray) == [0, 63, 69]


def test_one_value_for_several_pages(xarray: Any) -> None:
    """Of order 2 it stands in slot 4, and slots 5 to 7 name slot 4 ; the pointer's are none."""
    node(xarray, LEFT, 0, {4: VALUE, **dict.fromkeys((5, 6, 7), 4 << 2 | 2), 8: POINTER, 9: 8 << 2 | 2})
    assert values(xarray) == [4, 5, 6, 7]


def test_a_value_as_wide_as_a_node(xarray: Any) -> None:
    node(xarray, TOP, 6, {0: LEFT | 2, 2: VALUE})
    assert values(xarray) == list(range(128, 192))


def test_small_files(xarray: Any) -> None:
    """A file of one page has no node."""
    for root, expected in ((VALUE, [0]), (POINTER, []), (0, [])):
        xarray.put(ROOT + 8, root)
        assert values(xarray) == expected


@pytest.mark.parametrize("entry", [TOP | 2, 0x7000_0000 | 2])
def test_what_is_no_tree(xarray: Any, entry: int) -> None:
    """A node below itself; a node that is not mapped."""
    node(xarray, TOP, 6, {0: LEFT | 2, 1: entry})
    with pytest.raises(CorruptGuest):
        values(xarray)
