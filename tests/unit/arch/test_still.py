"""An address space of one moment reads what the page tables say, as a space that walks them does."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inspector.arch import AddressSpace, StillSpace, Stretches
from inspector.errors import PageFault
from inspector.units import PhysAddr, VirtAddr

if TYPE_CHECKING:
    from tests.unit.arch.conftest import Tables

P, PS = 1, 0x80
PAGE, MIB2 = 1 << 12, 1 << 21
_BASE = 0xFFFF_8880_0000_0000
_FRAMES = 10


@pytest.fixture
def both(tables: Tables) -> tuple[AddressSpace, StillSpace]:
    """Gaps, neighbours in both memories, in one alone, in reverse; a large page, and the very last one."""
    ram, *_ = (tables.page() for _ in range(_FRAMES))
    for place, frame in ((0, 3), (1, 4), (2, 5), (4, 6), (5, 2), (6, 1), (9, 9)):
        tables.map(_BASE + place * PAGE, ram + frame * PAGE | P)
    tables.map(_BASE + 4 * MIB2, 0 | P | PS, 2)
    tables.map(0xFFFF_FFFF_FFFF_F000, ram + 3 * PAGE | P)
    tables.put(ram, Random(1).randbytes(_FRAMES * PAGE))
    space = tables.space
    return space, StillSpace(space.memory, space.format, space.root, Stretches(space.scan()))


def test_gather_agrees(both: tuple[AddressSpace, StillSpace]) -> None:
    walking, still = both
    random = Random(0)
    near = [_BASE, _BASE + 4 * MIB2 + 0x4_0000, 0xFFFF_FFFF_FFFF_F000, 0x1000]
    vas = [random.choice(near) + random.randrange(-PAGE, 12 * PAGE) & (1 << 64) - 1 for _ in range(3000)]
    at = np.array([*vas, 0, (1 << 64) - 1, (1 << 64) - 8], np.uint64)
    for dtype, count in ((np.uint8, 1), (np.uint64, 1), (np.uint8, 100), (np.uint64, 600)):
        ours, theirs = (space.gather(at, np.dtype(dtype), count) for space in (still, walking))
        assert (ours[1] == theirs[1]).all()
        assert (ours[0] == theirs[0]).all()
    assert 0 < np.count_nonzero(still.gather(at, np.dtype(np.uint64))[1]) < len(at)


@pytest.mark.parametrize(
    ("start", "size"), [(0, 1), (0, 3 * PAGE), (100, 2 * PAGE), (4 * PAGE, 3 * PAGE), (9 * PAGE + 5, 4000)]
)
def test_ranges_agree(both: tuple[AddressSpace, StillSpace], start: int, size: int) -> None:
    walking, still = both
    va = VirtAddr(_BASE + start)
    assert still.array(va, size).tobytes() == walking.read(va, size) == still.read(va, size)
    assert still.translate(va) == walking.translate(va)


@pytest.mark.parametrize(("start", "size"), [(2 * PAGE, 2 * PAGE), (3 * PAGE, 1), (9 * PAGE, PAGE + 1)])
def test_a_gap_is_a_fault(both: tuple[AddressSpace, StillSpace], start: int, size: int) -> None:
    for space in both:
        with pytest.raises(PageFault):
            space.array(VirtAddr(_BASE + start), size)


def test_stretches_are_contiguous_in_both_memories(both: tuple[AddressSpace, StillSpace]) -> None:
    stretches = Stretches(both[0].scan())
    first = both[0].translate(VirtAddr(_BASE))
    assert first is not None
    ram = first - 3 * PAGE

    def piece(place: int, frame: int, pages: int) -> tuple[int, int, int]:
        return _BASE + place * PAGE, PhysAddr(ram + frame * PAGE), pages * PAGE

    all_of_them = [piece(0, 3, 3), piece(4, 6, 1), piece(5, 2, 1), piece(6, 1, 1), piece(9, 9, 1)]
    assert stretches.between(_BASE, _BASE + MIB2) == all_of_them
    assert stretches.between(_BASE + PAGE, _BASE + 5 * PAGE) == [piece(1, 4, 2), piece(4, 6, 1)]
    assert stretches.between(_BASE + 3 * PAGE, _BASE + 4 * PAGE) == []
    starts = np.array([_BASE + PAGE, _BASE + 3 * PAGE, _BASE + 6 * PAGE], np.uint64)
    ends = np.array([_BASE + 3 * PAGE, _BASE + 4 * PAGE, _BASE + 20 * PAGE], np.uint64)
    for space in both:
        found = zip(*(column.tolist() for column in space.overlaps(starts, ends)), strict=True)
        assert list(found) == [(0, *piece(1, 4, 2)), (2, *piece(6, 1, 1)), (2, *piece(9, 9, 1))]


def test_nothing_mapped(tables: Tables) -> None:
    space = tables.space
    still = StillSpace(space.memory, space.format, space.root, Stretches(space.scan()))
    values, ok = still.gather(np.array([0, 0x1000, _BASE], np.uint64), np.dtype(np.uint64))
    assert not ok.any()
    assert not values.any()
    assert Stretches(space.scan()).between(0, 1 << 64) == []


@pytest.mark.parametrize("start", [-8, -1 << 70, (1 << 64) - 4, 1 << 64, 1 << 70])
def test_no_address(both: tuple[AddressSpace, StillSpace], start: int) -> None:
    """What a corrupt pointer, less an offset or more a size, makes."""
    _, still = both
    assert still.translate(VirtAddr(start)) in (None, still.translate(VirtAddr((1 << 64) - 4)))
    with pytest.raises(PageFault):
        still.array(VirtAddr(start), 0x2000)
