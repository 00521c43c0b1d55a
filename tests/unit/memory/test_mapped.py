from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import MachineError, OutsideRam, SetupError, UsageError
from inspector.memory import MappedRam, RamBlock
from inspector.units import GIB, PhysAddr

PAGE = 4096
U64 = np.dtype("<u8")


def pattern(size: int) -> bytearray:
    """Bytes that tell where they stand."""
    return bytearray(np.random.default_rng(7).integers(0, 256, size, np.uint8).tobytes())


def block(start: int, size: int, offset: int) -> RamBlock:
    return RamBlock(PhysAddr(start), size, offset)


def addresses(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


# As on q35: below the PCI hole, above it, and file bytes between and behind them that are no RAM.
HOLE = [block(4 * GIB, 2 * PAGE, 5 * PAGE), block(0, 3 * PAGE, PAGE)]
FILE = pattern(8 * PAGE)


def byte_at(address: int) -> int | None:
    """What HOLE says a guest-physical byte is, spelled out once more by hand."""
    if 0 <= address < 0x3000:
        return FILE[0x1000 + address]
    if 0x1_0000_0000 <= address < 0x1_0000_2000:
        return FILE[0x5000 + address - 0x1_0000_0000]
    return None


def bytes_at(address: int, size: int) -> bytes | None:
    found = [byte_at(address + i) for i in range(size)]
    return None if None in found else bytes(b for b in found if b is not None)


NEAR_BORDERS = st.builds(
    lambda border, delta: (border + delta) % (1 << 64),
    st.sampled_from([0, 0x1000, 0x3000, 0x1_0000_0000, 0x1_0000_2000, 1 << 63, (1 << 64) - 1]),
    st.integers(-80, 80),
)


@given(NEAR_BORDERS, st.integers(1, 200))
def test_reads_what_is_ram_and_refuses_the_rest(address: int, size: int) -> None:
    ram = MappedRam(FILE, HOLE)
    expected = bytes_at(address, size)
    assert ram.contains(addresses(address), size).tolist() == [expected is not None]
    if expected is None:
        with pytest.raises(OutsideRam):
            ram.read(PhysAddr(address), size)
        with pytest.raises(OutsideRam):
            ram.array(PhysAddr(address), size)
    else:
        assert ram.read(PhysAddr(address), size) == expected
        assert ram.array(PhysAddr(address), size).tobytes() == expected


@given(
    st.lists(NEAR_BORDERS, max_size=20),
    st.sampled_from(["u1", "<u2", "<u4", "<u8", "V3", [("a", "<u4"), ("b", "<u8")]]),
    st.integers(1, 9),
    st.booleans(),
)
def test_gather_agrees_with_single_reads(where: list[int], kind: object, count: int, align: bool) -> None:
    dtype = np.dtype(kind)  # type: ignore[call-overload]
    if align:
        where = [address // dtype.itemsize * dtype.itemsize for address in where]
    values, ok = MappedRam(FILE, HOLE).gather(addresses(*where), dtype, count)
    expected = [bytes_at(address, dtype.itemsize * count) for address in where]
    assert values.shape == ((len(where), count) if count > 1 else (len(where),))
    assert values.dtype == dtype
    assert ok.tolist() == [data is not None for data in expected]
    assert values.tobytes() == b"".join(data or bytes(dtype.itemsize * count) for data in expected)


def test_rows_of_tables_are_gathered_whole() -> None:
    values, ok = MappedRam(FILE, HOLE).gather(addresses(0x1_0000_1000, 0x3000, 0x2000), U64, 512)
    assert ok.tolist() == [True, False, True]
    assert values[0].tobytes() == FILE[0x6000:0x7000]
    assert not values[1].any()
    assert values[2].tobytes() == FILE[0x3000:0x4000]


def test_blocks_that_adjoin_only_in_the_guest() -> None:
    ram = MappedRam(FILE, [block(0, PAGE, 4 * PAGE), block(PAGE, PAGE, 0)])
    across = bytes(FILE[5 * PAGE - 3 : 5 * PAGE]) + bytes(FILE[:5])
    assert ram.read(PhysAddr(PAGE - 3), 8) == across
    copy = ram.array(PhysAddr(PAGE - 3), 8)
    assert copy.tobytes() == across
    assert not copy.flags.writeable
    assert ram.contains(addresses(PAGE - 3, 2 * PAGE - 3), 8).tolist() == [True, False]
    values, ok = ram.gather(addresses(0, PAGE - 3, 2 * PAGE - 3), U64)
    assert ok.tolist() == [True, True, False]
    assert values.tobytes() == bytes(FILE[4 * PAGE : 4 * PAGE + 8]) + across + bytes(8)
    pairs, ok = ram.gather(addresses(PAGE - 3), np.dtype("<u4"), 2)
    assert pairs.tobytes() == across
    assert ok.all()


def test_blocks_are_sorted_and_joined_where_the_file_goes_on() -> None:
    blocks = [
        block(PAGE, PAGE, PAGE),
        block(0, PAGE, 0),
        block(0x10000, 0, 0),
        block(2 * PAGE, PAGE, 4 * PAGE),
    ]
    assert MappedRam(FILE, blocks).blocks == (block(0, 2 * PAGE, 0), block(2 * PAGE, PAGE, 4 * PAGE))


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [block(0, 0, 0)],
        [block(0, PAGE, 0), block(PAGE - 1, PAGE, 2 * PAGE)],
        [block(0, 8 * PAGE, 1)],
        [block(0, PAGE, -1)],
    ],
    ids=["none", "empty", "overlap", "past the end", "before the start"],
)
def test_blocks_that_make_no_sense(blocks: list[RamBlock]) -> None:
    with pytest.raises(UsageError):
        MappedRam(FILE, blocks)


