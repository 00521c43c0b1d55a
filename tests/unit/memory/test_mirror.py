"""Copies of RAM, over a source that notes what is read of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from inspector.errors import MachineError, OutsideRam, UsageError
from inspector.memory import MirroredRam, RamBlock
from inspector.units import PhysAddr

PAGE = 4096
PAGES = 300
HIGH = 1 << 32


class Source:
    """300 pages; in each word its own offset, and `version` on top."""

    stride = 2

    def __init__(self) -> None:
        self.now: int | None = 1
        self.version = 0
        self.reads: list[tuple[int, int]] = []
        self.absent: NDArray[np.bool_] | None = None

    def moment(self) -> int | None:
        return self.now

    def words(self, offset: int, size: int) -> NDArray[np.uint64]:
        return np.arange(offset, offset + size, 8).astype(np.uint64) + np.uint64(self.version << 48)

    def read(self, offset: int, into: memoryview) -> None:
        assert offset % PAGE == len(into) % PAGE == 0
        self.reads.append((offset // PAGE, len(into) // PAGE))
        into[:] = self.words(offset, len(into)).tobytes()

    def present(self, page: int, count: int) -> NDArray[np.bool_] | None:
        return None if self.absent is None else ~self.absent[page : page + count]


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def ram(source: Source) -> MirroredRam:
    low = RamBlock(PhysAddr(0), 200 * PAGE, 0)
    return MirroredRam(source, (low, RamBlock(PhysAddr(HIGH), 100 * PAGE, 200 * PAGE)))


def word(ram: MirroredRam, address: int) -> int:
    return int.from_bytes(ram.read(PhysAddr(address), 8), "little")


def test_a_page_is_read_once_at_a_stop(ram: MirroredRam, source: Source) -> None:
    assert word(ram, 5 * PAGE + 16) == 5 * PAGE + 16
    assert word(ram, 5 * PAGE) == 5 * PAGE
    assert word(ram, HIGH + PAGE) == 201 * PAGE
    assert source.reads == [(5, 1), (201, 1)]


def test_once_the_guest_has_run_it_is_read_anew(ram: MirroredRam, source: Source) -> None:
    assert word(ram, 0) == 0
    source.version = 1
    assert word(ram, 0) == 0  # it stands still: nothing can have changed
    source.now = 2
    assert word(ram, 0) == 1 << 48
    source.now = None  # it runs
    for version in (2, 3):
        source.version = version
        assert word(ram, 0) == version << 48
    source.now, source.version = 2, 4
    assert word(ram, 0) == 4 << 48


def test_gather_fetches_the_pages_in_runs(ram: MirroredRam, source: Source) -> None:
    pages = np.array([7, 3, 4, 6, 40, 7, 299], np.uint64)  # 5 lies in a gap that is not worth two calls
    addresses = np.where(pages < 200, pages * PAGE, HIGH + (pages - np.uint64(200)) * PAGE).astype(np.uint64)
    values, ok = ram.gather(np.append(addresses, np.uint64(250 * PAGE)), np.dtype(np.uint64))
    assert values.tolist() == [*(int(page) * PAGE for page in pages), 0]
    assert ok.tolist() == [True] * 7 + [False]
    assert source.reads == [(3, 5), (40, 1), (299, 1)]


@pytest.mark.parametrize("count", [1, 2, 600, 1500])
def test_items_over_borders_of_pages(ram: MirroredRam, source: Source, count: int) -> None:
    addresses = np.array([PAGE - 8, 20 * PAGE + 8, 80 * PAGE - 8 * count], np.uint64)
    values, ok = ram.gather(addresses, np.dtype(np.uint64), count)
    expected = np.stack([source.words(int(address), 8 * count) for address in addresses])
    assert ok.all()
    assert np.array_equal(values.reshape(3, count), expected)


def test_what_does_not_exist_is_zeros_and_not_read(ram: MirroredRam, source: Source) -> None:
    source.absent = np.zeros(PAGES, np.bool_)
    source.absent[10:150] = True
    found = ram.array(PhysAddr(0), 200 * PAGE).view(np.uint64).reshape(200, -1)
    assert source.reads == [(0, 10), (150, 50)]
    assert not found[10:150].any()
    assert np.array_equal(found[150:].ravel(), source.words(150 * PAGE, 50 * PAGE))


def test_what_a_balloon_took_becomes_zeros(ram: MirroredRam, source: Source) -> None:
    assert ram.array(PhysAddr(0), 200 * PAGE)[20 * PAGE + 8]
    source.absent = np.zeros(PAGES, np.bool_)
    source.absent[20] = True
    source.now = 2
    found = ram.array(PhysAddr(0), 200 * PAGE).reshape(200, PAGE)
    assert not found[20].any()
    assert found[21].any()


def test_it_is_read_only_and_bounded(ram: MirroredRam) -> None:
    with pytest.raises(UsageError, match="a copy here, which cannot be written"):
        ram.write(PhysAddr(0), b"x")
    with pytest.raises(OutsideRam):
        ram.read(PhysAddr(200 * PAGE - 4), 8)
    with pytest.raises(ValueError, match="read-only"):
        ram.array(PhysAddr(0), 8)[0] = 1


def test_what_cannot_be_read_is_not_taken_for_read(ram: MirroredRam, source: Source) -> None:
    def fails(offset: int, into: memoryview) -> None:
        raise MachineError("gone")

    real, source.read = source.read, fails  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="gone"):
        ram.read(PhysAddr(PAGE), 8)
    source.read = real  # type: ignore[method-assign]
    assert word(ram, PAGE) == PAGE


def test_after_close_nothing_reads(ram: MirroredRam) -> None:
    ram.close()
    with pytest.raises(MachineError, match="closed"):
        ram.read(PhysAddr(0), 8)
