"""The address space of a task: its VMAs, and how much of them is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source, Space, VmaRow
from inspector.tui.views.base import Go, NextTask
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.strips import AddressStrip, VmaMap
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import VirtAddr, format_size, printable

_FILL = 6


def _share(row: VmaRow) -> float:
    return row.resident / row.vma.size if row.vma.size else 0.0


def _name(row: VmaRow) -> str:
    return printable(row.vma.name) or "(anonymous)"


def _kind_color(row: VmaRow) -> str:
    return palette.VMA_KINDS[palette.vma_kind(row.vma.permissions, row.vma.name)].color


def _bytes(count: int) -> str:
    return format_size(count) if count else "-"


def _offset(row: VmaRow) -> str:
    return f"{row.vma.offset:#x}" if row.vma.inode else "-"


COLUMNS: tuple[Column[VmaRow], ...] = (
    Column("start", lambda row: f"{row.vma.start:#x}", lambda row: row.vma.start, 18, True),
    Column("end", lambda row: f"{row.vma.end:#x}", lambda row: row.vma.end, 18, True, rank=3),
    Column("size", lambda row: format_size(row.vma.size), lambda row: row.vma.size, 10, True, falls=True),
    Column("resident", lambda row: _bytes(row.resident), lambda row: row.resident, 10, True, falls=True),
    Column("share", lambda row: bar(_share(row), _FILL), _share, _FILL, color=_kind_color, falls=True),
    Column("large", lambda row: _bytes(row.large), lambda row: row.large, 9, True, rank=2, falls=True),
    Column("pss", lambda row: _bytes(row.pss), lambda row: row.pss, 9, True, rank=2, falls=True),
    Column("swap", lambda row: _bytes(row.swap), lambda row: row.swap, 9, True, rank=3, falls=True),
    Column("perm", lambda row: row.vma.permissions, lambda row: row.vma.permissions, 4),
    Column("offset", _offset, lambda row: row.vma.offset, 10, True, rank=4),
    Column("name", _name, _name, 0, color=_kind_color, least=28),
)


class SpaceView(ListView[Space, VmaRow]):
    """VMAs as a table and as a picture; Enter walks the first page that is there."""

    NAME = ViewName.SPACE
    EVERY = 2.0
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.SPACE])

    def compose(self) -> ComposeResult:
        """Summary, strip, table, enlargement, filter."""
        yield Static(id="space-summary", classes="summary", markup=False)
        yield AddressStrip()
        yield VirtualTable(COLUMNS, lambda row: row.vma.start, _search, sort=0, id="vma-table")
        yield VmaMap()
        yield self.filter_input()

    def request(self, place: Place) -> Callable[[Source], Space]:
        """The task's address space."""
        pid = place.pid if place.pid is not None else 1
        return lambda source: source.space(pid)

    def show(self, data: Space) -> None:
        """Summary, rows, pictures."""
        super().show(data)
        self.table.empty = "no VMA"
        if data.task.kernel_thread:
            self.table.empty = "a kernel thread has no address space of its own"
        self.table.set_rows(data.vmas)
        self._summarize(data)
        self._draw()

    def forget(self) -> None:
        """Nothing yet."""
        super().forget()
        self.query_one("#space-summary", Static).update("")
        self._draw()

    def on_virtual_table_moved(self) -> None:
        """The pictures follow the cursor."""
        self._draw()

    def on_resize(self) -> None:
        """Tall screens get a larger enlargement."""
        self._draw()

    def _draw(self) -> None:
        lines = 1 if self.size.height < 24 else 2 if self.size.height < 36 else 4
        resident = self.data.resident if self.data else None
        self.query_one(AddressStrip).show(self.data, self.table.row)
        page_size = self.data.page_size if self.data else 1
        self.query_one(VmaMap).show(self.table.row, resident, page_size, lines)

    def _summarize(self, data: Space) -> None:
        task = data.task
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{task.name} ", f"bold {palette.FOREGROUND}")
        text.append(f"PID {task.pid} ", f"bold {palette.ACCENT}")
        for name, value in (
            ("virtual", format_size(sum(row.vma.size for row in data.vmas))),
            ("mapped", format_size(sum(row.resident for row in data.vmas))),
            ("tables", format_size(task.page_tables)),
            ("root", f"{data.root:#x}"),
        ):
            text.append(f" {name} ", palette.DIM)
            text.append(value, f"bold {palette.FOREGROUND}")
        text.append(f"  {len(data.vmas)} VMAs, {data.paging}", palette.DIM)
        self.query_one("#space-summary", Static).update(text)

    def action_open(self) -> None:
        """Walk the VMA's first resident page; its first where none is."""
        row, data = self.table.row, self.data
        if row is None or data is None:
            return
        first = data.resident.first(row.vma.start, row.vma.end)
        va = VirtAddr(first if first is not None else row.vma.start)
        self.post_message(Go(Place(ViewName.WALK, pid=data.task.pid, va=va)))

    def action_tasks(self, step: int) -> None:
        """The next task that has an address space."""
        self.post_message(NextTask(self.place.pid or 1, step))


def _search(row: VmaRow) -> str:
    return f"{row.vma.start:#x} {row.vma.permissions} {_name(row)}"
