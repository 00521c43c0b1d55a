"""Linked lists, whole and broken."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.errors import CorruptGuest, PageFault
from inspector.kernel import lists
from inspector.units import VirtAddr

HEAD, A, B, C = (VirtAddr(address) for address in (0x4000, 0x5000, 0x6000, 0x7000))


def test_entries_are_the_structs_around_the_links(tiny: Any) -> None:
    tiny.put(HEAD, A + 8, B + 8)
    tiny.put(A, 41, B + 8, HEAD)
    tiny.put(B, 42, HEAD, A + 8)
    assert [item.int("value") for item in lists.entries(tiny, HEAD, "item", "links")] == [41, 42]


def test_an_empty_list(tiny: Any) -> None:
    tiny.put(HEAD, HEAD, HEAD)
    assert list(lists.nodes(tiny, HEAD)) == []


def test_a_loop_that_leaves_out_the_head(tiny: Any) -> None:
    tiny.put(HEAD, A)
    tiny.put(A, B)
    tiny.put(B, C)
    tiny.put(C, B)
    with pytest.raises(CorruptGuest, match="does not end: it loops at 0x6000"):
        list(lists.nodes(tiny, HEAD))


def test_the_bound(tiny: Any) -> None:
    for i in range(20):
        tiny.put(HEAD + 16 * i, HEAD + 16 * (i + 1))
    with pytest.raises(CorruptGuest, match="does not end"):
        list(lists.nodes(tiny, HEAD, limit=10))


def test_a_pointer_to_nowhere(tiny: Any) -> None:
    tiny.put(HEAD, 0xDEAD000000000100)  # LIST_POISON1
    with pytest.raises(PageFault, match="0xdead000000000100 does not translate"):
        list(lists.nodes(tiny, HEAD))
