"""Processes and threads."""

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
from inspector.tui.source import Source, TaskRow
from inspector.tui.views.base import Go, Reread
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import format_size


def _size(count: int) -> str:
    return format_size(count) if count else "-"


def _state_color(row: TaskRow) -> str:
    return palette.TASK_STATES.get(row.state, ("", palette.FOREGROUND))[1]


def _state(row: TaskRow) -> str:
    return f"{row.state} {palette.TASK_STATES.get(row.state, ('', ''))[0]}"


def _name(row: TaskRow) -> str:
    return f"[{row.name}]" if row.kernel_thread else row.name


def _name_color(row: TaskRow) -> str:
    return palette.DIM if row.kernel_thread else f"bold {palette.FOREGROUND}"


COLUMNS: tuple[Column[TaskRow], ...] = (
    Column("PID", lambda row: str(row.pid), lambda row: row.pid, 7, True),
    Column("PPID", lambda row: str(row.ppid), lambda row: row.ppid, 7, True, rank=5),
    Column("name", _name, lambda row: row.name.casefold(), 0, color=_name_color),
    Column("state", _state, lambda row: row.state, 10, color=_state_color),
    Column("UID", lambda row: str(row.uid), lambda row: row.uid, 6, True, rank=2),
    Column("CPU", lambda row: str(row.cpu), lambda row: row.cpu, 4, True, rank=1),
    Column("threads", lambda row: str(row.threads), lambda row: row.threads, 8, True, rank=4, falls=True),
    Column("resident", lambda row: _size(row.rss), lambda row: row.rss, 10, True, falls=True),
    Column("virtual", lambda row: _size(row.vsz), lambda row: row.vsz, 10, True, falls=True),
    Column("tables", lambda row: _size(row.page_tables), lambda row: row.page_tables, 9, True, falls=True),
)


class TasksView(ListView[tuple[TaskRow, ...], TaskRow]):
    """Every task; Enter opens its address space."""

    NAME = ViewName.TASKS
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.TASKS])

    def __init__(self) -> None:
        super().__init__()
        self._threads = False
        self._kernel = True

    def compose(self) -> ComposeResult:
        """Summary, table, filter."""
        yield Static(id="tasks-summary", classes="summary", markup=False)
        yield VirtualTable(COLUMNS, lambda row: row.pid, _search, sort=7, id="task-table")
        yield self.filter_input()

    def request(self, place: Place) -> Callable[[Source], tuple[TaskRow, ...]]:
        """Processes, or threads."""
        threads = self._threads
        return lambda source: source.tasks(threads)

    def show(self, data: tuple[TaskRow, ...]) -> None:
        """Rows and summary."""
        super().show(data)
        self.table.empty = "no task"
        self.table.set_rows([row for row in data if self._kernel or not row.kernel_thread])
        user = [row for row in data if not row.kernel_thread]
        leaders = [row for row in user if row.pid == row.tgid]
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{len(user)}", f"bold {palette.FOREGROUND}")
        text.append(" user threads, " if self._threads else " processes, ", palette.DIM)
        text.append(f"{len(data) - len(user)}", f"bold {palette.FOREGROUND}")
        text.append(" kernel threads" + ("" if self._kernel else " (hidden)"), palette.DIM)
        text.append(" · resident ", palette.DIM)
        text.append(format_size(sum(row.rss for row in leaders)), f"bold {palette.FOREGROUND}")
        text.append(" (shared pages counted for each) · page tables ", palette.DIM)
        text.append(format_size(sum(row.page_tables for row in leaders)), f"bold {palette.FOREGROUND}")
        self.query_one("#tasks-summary", Static).update(text)

    def action_open(self) -> None:
        """The address space of the task under the cursor; a kernel thread has none of its own."""
        if self.table.row:
            self.post_message(Go(Place(ViewName.SPACE, pid=self.table.row.pid)))

    @property
    def pid(self) -> int | None:
        """The process under the cursor, where it has an address space."""
        row = self.table.row
        return row.tgid if row and not row.kernel_thread else None

    def action_threads(self) -> None:
        """Threads or processes."""
        self._threads = not self._threads
        self.post_message(Reread())

    def action_kernel_threads(self) -> None:
        """Show or hide kernel threads."""
        self._kernel = not self._kernel
        if self.data is not None:
            self.show(self.data)


def _search(row: TaskRow) -> str:
    return f"{row.pid} {_name(row)} {_state(row)} uid={row.uid}"
