"""Densities and counts against the plain loops that they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inspector.arch import MAPPING
from inspector.tui.density import FrameCounts, Resident, Strip

PAGE = 4096
Ranges = list[tuple[int, int]]


def resident(pages: list[tuple[int, int]]) -> Resident:
    """Mappings at (page number, pages each)."""
    rows = np.zeros(len(pages), MAPPING)
    rows["va"] = [first * PAGE for first, _ in pages]
    rows["size"] = [count * PAGE for _, count in pages]
    return Resident(rows)


@st.composite
def apart(draw: st.DrawFn, most: int = 12) -> Ranges:
    """Ranges of pages in order that do not overlap: (first page, pages)."""
    gaps = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=most))
    at, ranges = draw(st.integers(0, 1 << 34)), []
    for gap, count in gaps:
        ranges.append((at + gap, count))
        at += gap + count
    return ranges


@given(apart(), st.integers(0, 40), st.integers(0, 40))
def test_resident_counts_the_mapped_pages_of_a_range(mapped: Ranges, skip: int, length: int) -> None:
    base = mapped[0][0] if mapped else 0
    start, end = base + skip, base + skip + length
    expected = sum(
        1 for first, count in mapped for page in range(first, first + count) if start <= page < end
    )
    starts, ends = np.array([start * PAGE], np.uint64), np.array([end * PAGE], np.uint64)
    assert resident(mapped).between(starts, ends).tolist() == [expected * PAGE]


def test_resident_cuts_a_large_page_at_the_border() -> None:
    found = resident([(512, 512)])
    starts = np.array([512 * PAGE, 600 * PAGE, 0], np.uint64)
    ends = np.array([513 * PAGE, 1100 * PAGE, 512 * PAGE], np.uint64)
    assert found.between(starts, ends).tolist() == [PAGE, 424 * PAGE, 0]


def test_resident_reaches_the_end_of_the_address_space() -> None:
    found = resident([((1 << 52) - 1, 1)])
    assert found.below(np.array([(1 << 64) - 1], np.uint64)).tolist() == [PAGE - 1]


def test_first_mapped_address() -> None:
    found = resident([(10, 2), (20, 1)])
    assert found.first(8 * PAGE, 30 * PAGE) == 10 * PAGE
    assert found.first(11 * PAGE, 30 * PAGE) == 11 * PAGE
    assert found.first(12 * PAGE, 30 * PAGE) == 20 * PAGE
    assert found.first(12 * PAGE, 20 * PAGE) is None
    assert resident([]).first(0, 1 << 60) is None


def lay_out(ranges: Ranges, cells: int) -> Strip:
    starts = np.array([first * PAGE for first, _ in ranges], np.uint64)
    ends = np.array([(first + count) * PAGE for first, count in ranges], np.uint64)
    return Strip.lay_out(starts, ends, cells)


@given(apart().filter(bool), st.integers(24, 120))
def test_a_strip_shows_every_range_and_every_hole(ranges: Ranges, cells: int) -> None:
    shown = lay_out(ranges, cells).ranges().tolist()
    assert len(shown) == cells
    expected = [0]
    for index in range(1, len(ranges)):
        if ranges[index][0] > sum(ranges[index - 1]):
            expected.append(-1)
        expected.append(index)
    assert [cell for at, cell in enumerate(shown) if at == 0 or shown[at - 1] != cell] == expected


@given(apart(most=200).filter(lambda ranges: len(ranges) > 10), st.integers(1, 9))
def test_a_strip_too_short_for_all_ranges_still_covers_all(ranges: Ranges, cells: int) -> None:
    strip = lay_out(ranges, cells)
    assert strip.left[0] == 0
    assert abs(strip.right[-1] - cells) < 1e-6
    assert strip.density(resident(ranges)).tolist() == [1.0] * cells
    assert strip.density(resident([])).tolist() == [0.0] * cells


def test_density_of_a_strip() -> None:
    # Two ranges of eight pages side by side on eight cells: two pages a cell.
    strip = lay_out([(0, 8), (8, 8)], 8)
    assert strip.density(resident([(0, 2), (3, 1), (8, 8)])).tolist() == [1, 0.5, 0, 0, 1, 1, 1, 1]


def test_density_beside_a_hole() -> None:
    # Four cells, a hole, four cells.
    strip = lay_out([(0, 4), (100, 4)], 9)
    assert strip.ranges().tolist() == [0, 0, 0, 0, -1, 1, 1, 1, 1]
    density = strip.density(resident([(0, 1), (101, 1)])).tolist()
    assert density[:4] == [1, 0, 0, 0]
    assert density[5:] == [0, 1, 0, 0]


def test_density_of_nothing() -> None:
    strip = lay_out([], 5)
    assert strip.density(resident([])).tolist() == [0.0] * 5
    assert strip.ranges().tolist() == [-1] * 5


@given(st.lists(st.integers(0, 8), max_size=700), st.integers(0, 9), st.integers(0, 5), st.integers(1, 12))
def test_frame_counts(states: list[int], shift: int, skip: int, cells: int) -> None:
    counts = FrameCounts(np.array(states, np.uint8), 9)
    first = skip << shift
    found = counts.cells(first, cells, shift).tolist()
    for cell in range(cells):
        part = states[first + (cell << shift) : first + (cell + 1 << shift)]
        assert found[cell] == [part.count(state) for state in range(9)]
    assert counts.totals().tolist() == [states.count(state) for state in range(9)]
