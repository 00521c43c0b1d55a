"""Swap areas, and what tasks have elsewhere than in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.kernel.owners import Owner
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source, Swap, SwapRow
from inspector.tui.views.base import Go
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import format_size

_SHOWN = 6  # areas drawn


class SwapAreas(Drawing):
    """A bar for each area: how much of it is taken."""

    def __init__(self) -> None:
        super().__init__(id="swap-areas")
        self._swap: Swap | None = None

    def show(self, swap: Swap | None) -> None:
        """A snapshot."""
        self._swap = swap
        self.redraw()

    def draw(self, width: int) -> Text:
        """Two lines an area."""
        text = Text()
        swap = self._swap
        if swap is None:
            return text
        cached = format_size(swap.cached * swap.page_size)
        heading(text, "Swap areas", width, f"{cached} of user memory in the swap cache: here and there")
        if not swap.areas:
            text.append("this guest swaps nowhere: no swap area is in use", palette.DIM)
        for index, area in enumerate(swap.areas[:_SHOWN]):
            share = area.used / area.pages if area.pages else 0.0
            used, whole = (format_size(pages * swap.page_size) for pages in (area.used, area.pages))
            label = f" {used:>9} of {whole:>9} {share:>4.0%}"
            color = palette.BAD if share > 0.9 else palette.WARN if share > 0.6 else palette.ACCENT
            text.append("\n" if index else "")
            text.append(bar(share, max(4, width - len(label))), f"{color} on {palette.PANEL}")
            text.append(label + "\n")
            facts = f" {area.kind}, priority {area.priority}, {' '.join(area.flag_names)}"
            line = Text.assemble(
                (f"type {area.type} ", palette.WARN),
                (area.path, f"bold {palette.FOREGROUND}"),
                (facts, palette.DIM),
            )
            line.truncate(width, overflow="ellipsis")
            text.append_text(line)
        if len(swap.areas) > _SHOWN:
            text.append(f"\nand {len(swap.areas) - _SHOWN} more", palette.DIM)
        return text


def _offsets(row: SwapRow) -> str:
    return "-" if row.offsets is None else f"{row.offsets[0]:#x}-{row.offsets[1]:#x}"


COLUMNS: tuple[Column[SwapRow], ...] = (
    Column("PID", lambda row: str(row.pid), lambda row: row.pid, 7, True),
    Column("task", lambda row: row.name, lambda row: row.name.casefold(), 0),
    Column("entry", lambda row: row.use, lambda row: row.use, 15, color=lambda row: _color(row)),
    Column(
        "type", lambda row: "-" if row.type is None else str(row.type), lambda row: row.type or 0, 4, True
    ),
    Column("entries", lambda row: str(row.count), lambda row: row.count, 8, True, falls=True),
    Column("first address", lambda row: f"{row.va:#x}", lambda row: row.va, 18, True, rank=2),
    Column("slots", _offsets, lambda row: row.offsets or (-1, -1), 17, True),
    Column(
        "frame",
        lambda row: "-" if row.pfn is None else f"{row.pfn:#x}",
        lambda row: row.pfn or 0,
        9,
        True,
        rank=3,
    ),
)


def _color(row: SwapRow) -> str:
    return palette.ACCENT if row.use == "swap" else palette.WARN if row.pfn is not None else palette.DIM


class SwapView(ListView[Swap, SwapRow]):
    """Areas on top; below, each task's entries that are not present, by kind. Enter walks the first."""

    NAME = ViewName.SWAP
    EVERY = 2.0
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.SWAP])

    def compose(self) -> ComposeResult:
        """Areas, summary, table, filter."""
        yield SwapAreas()
        yield Static(id="swap-summary", classes="summary", markup=False)
        yield VirtualTable(
            COLUMNS, lambda row: (row.pid, row.use, row.type), _search, sort=4, id="swap-table"
        )
        yield self.filter_input()

    def request(self, place: Place) -> Callable[[Source], Swap]:
        """Areas and entries."""
        return lambda source: source.swap()

    def show(self, data: Swap) -> None:
        """All parts."""
        super().show(data)
        self.query_one(SwapAreas).show(data)
        self.table.empty = "no task has an entry that is not present and not empty"
        self.table.set_rows(data.rows)
        out = sum(row.pages for row in data.rows if row.use == "swap")
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{format_size(out * data.page_size)}", f"bold {palette.FOREGROUND}")
        text.append(" swapped out of ", palette.DIM)
        text.append(
            f"{len({row.pid for row in data.rows if row.use == 'swap'})}", f"bold {palette.FOREGROUND}"
        )
        text.append(" address spaces · all entries that are not present, by task and kind", palette.DIM)
        self.query_one("#swap-summary", Static).update(text)

    def action_open(self) -> None:
        """The frame that the entry names; where it names none, the walk to the first such address."""
        row = self.table.row
        if row is not None:
            self.post_message(Go(Place(ViewName.WALK, pid=row.pid, va=row.va)))

    def action_space(self) -> None:
        """The task's address space."""
        if self.table.row:
            self.post_message(Go(Place(ViewName.SPACE, pid=self.table.row.pid)))

    def action_light(self) -> None:
        """The swap cache's frames."""
        self.post_message(Go(Place(ViewName.FRAMES, owner=int(Owner.SWAP_CACHE))))


def _search(row: SwapRow) -> str:
    return f"{row.pid} {row.name} {row.use}"
