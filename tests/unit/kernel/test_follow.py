"""Following many lists at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inspector.kernel.lists import follow


def u64(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def naive(links: list[int], following: list[int], heads: list[int]) -> list[int]:
    """Each chain followed by itself."""
    steps = dict(zip(links, following, strict=True))
    ends = []
    for link in links:
        at, left = link, len(links) + 1
        while at in steps and left:
            at, left = steps[at], left - 1
        ends.append(heads.index(at) if at in heads else -1)
    return ends


def test_two_lists_a_loop_and_a_stray() -> None:
    heads = u64(1000, 2000)
    links = u64(10, 20, 30, 40, 50, 60)
    following = u64(20, 1000, 2000, 50, 40, 0xDEAD)
    assert follow(links, following, heads).tolist() == [0, 0, 1, -1, -1, -1]


def test_no_blocks() -> None:
    assert follow(u64(), u64(), u64(1000)).tolist() == []


@given(st.lists(st.integers(0, 45), min_size=1, max_size=40))
def test_agrees_with_following_each(targets: list[int]) -> None:
    """Links 0 to n-1 point anywhere: at each other, at the heads 41 to 43, or at nothing."""
    links, heads = list(range(len(targets))), [41, 42, 43]
    assert follow(u64(*links), u64(*targets), u64(*heads)).tolist() == naive(links, targets, heads)
