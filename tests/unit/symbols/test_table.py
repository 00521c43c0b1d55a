from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import NoSuchSymbol
from inspector.symbols import Symbol, SymbolTable
from inspector.units import VirtAddr

BASE = 0xFFFF_FFFF_8100_0000
SLIDE = 0x2A0_0000


def row(name: str, address: int, kind: str = "T") -> Symbol:
    return Symbol(name, VirtAddr(address), kind)


@pytest.fixture
def table() -> SymbolTable:
    rows = [
        row("start_kernel", BASE + 0x300),
        row("current_task", 0x1_8F40, "A"),
        row("show", BASE + 0x200, "t"),
        row("_text", BASE),
        row("local_text", BASE, "t"),
        row("show", BASE + 0x100, "t"),
        row("init_task", BASE + 0x1000, "D"),
        row("init_mm", BASE + 0x2000, "D"),
    ]
    return SymbolTable.of(rows, floor=BASE, offset=SLIDE)


def test_addresses_move_but_absolute_ones_stay(table: SymbolTable) -> None:
    assert table.address("_text") == BASE + SLIDE
    assert table.address("init_task") == BASE + SLIDE + 0x1000
    assert table.address("current_task") == 0x1_8F40


def test_shared_names(table: SymbolTable) -> None:
    assert table.all("show") == [
        row("show", BASE + SLIDE + 0x100, "t"),
        row("show", BASE + SLIDE + 0x200, "t"),
    ]
    assert table.address("show") == BASE + SLIDE + 0x100
    assert table.all("nope") == []


def test_presence_and_size(table: SymbolTable) -> None:
    assert len(table) == 8
    assert next(symbol.name for symbol in table) == "current_task"
    assert table.has("init_mm")
    assert "init_mm" in table
    assert not table.has("init_m")
    assert not table.has("")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("init_tusk", "init_task"), ("init_", "init_mm or init_task"), ("start_kernal", "start_kernel")],
)
def test_did_you_mean(table: SymbolTable, asked: str, hint: str) -> None:
    with pytest.raises(NoSuchSymbol, match=f"no symbol '{asked}'; did you mean {hint}\\?"):
        table.address(asked)


def test_no_hint_where_nothing_is_near(table: SymbolTable) -> None:
    with pytest.raises(NoSuchSymbol, match=r"no symbol 'zzz'$"):
        table.address("zzz")


@pytest.mark.parametrize(
    ("at", "name", "past"),
    [
        (0, "_text", 0),  # the global one of two
        (0xFF, "_text", 0xFF),
        (0x100, "show", 0),
        (0x301, "start_kernel", 1),
        (0x2FFF, "init_mm", 0xFFF),
    ],
)
def test_lookup(table: SymbolTable, at: int, name: str, past: int) -> None:
    found = table.lookup(VirtAddr(BASE + SLIDE + at))
    assert found is not None
    assert (found[0].name, found[1]) == (name, past)


@pytest.mark.parametrize(
    "address", [0, 0x1_8F40, BASE + SLIDE - 1, BASE + SLIDE + 0x3000, 0xFFFF_FFFF_FFFF_FFFF, 0x7FFF_0000_0000]
)
def test_lookup_outside_the_image(table: SymbolTable, address: int) -> None:
    assert table.lookup(VirtAddr(address)) is None


def test_complete(table: SymbolTable) -> None:
    assert table.complete("init_") == ["init_mm", "init_task"]
    assert table.complete("s") == ["show", "start_kernel"]  # a name once
    assert table.complete("", 2) == ["_text", "current_task"]
    assert table.complete("zzz") == []


def test_empty() -> None:
    table = SymbolTable.of([])
    assert len(table) == 0
    assert table.lookup(VirtAddr(BASE)) is None
    assert table.complete("a") == []
    with pytest.raises(NoSuchSymbol):
        table.address("a")


NAMES = st.text("ab_", min_size=1, max_size=4)


@given(st.lists(st.tuples(NAMES, st.integers(BASE, BASE + 50)), max_size=30), st.integers(-5, 60))
def test_against_plain_lists(rows: list[tuple[str, int]], at: int) -> None:
    table = SymbolTable.of([row(name, address) for name, address in rows], floor=BASE, offset=SLIDE)
    for name, _ in rows:
        expected = sorted(address + SLIDE for other, address in rows if other == name)
        assert [symbol.address for symbol in table.all(name)] == expected
    assert table.complete("a", 100) == sorted({name for name, _ in rows if name.startswith("a")})
    below = [address for _, address in rows if address <= BASE + at]
    found = table.lookup(VirtAddr(BASE + SLIDE + at))
    assert (found[1] if found else None) == (BASE + at - max(below) if below else None)
