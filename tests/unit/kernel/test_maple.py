"""Maple trees, written by hand from lib/maple_tree.c, whole and broken."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import CorruptGuest, InspectorError
from inspector.kernel import maple
from inspector.units import VirtAddr

TREE, ROOT, LEFT, RIGHT = 0x4000, 0x4100, 0x4200, 0x4300
LEAF, RANGE, GAPS = 1, 2, 3
PIVOTS = {LEAF: 15, RANGE: 15, GAPS: 9}
X, Y, Z = 0x9000, 0x9100, 0x9200


def node(address: int, kind: int, *, root: bool = False) -> int:
    """A pointer to a node as the tree holds it: the type from bit 3 on, bit 2 set, bit 1 for the root."""
    return address | kind << 3 | 4 | (2 if root else 0)


def put_node(tiny: Any, address: int, kind: int, pivots: list[int], slots: list[int]) -> None:
    """Write a node: its parent, pivots and slots."""
    tiny.put(address, 0, *pivots, *[0] * (PIVOTS[kind] - len(pivots)), *slots)


def found(tiny: Any) -> list[tuple[int, int, int]]:
    """What we read."""
    return [(e.first, e.last, e.value) for e in maple.entries(tiny.view("maple_tree", VirtAddr(TREE)))]


def test_no_entry_and_one(tiny: Any) -> None:
    assert found(tiny) == []
    tiny.put(TREE, X)
    assert found(tiny) == [(0, 0, X)]


def test_a_leaf_with_gaps(tiny: Any) -> None:
    tiny.put(TREE, node(ROOT, LEAF, root=True))
    put_node(tiny, ROOT, LEAF, [0x3FF, 0x4FF, 0x7FF, 0x8FF], [0, X, 0, Y])
    assert found(tiny) == [(0x400, 0x4FF, X), (0x800, 0x8FF, Y)]


def test_the_last_slot_takes_the_rest(tiny: Any) -> None:
    tiny.put(TREE, node(ROOT, LEAF, root=True))
    put_node(tiny, ROOT, LEAF, [0xFFF], [X, Y])
    assert found(tiny) == [(0, 0xFFF, X), (0x1000, (1 << 64) - 1, Y)]


@pytest.mark.parametrize("kind", [RANGE, GAPS])
def test_two_levels(tiny: Any, kind: int) -> None:
    tiny.put(TREE, node(ROOT, kind, root=True))
    put_node(tiny, ROOT, kind, [0xFFFF], [node(LEFT, LEAF), node(RIGHT, LEAF)])
    put_node(tiny, LEFT, LEAF, [0xFFF, 0x1FFF], [0, X, 0])
    put_node(tiny, RIGHT, LEAF, [0x1FFFF, 0x2FFFF], [Y, Z, 0])
    assert found(tiny) == [(0x1000, 0x1FFF, X), (0x10000, 0x1FFFF, Y), (0x20000, 0x2FFFF, Z)]


def test_a_node_that_holds_itself(tiny: Any) -> None:
    tiny.put(TREE, node(ROOT, RANGE, root=True))
    put_node(tiny, ROOT, RANGE, [], [node(ROOT, RANGE)])
    with pytest.raises(CorruptGuest, match="at depth 32 is not a node"):
        found(tiny)


def test_pivots_out_of_order(tiny: Any) -> None:
    tiny.put(TREE, node(ROOT, LEAF, root=True))
    put_node(tiny, ROOT, LEAF, [0x2000, 0x1000], [X, Y])
    with pytest.raises(CorruptGuest, match="pivot 0x1000 outside 0x2001-"):
        found(tiny)


def test_a_type_that_does_not_exist(tiny: Any) -> None:
    tiny.put(TREE, node(ROOT, 9, root=True))
    with pytest.raises(CorruptGuest, match="type 9"):
        found(tiny)


@given(st.binary(min_size=0x400, max_size=0x400))
def test_garbage_ends_in_an_answer_or_a_named_error(tiny_factory: Any, data: bytes) -> None:
    tiny = tiny_factory()
    tiny.ram[TREE : TREE + len(data)] = data
    tiny.put(TREE, node(ROOT, data[0] % 4, root=True))
    with suppress(InspectorError):
        assert all(first <= last for first, last, _ in found(tiny))
