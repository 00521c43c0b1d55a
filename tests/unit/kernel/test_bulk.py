"""Trees and columns read in bulk, whole and broken."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import CorruptGuest, InspectorError
from inspector.kernel.bulk import columns, mapped_frames, tree_nodes, words
from inspector.symbols import Kind, Member, Type

ROOT, A, B, C, D = 0x4000, 0x5000, 0x5100, 0x5200, 0x5FF4
U64 = Type(Kind.INT, "unsigned long", 8, 1)
S8, S32 = Type(Kind.INT, "signed char", 1, 4, signed=True), Type(Kind.INT, "int", 4, 5, signed=True)
U32 = Type(Kind.INT, "unsigned int", 4, 6)


@pytest.fixture
def kernel(tiny_factory: Any) -> Any:
    return with_trees(tiny_factory())


def with_trees(kernel: Any) -> Any:
    """The tiny kernel, with red-black trees and a struct of numbers of all sorts."""
    kernel.types._structs |= {
        "rb_node": (24, (Member("color", U64, 0), Member("rb_right", U64, 64), Member("rb_left", U64, 128))),
        "rb_root": (8, (Member("rb_node", U64, 0),)),
        "mixed": (
            24,
            (
                Member("wide", U64, 0),
                Member("small", S8, 64),
                Member("int", S32, 96),
                Member("low", U32, 128, 3),
                Member("high", U32, 131, 5),
            ),
        ),
    }
    kernel.types._ids |= {name: 5000 + i for i, name in enumerate(("rb_node", "rb_root", "mixed"))}
    return kernel


def u64(*values: int) -> Any:
    return np.array(values, np.uint64)


def test_a_tree(kernel: Any) -> None:
    kernel.put(ROOT, A)
    kernel.put(A, 0, B, C)
    kernel.put(B, 0, D, 0)
    assert sorted(tree_nodes(kernel, u64(ROOT)).tolist()) == [A, B, C, D]


def test_no_tree_and_an_empty_one(kernel: Any) -> None:
    assert tree_nodes(kernel, u64()).tolist() == []
    assert tree_nodes(kernel, u64(ROOT)).tolist() == []


def test_two_trees(kernel: Any) -> None:
    kernel.put(ROOT, A, B)
    assert sorted(tree_nodes(kernel, u64(ROOT, ROOT + 8)).tolist()) == [A, B]


@pytest.mark.parametrize("children", [(A, 0), (0, A), (A, A), (B, B)])
def test_a_node_met_again(kernel: Any, children: tuple[int, int]) -> None:
    kernel.put(ROOT, A)
    kernel.put(A, 0, *children)
    with pytest.raises(CorruptGuest, match=r"twice|deep|loop"):
        tree_nodes(kernel, u64(ROOT))


def test_more_nodes_than_the_limit(kernel: Any) -> None:
    kernel.put(ROOT, A)
    kernel.put(A, 0, B, C)
    with pytest.raises(CorruptGuest, match="more than 2 nodes"):
        tree_nodes(kernel, u64(ROOT), limit=2)


def test_a_node_nowhere(kernel: Any) -> None:
    kernel.put(ROOT, 0xDEAD000000000100)
    with pytest.raises(CorruptGuest, match="rb_node at 0xdead000000000108 is not mapped"):
        tree_nodes(kernel, u64(ROOT))


@given(st.binary(min_size=0x200, max_size=0x200))
def test_garbage_ends_in_an_answer_or_a_named_error(tiny_factory: Any, data: bytes) -> None:
    kernel = with_trees(tiny_factory())
    # Pointers that lie in the garbage itself, every second one.
    kernel.ram[A : A + len(data)] = data
    for i in range(0, len(data), 16):
        kernel.put(A + i, A + data[i] * 2)
    kernel.put(ROOT, A)
    with suppress(InspectorError):
        nodes = tree_nodes(kernel, u64(ROOT), limit=1000)
        assert len(set(nodes.tolist())) == len(nodes) <= 1000


def test_columns(kernel: Any) -> None:
    kernel.put(A, 1 << 63, 0xFFFF_FFFE_0000_00FF, 0b10110_101)
    kernel.put(D, 5, 0x7F, 0)  # over a page's end
    wide, small, number, low, high = columns(
        kernel, "mixed", u64(A, D), "wide", "small", "int", "low", "high"
    )
    assert wide.tolist() == [1 << 63, 5]
    assert small.tolist() == [-1, 0x7F]
    assert number.tolist() == [-2, 0]
    assert low.tolist() == [0b101, 0]
    assert high.tolist() == [0b10110, 0]


def test_nothing_to_read(kernel: Any) -> None:
    (wide,) = columns(kernel, "mixed", u64(), "wide")
    assert wide.tolist() == []
    assert words(kernel, u64(), "nothing").tolist() == []


def test_frames_of_ranges(kernel: Any) -> None:
    """The tiny kernel maps 2 MiB as one large page, of which there is 1 MiB of RAM."""
    found = mapped_frames(kernel, u64(0x8000, 0x2800), u64(0xA000, 0x3001))
    assert [tuple(row) for row in found.tolist()] == [
        (2, 0x2000, 1),
        (3, 0x3000, 1),
        (8, 0x8000, 0),
        (9, 0x9000, 0),
    ]
    assert not len(mapped_frames(kernel, u64(), u64()))
    assert not len(mapped_frames(kernel, u64(1 << 40), u64((1 << 40) + 0x1000)))
