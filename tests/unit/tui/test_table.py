"""The virtual table on an app of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from textual.app import App, ComposeResult
from textual.pilot import Pilot

from inspector.tui.widgets.table import Column, VirtualTable

Row = tuple[int, str]
Table = VirtualTable[Row]
COLUMNS: tuple[Column[Row], ...] = (
    Column("number", lambda row: str(row[0]), lambda row: row[0], 8, True),
    Column("rare", lambda row: "x", lambda row: 0, 30, rank=1),
    Column("name", lambda row: row[1], lambda row: row[1], 0),
)


class Host(App[None]):
    """An app with nothing but a table."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.rows = rows
        self.table: Table = VirtualTable(COLUMNS, lambda row: row[0], lambda row: row[1])

    def compose(self) -> ComposeResult:
        yield self.table

    def on_mount(self) -> None:
        self.table.set_rows(self.rows)
        self.table.focus()


def play(
    rows: Sequence[Row],
    script: Callable[[Table, Pilot[Any]], Awaitable[None]],
    size: tuple[int, int] = (40, 6),
) -> None:
    async def main() -> None:
        app = Host(rows)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(app.table, pilot)

    asyncio.run(main())


def lines(table: Table) -> list[str]:
    return [table.render_line(y).text.rstrip() for y in range(table.size.height)]


def test_right_aligned_numbers_and_a_column_that_gives_way() -> None:
    async def script(table: Table, pilot: Pilot[Any]) -> None:
        assert lines(table)[:3] == ["  number name", "       7 seven", "      12 twelve"]

    play([(7, "seven"), (12, "twelve")], script)


def test_a_hundred_thousand_rows() -> None:
    async def script(table: Table, pilot: Pilot[Any]) -> None:
        await pilot.press("end")
        assert table.row == (99_999, "row 99999")
        assert "99999" in lines(table)[-1]
        await pilot.press("pageup", "home")
        assert table.row == (0, "row 0")
        table.set_filter("ROW 4242")
        assert [row[0] for row in table.shown] == [4242, *range(42420, 42430)]

    play([(n, f"row {n}") for n in range(100_000)], script)


def test_the_cursor_stays_on_its_row() -> None:
    async def script(table: Table, pilot: Pilot[Any]) -> None:
        await pilot.press("down", "down")
        assert table.row == (3, "c")
        table.set_rows([(9, "z"), (3, "changed"), (1, "a")])
        assert table.row == (3, "changed")
        table.sort_by(2)
        assert [row[1] for row in table.shown] == ["a", "changed", "z"]
        assert table.row == (3, "changed")
        table.set_rows([(1, "a"), (9, "z")])  # gone: about where it was
        assert table.row == (9, "z")
        table.set_rows([])
        assert table.row is None

    play([(1, "a"), (2, "b"), (3, "c")], script)


def test_a_wanted_row_is_found_when_it_comes() -> None:
    async def script(table: Table, pilot: Pilot[Any]) -> None:
        table.want(5)
        assert table.row == (1, "a")
        table.set_rows([(1, "a"), (5, "e")])
        assert table.row == (5, "e")

    play([(1, "a")], script)


def test_hostile_and_wide_text_keeps_its_cells() -> None:
    async def script(table: Table, pilot: Pilot[Any]) -> None:
        shown = lines(table)
        assert "[red]evil[/red]" in shown[1]
        assert all(table.render_line(y).cell_length == 40 for y in range(6))
        assert "…" in shown[2]

    play([(1, "[red]evil[/red]"), (2, "漢字" * 30)], script)
