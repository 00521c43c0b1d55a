from __future__ import annotations

import struct
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.arch import (
    MAPPING,
    X86_64_4LEVEL,
    X86_64_5LEVEL,
    FaultKind,
    Right,
    scan,
    scanner,
    translate,
    walk,
    x86_64,
)
from inspector.errors import CorruptGuest
from inspector.memory import MappedRam, RamBlock
from inspector.units import PhysAddr, VirtAddr

if TYPE_CHECKING:
    from tests.unit.arch.conftest import NaiveMmu, Tables

P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
GIB, MIB2, PAGE = 1 << 30, 1 << 21, 1 << 12


def rows(*expected: tuple[int, int, int, int, int]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in expected]


def test_all_sizes_sorted_and_canonical(tables: Tables) -> None:
    top = 0xFFFF_FFFF_FFFF_F000
    tables.map(top, 0x9000 | P | NX)
    tables.map(0xFFFF_8880_0000_0000, 0x8000_0000 | P | RW | PS | NX, 3)
    tables.map(0x40_0000, 0x60_0000 | P | US | PS, 2)
    tables.map(0x3F_F000, 0x7000 | P | RW | US)
    tables.map(0x60_0000, 0x8000 | P | RW | US | NX)
    found = tables.space.scan()
    assert found.dtype == MAPPING
    assert found.tolist() == rows(
        (0x3F_F000, 0x7000, PAGE, 0x7000 | P | RW | US, Right.W | Right.U | Right.X),
        (0x40_0000, 0x60_0000, MIB2, 0x60_0000 | P | US | PS, Right.U | Right.X),
        (0x60_0000, 0x8000, PAGE, 0x8000 | P | RW | US | NX, Right.W | Right.U),
        (0xFFFF_8880_0000_0000, 0x8000_0000, GIB, 0x8000_0000 | P | RW | PS | NX, Right.W),
        (top, 0x9000, PAGE, 0x9000 | P | NX, 0),
    )


def test_a_range_cuts_on_every_level(tables: Tables) -> None:
    for va in (0x1000, 0x2000, 0x3000):
        tables.map(va, va | P)
    tables.map(MIB2, MIB2 | P | PS, 2)
    tables.map(GIB, GIB | P | PS, 3)
    tables.map(0xFFFF_FFFF_8000_0000, 0x4000 | P)

    def starts(start: int, end: int) -> list[int]:
        return [int(va) for va in tables.space.scan(start, end)["va"]]

    assert starts(0x2000, 0x3000) == [0x2000]
    assert starts(0x2FFF, 0x3001) == [0x2000, 0x3000]
    assert starts(MIB2 + 0x5000, MIB2 + 0x6000) == [MIB2]
    assert starts(2 * MIB2, GIB) == []
    assert starts(2 * MIB2, GIB + 1) == [GIB]
    assert starts(2 * GIB - 1, 1 << 64) == [GIB, 0xFFFF_FFFF_8000_0000]
    assert starts(1 << 63, 1 << 64) == [0xFFFF_FFFF_8000_0000]
    assert starts(0, 1 << 63) == [0x1000, 0x2000, 0x3000, MIB2, GIB]
    assert starts(0x2000, 0x2000) == []
    assert starts(0x3000, 0x1000) == []
    assert starts(-5, 0x1001) == [0x1000]
    assert starts(1 << 64, 1 << 65) == []


def test_what_the_mmu_would_not_use_is_no_mapping(tables: Tables) -> None:
    tables.map(0x1000, 0x1000 | P)
    tables.map(0x40_0000, 0x2000 | P | PS, 2)  # reserved bit 13
    tables.map(0x60_0000, 0x9_0000_0000 | P, 2)  # a table that is not RAM
    tables.map(0x8000_0000, 0x5000)  # not present
    assert tables.space.scan()["va"].tolist() == [0x1000]


def test_nonpresent_entries_on_request(tables: Tables) -> None:
    tables.map(0x1000, 0x1000 | P | US)
    tables.map(0x2000, 0xFFFF_FF00_0000_0200)
    tables.map(0x40_0000, 0xABC_0000, 2)
    tables.map(0x60_0000, 0)
    found = tables.space.scan(nonpresent=True)
    assert found.tolist() == rows(
        (0x1000, 0x1000, PAGE, 0x1000 | P | US, Right.U | Right.X),
        (0x2000, 0, PAGE, 0xFFFF_FF00_0000_0200, 0),
        (0x40_0000, 0, MIB2, 0xABC_0000, 0),
    )
    assert tables.format.present(found["entry"]).tolist() == [True, False, False]
    assert tables.space.scan(0x2000, 0x3000, nonpresent=True)["va"].tolist() == [0x2000]


