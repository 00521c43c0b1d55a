"""Where a buffer lies: the runs of physical memory behind its address, and its frames."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.errors import CorruptGuest
from inspector.kernel.devices import mask_text
from inspector.kernel.dma_buffers import DmaBuffer, extents
from inspector.kernel.pci_classes import class_name
from inspector.units import PhysAddr, VirtAddr

PAGE = 4096
PMD, PT = 0x2000, 0x3000
BASE = 0x200000  # the second entry of the PMD, mapped by small pages


@pytest.fixture
def mapped(tiny: Any) -> Any:
    """Five pages at BASE: physical 0x10000, 0x11000, a hole, 0x20000, 0x12000."""
    tiny.put(PMD + 8, PT | 3)
    tiny.put(PT, 0x10003, 0x11003, 0, 0x20003, 0x12003)
    return tiny


@pytest.mark.parametrize(
    ("offset", "size", "runs"),
    [
        (0, PAGE, [(0x10000, PAGE)]),
        (0x10, 0x20, [(0x10010, 0x20)]),
        (0xFF0, 0x20, [(0x10FF0, 0x20)]),
        (0, 2 * PAGE, [(0x10000, 2 * PAGE)]),
        (0x800, 5 * PAGE - 0x900, [(0x10800, 2 * PAGE - 0x800), (0x20000, PAGE), (0x12000, PAGE - 0x100)]),
        (2 * PAGE, PAGE, []),
        (0, 0, []),
    ],
)
def test_extents(mapped: Any, offset: int, size: int, runs: list[tuple[int, int]]) -> None:
    assert list(extents(mapped, VirtAddr(BASE + offset), size)) == runs


@pytest.mark.parametrize(("address", "size"), [(BASE, 1 << 40), ((1 << 64) - PAGE, 2 * PAGE)])
def test_what_no_buffer_can_be(mapped: Any, address: int, size: int) -> None:
    with pytest.raises(CorruptGuest, match="a buffer of"):
        extents(mapped, VirtAddr(address), size)


def buffer(*runs: tuple[int, int]) -> DmaBuffer:
    found = tuple((PhysAddr(start), size) for start, size in runs)
    return DmaBuffer(None, "pages", "", None, None, sum(size for _, size in runs), found, None, "test")


def test_frames() -> None:
    assert buffer((0x10FF0, 0x20), (0x20000, PAGE)).frames(PAGE).tolist() == [0x10, 0x11, 0x20]
    assert buffer((0x10000, 0x20)).phys == 0x10000
    assert (buffer().frames(PAGE).tolist(), buffer().phys) == ([], None)


def test_words() -> None:
    assert mask_text((1 << 28) - 1) == "28 bits, to 256 MiB"
    assert mask_text((1 << 64) - 1) == "64 bits, all memory"
    assert class_name(0x010802) == "NVM controller"
    assert class_name(0x020700) == "network device"
    assert class_name(0x00FF00) == "unclassified device"
    assert class_name(0x7F0000) == "unknown device"
