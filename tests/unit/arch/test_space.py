from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.arch import FaultKind
from inspector.errors import OutsideRam, PageFault
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from tests.unit.arch.conftest import Tables

P, PS = 1, 0x80
PAGE = 4096
BASE = 0xFFFF_C900_0000_0000


def va(address: int) -> VirtAddr:
    return VirtAddr(address)


def scattered(make_tables: type[Tables], count: int, base: int = 0x40000) -> tuple[Tables, bytes]:
    """`count` virtual pages from BASE on, physically shuffled, and what they hold."""
    rng = np.random.default_rng(3)
    tables = make_tables(4, pages=16 + count, base=base)
    for index in range(0, count, 512):
        tables.map(BASE + index * PAGE, 0)
    frames = [tables.page() for _ in range(count)]
    # Shuffled by the half, so that there are contiguous runs too.
    frames[: count // 2] = [frames[i] for i in rng.permutation(count // 2)]
    content = rng.integers(0, 256, count * PAGE, np.uint8).tobytes()
    for index, frame in enumerate(frames):
        tables.map(BASE + index * PAGE, frame | P)
        tables.put(frame, content[index * PAGE : (index + 1) * PAGE])
    return tables, content


@pytest.mark.parametrize("count", [8, 200])
def test_reads_across_pages(make_tables: type[Tables], count: int) -> None:
    tables, content = scattered(make_tables, count)
    space = tables.space
    for offset, size in [
        (0, 0),
        (0, 1),
        (PAGE - 1, 2),
        (5, 3 * PAGE),
        (count // 2 * PAGE - 7, 2 * PAGE),
        (9, count * PAGE - 20),
        (0, count * PAGE),
    ]:
        assert space.read(va(BASE + offset), size) == content[offset : offset + size]
        array = space.array(va(BASE + offset), size)
        assert array.tobytes() == content[offset : offset + size]
        assert not array.flags.writeable


def test_a_contiguous_range_is_read_in_place(make_tables: type[Tables]) -> None:
    tables, _ = scattered(make_tables, 200)
    array = tables.space.array(va(BASE + 100 * PAGE), 100 * PAGE)
    assert array.base is not None
    pa = tables.space.translate(va(BASE + 150 * PAGE + 5))
    assert pa is not None
    tables.put(pa, b"\xa5\x5a")
    assert array[50 * PAGE + 5 : 50 * PAGE + 7].tolist() == [0xA5, 0x5A]


@pytest.mark.parametrize("count", [8, 200])
def test_a_hole_faults_with_the_walk_of_its_first_byte(make_tables: type[Tables], count: int) -> None:
    tables, _ = scattered(make_tables, count)
    space = tables.space
    for start, hole in [(BASE - 1, BASE - 1), (BASE + 1, BASE + count * PAGE)]:
        with pytest.raises(PageFault, match="not present") as caught:
            space.read(va(start), count * PAGE)
        assert caught.value.walk.va == hole
        assert caught.value.walk.fault.kind is FaultKind.NOT_PRESENT
    tables.map(BASE + 3 * PAGE, 0)
    space.flush()
    with pytest.raises(PageFault) as caught:
        space.array(va(BASE), count * PAGE)
    assert caught.value.walk.va == BASE + 3 * PAGE
    with pytest.raises(PageFault):
        space.u64(va(BASE + 3 * PAGE))


def test_a_range_over_the_end_of_the_address_space(make_tables: type[Tables]) -> None:
    tables = make_tables(4, pages=64)
    last = (1 << 64) - 40 * PAGE
    frames = [tables.page() for _ in range(40)]
    for index, frame in enumerate(frames):
        tables.map(last + index * PAGE, frame | P)
    tables.put(frames[-1] + PAGE - 4, b"last")
    assert tables.space.read(va(last), 40 * PAGE)[-4:] == b"last"
    assert tables.space.read(va((1 << 64) - 4), 4) == b"last"
    for size in (8, 40 * PAGE + 1):
        with pytest.raises(PageFault) as caught:
            tables.space.read(va((1 << 64) - size + 1), size)
        assert caught.value.walk.fault.kind is FaultKind.NON_CANONICAL
    tables.map(0, frames[0] | P)  # nothing wraps around to it
    _, ok = tables.space.gather(np.array([(1 << 64) - 4], np.uint64), np.dtype("<u8"))
    assert not ok.any()


def test_scalars(tables: Tables) -> None:
    frame = tables.page()
    tables.put(frame + 8, bytes(range(0x81, 0x91)))
    tables.map(BASE, frame | P)
    space = tables.space
    assert space.u8(va(BASE + 8)) == 0x81
    assert space.u16(va(BASE + 8)) == 0x8281
    assert space.u32(va(BASE + 8)) == 0x84838281
    assert space.u64(va(BASE + 9)) == 0x8988878685848382
    assert space.pointer(va(BASE + 8)) == 0x8887868584838281


def test_scalar_over_a_page_border(make_tables: type[Tables]) -> None:
    tables, content = scattered(make_tables, 4)
    assert tables.space.u64(va(BASE + PAGE - 3)) == int.from_bytes(content[PAGE - 3 : PAGE + 5], "little")


def test_large_pages_are_remembered_whole_and_exactly(tables: Tables) -> None:
    tables.map(BASE, 0x4000_0000 | P | PS, 3)
    tables.map(BASE + (1 << 30), 0x20_0000 | P | PS, 2)
    space = tables.space
    for _ in range(2):
        assert space.translate(va(BASE + 0x3FFF_FFFF)) == 0x7FFF_FFFF
        assert space.translate(va(BASE + 0x1234_5678)) == 0x5234_5678
        assert space.translate(va(BASE + (1 << 30) + 0x1F_FFFF)) == 0x3F_FFFF
        assert space.translate(va(BASE + (1 << 30) + 0x20_0000)) is None
        assert space.translate(va(BASE - 1)) is None


def test_translations_hold_until_flushed(tables: Tables) -> None:
    tables.map(BASE, 0x5000 | P)
    tables.map(BASE + (1 << 21), 0x40_0000 | P | PS, 2)
    space = tables.space
    assert space.translate(va(BASE + 1)) == 0x5001
    assert space.translate(va(BASE + (1 << 21) + 0x5001)) == 0x40_5001
    tables.map(BASE, 0x6000 | P)
    tables.map(BASE + (1 << 21), 0x80_0000 | P | PS, 2)
    assert space.translate(va(BASE + 1)) == 0x5001
    assert space.translate(va(BASE + (1 << 21) + 0x6001)) == 0x40_6001
    space.flush()
    assert space.translate(va(BASE + 1)) == 0x6001
    assert space.translate(va(BASE + (1 << 21) + 0x6001)) == 0x80_6001


def test_what_is_mapped_and_not_ram(tables: Tables) -> None:
    tables.map(BASE, 0xFEE0_0000 | P)
    assert tables.space.translate(va(BASE)) == 0xFEE0_0000
    with pytest.raises(OutsideRam):
        tables.space.u32(va(BASE))
    _, ok = tables.space.gather(np.array([BASE], np.uint64), np.dtype("<u4"))
    assert not ok.any()


def test_cstring(make_tables: type[Tables]) -> None:
    tables, _ = scattered(make_tables, 2)
    frames = [tables.space.translate(va(BASE + i * PAGE)) for i in range(2)]
    assert frames[0] is not None
    assert frames[1] is not None
    tables.put(frames[0] + PAGE - 4, b"swap")
    tables.put(frames[1], b"per/0\0after")
    space = tables.space
    assert space.cstring(va(BASE + PAGE - 4)) == "swapper/0"
    assert space.cstring(va(BASE + PAGE - 4), 6) == "swappe"
    assert space.cstring(va(BASE + PAGE + 5)) == ""
    tables.put(frames[1], "kö\udcff".encode("utf-8", "surrogateescape") + b"\0")
    assert space.cstring(va(BASE + PAGE)) == "kö\\xff"
    tables.put(frames[1] + PAGE - 3, b"end")
    assert space.cstring(va(BASE + 2 * PAGE - 3), 3) == "end"
    with pytest.raises(PageFault):
        space.cstring(va(BASE + 2 * PAGE - 3), 4)


# Near the borders of 12 pages, where elements are cut.
OFFSETS = st.builds(lambda page, delta: page * PAGE + delta, st.integers(0, 12), st.integers(-30, 20))


@settings(max_examples=60)
@given(
    st.lists(OFFSETS, min_size=5, max_size=30),
    st.sampled_from(["u1", "<u2", "<u8", "V24"]),
    st.sampled_from([1, 2, 5, 700]),
)
def test_gather_agrees_with_reads(
    make_tables: type[Tables], offsets: list[int], kind: str, count: int
) -> None:
    tables, content = scattered(make_tables, 12, base=0)  # physical 0 is RAM: what is unmapped is not that
    tables.map(BASE + 5 * PAGE, 0)
    dtype = np.dtype(kind)
    size = dtype.itemsize * count
    vas = np.array([BASE + offset for offset in offsets], np.uint64)
    values, ok = tables.space.gather(vas, dtype, count)
    hole = range(5 * PAGE, 6 * PAGE)
    expected = [
        content[offset : offset + size]
        if 0 <= offset <= 12 * PAGE - size and (offset + size <= hole.start or offset >= hole.stop)
        else None
        for offset in offsets
    ]
    assert values.shape == ((len(vas), count) if count > 1 else (len(vas),))
    assert ok.tolist() == [data is not None for data in expected]
    assert values.tobytes() == b"".join(data or bytes(size) for data in expected)