def test_a_root_outside_ram_maps_nothing(tables: Tables) -> None:
    assert len(scan(tables.ram, tables.format, PhysAddr(0))) == 0
    pas, ok = translate(tables.ram, tables.format, PhysAddr(0), np.array([0, 0x1000], np.uint64))
    assert (pas.tolist(), ok.tolist()) == ([0, 0], [False, False])


def test_tables_that_lead_to_themselves_are_bounded(tables: Tables) -> None:
    for index in range(512):
        tables.put_entry(tables.root, index, tables.root | P)
    with pytest.raises(CorruptGuest, match="limit"):
        tables.space.scan(limit=1 << 20)


def test_one_recursive_entry_is_followed_as_the_mmu_does(tables: Tables) -> None:
    tables.put_entry(tables.root, 511, tables.root | P | RW)
    found = tables.space.scan()
    assert found[["va", "pa"]].tolist() == [(0xFFFF_FFFF_FFFF_F000, tables.root)]


def test_translate_many(tables: Tables) -> None:
    tables.map(0x40_0000, 0x60_0000 | P | PS, 2)
    tables.map(0xFFFF_FFFF_8000_0000, 0x5000 | P)
    vas = np.array([0x40_0001, 0x5F_FFFF, 0x60_0000, 0xFFFF_FFFF_8000_0ABC, 1 << 63], np.uint64)
    pas, ok = translate(tables.ram, tables.format, tables.root, vas)
    assert ok.tolist() == [True, True, False, True, False]
    assert pas.tolist() == [0x60_0001, 0x7F_FFFF, 0, 0x5ABC, 0]


def test_more_tables_than_are_read_at_once(make_tables: type[Tables]) -> None:
    tables = make_tables(4, pages=8)
    pte = tables.page()
    tables.put_entry(pte, 3, 0x7000 | P)
    pmds = [tables.page() for _ in range(3)]
    for pmd in pmds:
        for index in range(512):
            tables.put_entry(pmd, index, pte | P)
        tables.map(GIB * pmds.index(pmd), pmd | P, 3)
    found = tables.space.scan()
    assert found["va"].tolist() == [MIB2 * i + 3 * PAGE for i in range(3 * 512)]
    assert set(found["pa"].tolist()) == {0x7000}


# Random tables: 8 pages of RAM in two blocks, whose entries mostly lead to each other.
PAGES = [0x0, 0x1000, 0x2000, 0x3000, 0x10_0000_0000, 0x10_0000_1000, 0x10_0000_2000, 0x10_0000_3000]
BLOCKS = [RamBlock(PhysAddr(0), 0x4000, 0x4000), RamBlock(PhysAddr(0x10_0000_0000), 0x4000, 0)]
BITS = [1, 2, 7, 8, 9, 12, 13, 20, 29, 45, 51, 58, 63]


def random_entry(rng: Random) -> int:
    """Mostly a way on to another table, sometimes a large page, odd bits, or garbage."""
    odd = sum(1 << bit for bit in rng.sample(BITS, rng.randrange(4)))
    page = rng.choice(PAGES) | P | RW | US
    large = rng.choice([0, GIB, 77 * GIB, 5 * MIB2]) | P | RW | US | PS
    return rng.choice([page, page, page, page & ~RW, page ^ odd, large, large ^ odd, rng.getrandbits(64)])


