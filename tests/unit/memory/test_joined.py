"""Parts of files side by side: every byte where the parts say, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inspector.errors import MachineError, OutsideRam, SetupError, UsageError
from inspector.memory import JoinedRam, RamBlock, RamPart
from inspector.units import PhysAddr

PAGE = 4096


def memfd(data: bytes) -> int:
    """A file in memory with this content."""
    fd = os.memfd_create("part")
    os.write(fd, data)
    return fd


def block(start: int, size: int, offset: int) -> RamBlock:
    return RamBlock(PhysAddr(start), size, offset)


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """Words of 0, 1, 2, ... and of 10,000, 10,001, ..., 8 pages each."""
    made = tuple(memfd(np.arange(first, first + 8 * 512, dtype=np.uint64).tobytes()) for first in (0, 10_000))
    yield made  # type: ignore[misc]
    for fd in made:
        os.close(fd)


def parts(files: tuple[int, int]) -> list[RamPart]:
    """The second file from its third page on comes first."""
    return [RamPart(files[0], 0, 8 * PAGE, 6 * PAGE), RamPart(files[1], 2 * PAGE, 6 * PAGE, 0)]


def test_each_byte_is_its_parts(files: tuple[int, int]) -> None:
    # The first file lies from 1 MiB on in the guest, the second behind it.
    blocks = [block(1 << 20, 8 * PAGE, 6 * PAGE), block((1 << 20) + 8 * PAGE, 6 * PAGE, 0)]
    ram = JoinedRam(parts(files), blocks)
    words = np.frombuffer(ram.read(PhysAddr(1 << 20), 14 * PAGE), np.uint64).tolist()
    assert words == [*range(8 * 512), *range(10_000 + 2 * 512, 10_000 + 8 * 512)]
    over = np.frombuffer(ram.read(PhysAddr((1 << 20) + 8 * PAGE - 8), 16), np.uint64).tolist()
    assert over == [8 * 512 - 1, 10_000 + 2 * 512]
    values, ok = ram.gather(
        np.array([(1 << 20) + 8, (1 << 20) + 8 * PAGE, 0], np.uint64), np.dtype(np.uint64)
    )
    assert (values.tolist(), ok.tolist()) == ([1, 11_024, 0], [True, True, False])
    with pytest.raises(OutsideRam):
        ram.read(PhysAddr((1 << 20) + 14 * PAGE - 8), 16)


def test_what_is_written_there_is_seen(files: tuple[int, int]) -> None:
    ram = JoinedRam(parts(files), [block(0, 14 * PAGE, 0)])
    view = ram.array(PhysAddr(0), 8)
    os.pwrite(files[1], b"new", 2 * PAGE)
    assert ram.read(PhysAddr(0), 3) == view[:3].tobytes() == b"new"
    with pytest.raises(UsageError, match="for reading only"):
        ram.write(PhysAddr(0), b"no")


def test_closed_with_a_view_out(files: tuple[int, int]) -> None:
    ram = JoinedRam(parts(files), [block(0, 14 * PAGE, 0)])
    view = ram.array(PhysAddr(6 * PAGE), 16)
    ram.close()
    assert view.view(np.uint64).tolist() == [0, 1]
    with pytest.raises(MachineError, match="closed"):
        ram.read(PhysAddr(0), 1)
    del view
    assert "memfd:part" not in Path("/proc/self/maps").read_text()


def test_a_file_that_is_too_short(files: tuple[int, int]) -> None:
    with pytest.raises(SetupError, match="shorter than QEMU says"):
        JoinedRam([RamPart(files[0], PAGE, 8 * PAGE, 0)], [block(0, PAGE, 0)])
    with pytest.raises(SetupError, match="cannot be mapped: Invalid argument"):
        JoinedRam([RamPart(files[0], 1, PAGE, 0)], [block(0, PAGE, 0)])
    assert "memfd:part" not in Path("/proc/self/maps").read_text()
