"""The vmalloc region: what the kernel keeps that is contiguous in virtual addresses only."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.kernel.owners import Owner
from inspector.kernel.vmalloc import BUSY
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source, VmallocRow
from inspector.tui.views.base import Go
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import format_size

_KINDS = ("", "vm_map_ram", "freed, not purged yet", "leaving")
_COLORS = {
    "ioremap": "#8290a3",
    "vmap": "#56b4e9",
    "user": "#cc79a7",
    "sparse": "#f0e442",
    "vmalloc": "#e69f00",
}


def _caller(row: VmallocRow) -> str:
    return row.area.caller or _KINDS[row.area.kind] or "nobody is noted"


def _flags(row: VmallocRow) -> str:
    phys = "" if row.area.phys is None else f" {row.area.phys:#x}"
    return " ".join(row.area.flags) + phys


def _color(row: VmallocRow) -> str:
    if row.area.kind != BUSY:
        return palette.FAINT
    return next((color for name, color in _COLORS.items() if name in row.area.flags), palette.FOREGROUND)


def _pfn(row: VmallocRow) -> str:
    return "-" if row.pfn is None else f"{row.pfn:#x}"


COLUMNS: tuple[Column[VmallocRow], ...] = (
    Column("address", lambda row: f"{row.area.start:#x}", lambda row: row.area.start, 18, True),
    Column("size", lambda row: format_size(row.area.size), lambda row: row.area.size, 9, True, falls=True),
    Column(
        "pages", lambda row: str(row.area.pages) if row.area.pages else "-", lambda row: row.area.pages, 6,
        True, falls=True,
    ),
    Column("first PFN", _pfn, lambda row: -1 if row.pfn is None else row.pfn, 10, True, rank=2),
    Column("caller", _caller, lambda row: _caller(row).casefold(), 0, color=_color, least=20),
    Column("flags, device", _flags, _flags, 22, rank=1, color=_color),
)  # fmt: skip


class VmallocView(ListView[tuple[VmallocRow, ...], VmallocRow]):
    """Every area; Enter walks its first address."""

    NAME = ViewName.VMALLOC
    EVERY = 2.0
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.VMALLOC])

    def compose(self) -> ComposeResult:
        """Summary, table, filter."""
        yield Static(id="vmalloc-summary", classes="summary", markup=False)
        yield VirtualTable(COLUMNS, lambda row: row.area.start, _search, sort=0, id="vmalloc-table")
        yield self.filter_input()

    def request(self, place: Place) -> Callable[[Source], tuple[VmallocRow, ...]]:
        """All areas."""
        return lambda source: source.vmalloc()

    def enter(self, place: Place) -> None:
        """The list is the same whichever area the cursor is to go to."""
        self.place = place
        if place.va is not None and self.data is not None:
            self._find(self.data)

    def show(self, data: tuple[VmallocRow, ...]) -> None:
        """Rows and summary."""
        first = self.data is None
        super().show(data)
        self.table.empty = "no vmalloc area"
        self.table.set_rows(data)
        if first and self.place.va is not None:
            self._find(data)
        areas = [row.area for row in data]
        io = sum(area.size for area in areas if "ioremap" in area.flags)
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, what in (
            (str(len(areas)), " areas"),
            (format_size(sum(area.size for area in areas)), " with guard pages"),
            (str(sum(area.pages for area in areas)), " pages of their own"),
            (format_size(io), " of devices"),
        ):
            text.append(" · " if text else "", palette.DIM)
            text.append(number, f"bold {palette.FOREGROUND}")
            text.append(what, palette.DIM)
        self.query_one("#vmalloc-summary", Static).update(text)

    def _find(self, data: tuple[VmallocRow, ...]) -> None:
        """The cursor goes to the area that the place's address is in."""
        va = self.place.va or 0
        for row in data:
            if row.area.start <= va < row.area.end:
                self.table.want(row.area.start)

    def action_open(self) -> None:
        """Walk the first address."""
        if self.table.row:
            self.post_message(Go(Place(ViewName.WALK, va=self.table.row.area.start)))

    def action_page(self) -> None:
        """The first frame."""
        if self.table.row and self.table.row.pfn is not None:
            self.post_message(Go(Place(ViewName.PAGE, pfn=self.table.row.pfn)))

    def action_light(self) -> None:
        """All frames of the caller."""
        if self.table.row and self.table.row.area.caller:
            place = Place(ViewName.FRAMES, owner=int(Owner.VMALLOC), label=self.table.row.area.caller)
            self.post_message(Go(place))


def _search(row: VmallocRow) -> str:
    return f"{row.area.start:#x} {_caller(row)} {_flags(row)}"