@settings(max_examples=40)
@given(
    st.randoms(use_true_random=True),
    st.sampled_from([4, 5]),
    st.sampled_from([52, 46, 40]),
    st.booleans(),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=5),
)
def test_walk_scan_and_translate_agree_with_the_manual(
    naive_mmu: type[NaiveMmu],
    rng: Random,
    levels: int,
    maxphyaddr: int,
    nx: bool,
    others: list[int],
) -> None:
    pages = {pa: bytearray(PAGE) for pa in PAGES}
    for page in pages.values():
        for index in rng.sample([0, 1, 255, 256, 510, 511], 3):
            struct.pack_into("<Q", page, 8 * index, random_entry(rng))
    file = b"".join(pages[pa] for pa in [*PAGES[4:], *PAGES[:4]])
    ram, root = MappedRam(file, BLOCKS), PhysAddr(0x1000)
    format_ = x86_64(levels, maxphyaddr, nx)

    def read8(pa: int) -> bytes | None:
        page = pages.get(pa & ~0xFFF)
        return bytes(page[pa & 0xFFF : (pa & 0xFFF) + 8]) if page else None

    mmu = naive_mmu(read8, root, levels)
    mmu.maxphyaddr, mmu.nxe = maxphyaddr, nx
    letters = {Right.W: "w", Right.U: "u", Right.X: "x"}
    expected = [(va, out.pa, out.size, out.entry, out.rights) for va, out in mmu.leaves()]
    found = scan(ram, format_, root)
    assert sorted(expected) == [
        (va, pa, size, entry, "".join(sorted(name for bit, name in letters.items() if rights & bit)))
        for va, pa, size, entry, rights in found.tolist()
    ]

    vas = [va + offset for va, _, size, *_ in expected[:50] for offset in (0, size // 2 + 1, size - 1)]
    vas += [va ^ 1 << 60 for va, *_ in expected[:20]]  # the same indices, but not canonical
    vas += [format_.canonical(va) for va in others] + others + [0, (1 << 64) - 1]
    pas, ok = translate(ram, format_, root, np.array(vas, np.uint64))
    kinds = {
        FaultKind.NON_CANONICAL: "gp",
        FaultKind.NOT_PRESENT: "p",
        FaultKind.RESERVED_BITS: "rsvd",
        FaultKind.OUTSIDE_RAM: "bus",
    }
    for va, pa, good in zip(vas, pas.tolist(), ok.tolist(), strict=True):
        out = mmu.translate(va)
        walked = walk(ram, format_, root, VirtAddr(va))
        assert good == (out.kind == "ok")
        assert pa == out.pa
        if walked.fault:
            assert kinds[walked.fault.kind] == out.kind
            assert (walked.fault.level is None) == (out.kind == "gp")
            if walked.fault.level:
                assert walked.fault.level is format_.levels[-out.level]
        else:
            rights = {"w": walked.writable, "u": walked.user, "x": walked.executable}
            assert (out.kind, walked.phys, walked.page_size) == ("ok", out.pa, out.size)
            assert "".join(sorted(name for name, has in rights.items() if has)) == out.rights


@settings(max_examples=50)
@given(st.integers(0, 1 << 32), st.booleans())
def test_garbage_gives_rows_or_a_named_error(seed: int, five: bool) -> None:
    garbage = np.random.default_rng(seed).bytes(4 * PAGE)
    entries = np.frombuffer(garbage, np.uint64)
    # Addresses bent into the four pages, so that the garbage is walked and not only skipped.
    bent = (entries & np.uint64(0x8000_0000_0000_3FFF)).tobytes()
    for data in (garbage, bent):
        ram = MappedRam(data, [RamBlock(PhysAddr(0), 4 * PAGE, 0)])
        try:
            found = scan(ram, X86_64_5LEVEL if five else X86_64_4LEVEL, PhysAddr(0), limit=1 << 18)
        except CorruptGuest:
            continue
        assert (found["va"][1:] > found["va"][:-1]).all()


def test_tables_are_those_that_were_made(tables: Tables) -> None:
    """Each table once, with the first address it translates and how far down it is."""
    made = [(int(tables.root), 0, 0)]
    for va, height in ((0x7000_0000_1000, 1), (0x7000_0020_0000, 2), (0x1000_0000_0000, 3)):
        before = tables._next
        tables.map(va, 0x200_0000 | P | (PS if height > 1 else 0), height)
        fresh = range(before, tables._next, PAGE)
        for place, table in enumerate(fresh, tables.levels - height + 1 - len(fresh)):
            span = 12 + 9 * (tables.levels - place)
            made.append((table, va >> span << span, place))
    leaves, found = scanner.survey(tables.ram, tables.format, np.array([tables.root], np.uint64))
    assert found[["pa", "va", "level"]].tolist() == sorted(made)
    # The 1 GiB page is not aligned as one must be: it maps nothing.
    assert sorted(leaves[["va", "size"]].tolist()) == [(0x7000_0000_1000, PAGE), (0x7000_0020_0000, 2 << 20)]


def test_tables_of_a_range(tables: Tables) -> None:
    tables.map(0x1000, 0x9000 | P)
    tables.map(0x7000_0000_1000, 0xA000 | P)
    roots = np.array([tables.root], np.uint64)
    leaves, found = scanner.survey(tables.ram, tables.format, roots, start=1 << 40)
    assert leaves["va"].tolist() == [0x7000_0000_1000]
    assert len(found) == tables.levels


def test_many_roots_share_tables(tables: Tables) -> None:
    """A shared table is the first root's, and what is below it is there once."""
    tables.map(0x1000, 0x9000 | P)
    second = tables.page()
    tables.ram.write(PhysAddr(second), tables.ram.read(PhysAddr(tables.root), 8))
    roots = np.array([tables.root, second], np.uint64)
    leaves, found = scanner.survey(tables.ram, tables.format, roots)
    assert leaves[["va", "pa", "root"]].tolist() == [(0x1000, 0x9000, 0)]
    assert sorted(found["root"].tolist()) == [0] * tables.levels + [1]
