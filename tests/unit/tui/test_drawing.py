"""Bars, palettes and keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inspector.kernel.frames import FrameState
from inspector.kernel.owners import Owner
from inspector.tui import palette
from inspector.tui.actions import GLOBAL, VIEWS
from inspector.tui.places import ViewName
from inspector.tui.svg import plain
from inspector.tui.widgets.bars import bar, portions
from inspector.tui.widgets.strips import shades


def test_bars() -> None:
    assert bar(0.0, 4) == "    "
    assert bar(0.5, 4) == "██  "
    assert bar(1.0, 4) == "████"
    assert bar(7.0, 4) == "████"
    assert bar(1 / 32, 4) == "▏   "


@given(st.lists(st.integers(0, 1 << 22), min_size=1, max_size=9), st.integers(10, 200))
def test_portions_fill_the_bar_and_forget_nothing(counts: list[int], width: int) -> None:
    cells = portions(counts, width)
    assert sum(cells) == (width if any(counts) else 0)
    assert all((cell > 0) == (count > 0) for cell, count in zip(cells, counts, strict=True))


def test_shades_tell_some_from_none_and_from_all() -> None:
    assert shades(np.array([0.0, 0.001, 0.5, 0.999, 1.0])) == [" ", "░", "▒", "▓", "█"]


def test_every_state_looks_different() -> None:
    assert set(palette.OWNERS) == set(Owner)
    owners = palette.OWNERS.values()
    assert len({look.color for look in owners}) == len({look.glyph for look in owners}) == len(Owner)
    assert len({look.name for look in owners}) == len(Owner)
    assert set(palette.STATES) == set(FrameState)
    looks = palette.STATES.values()
    assert len({look.color for look in looks}) == len({look.glyph for look in looks}) == len(FrameState)


def test_blend() -> None:
    assert palette.blend("#ff8000", "#000000", 0.5) == "#804000"
    assert palette.blend("#ff8000", "#123456", 0.0) == "#123456"


def test_vma_kinds() -> None:
    kinds = [
        ("r-xp", "/bin/sh", "code"), ("r--p", "/bin/sh", "constants"), ("rw-p", "/bin/sh", "data"),
        ("rw-p", "", "anonymous"), ("---p", "", "guard"), ("rw-p", "[heap]", "heap"),
        ("rw-p", "[stack]", "stack"), ("r-xp", "[vdso]", "special"), ("rw-p", "[anon:jit]", "anonymous"),
    ]  # fmt: skip
    assert [palette.vma_kind(permissions, name) for permissions, name, _ in kinds] == [k for *_, k in kinds]


def test_no_key_means_two_things_on_a_screen() -> None:
    for view in ViewName:
        keys = [key for action in (*VIEWS[view], *GLOBAL) for key in action.keys.split(",")]
        assert len(keys) == len(set(keys)), view


def test_pictures_name_no_host() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><!-- by https://example.org --><style>'
        '@font-face { src: url("https://example.org/f.woff"); }\n .m { font-family: F, monospace }</style>'
        '<text x="0">&#160;a</text></svg>'
    )
    assert plain(svg) == (
        '<svg xmlns="http://www.w3.org/2000/svg"><style>.m { font-family: F, monospace }</style>'
        '<text xml:space="preserve" x="0">&#160;a</text></svg>'
    )