def test_arrays_are_read_only_views() -> None:
    data = bytearray(PAGE)
    ram = MappedRam(data, [block(0, PAGE, 0)])
    view = ram.array(PhysAddr(16), 4)
    data[17] = 0xAB
    assert view.tolist() == [0, 0xAB, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_an_unaligned_buffer_reads_the_same() -> None:
    odd = memoryview(bytearray(b"x") + FILE)[1:]
    values, ok = MappedRam(odd, HOLE).gather(addresses(8, 0x2FF8), U64)
    assert ok.all()
    assert values.tobytes() == bytes(FILE[0x1008:0x1010]) + bytes(FILE[0x3FF8:0x4000])


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 64 * PAGE)
    yield fd
    os.close(fd)


def test_mapping_a_file_commits_nothing(memfd: int) -> None:
    ram = MappedRam.from_fd(memfd, [block(0, 64 * PAGE, 0)], writable=True)
    assert os.fstat(memfd).st_blocks == 0
    os.pwrite(memfd, b"hello", 5 * PAGE)
    assert ram.read(PhysAddr(5 * PAGE), 5) == b"hello"
    ram.close()


def test_writing_needs_a_writable_mapping(memfd: int) -> None:
    blocks = [block(0, PAGE, 0), block(PAGE, PAGE, 8 * PAGE)]
    with pytest.raises(UsageError):
        MappedRam.from_fd(memfd, blocks).write(PhysAddr(0), b"no")
    ram = MappedRam.from_fd(memfd, blocks, writable=True)
    ram.write(PhysAddr(PAGE - 2), b"yes!")
    assert os.pread(memfd, 2, PAGE - 2) + os.pread(memfd, 2, 8 * PAGE) == b"yes!"
    with pytest.raises(OutsideRam):
        ram.write(PhysAddr(2 * PAGE - 2), b"half")
    assert os.pread(memfd, 2, 9 * PAGE - 2) == b"\0\0"
    with pytest.raises(ValueError, match="read-only"):
        ram.array(PhysAddr(0), 1)[0] = 1


def test_a_file_shorter_than_the_guest_is_refused(memfd: int) -> None:
    with pytest.raises(SetupError, match="needs"):
        MappedRam.from_fd(memfd, [block(0, 65 * PAGE, 0)])


def test_what_cannot_be_mapped_is_a_setup_error() -> None:
    reading, writing = os.pipe()
    with pytest.raises(SetupError, match="cannot be mapped"):
        MappedRam.from_fd(reading, [block(0, PAGE, 0)])
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("view_out", [False, True])
def test_after_close_nothing_reads_but_views_live_on(memfd: int, view_out: bool) -> None:
    os.pwrite(memfd, b"hello", 0)
    ram = MappedRam.from_fd(memfd, [block(0, PAGE, 0)])
    view = ram.array(PhysAddr(0), 5) if view_out else None
    ram.close()
    ram.close()
    with pytest.raises(MachineError):
        ram.read(PhysAddr(0), 1)
    with pytest.raises(MachineError):
        ram.gather(addresses(0), U64)
    with pytest.raises(MachineError):
        ram.contains(addresses(0), 1)
    assert view is None or view.tobytes() == b"hello"
