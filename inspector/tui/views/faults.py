"""Page faults of a task, one by one as they happen."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input, Static

from inspector.trace import Fault
from inspector.trace import telling as tell
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.recorder import MOST, Progress, Recorder
from inspector.tui.source import Source, Traceable
from inspector.tui.svg import plain
from inspector.tui.views.base import Go, Reread
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.fault import FaultPicture, FaultStrip, fault_text, kind_color
from inspector.tui.widgets.table import Column, VirtualTable

_SAVED_WIDTH = 110
_STATES = {
    "starting": ("◌ starting", palette.WARN),
    "running": ("● running", palette.GOOD),
    "holding": ("▮▮ held", palette.WARN),
    "ended": ("■ ended", palette.DIM),
}

COLUMNS: tuple[Column[Fault], ...] = (
    Column("#", lambda row: str(row.number), lambda row: row.number, 5, True),
    Column("kind", tell.kind_name, lambda row: row.kind.name, 14, color=lambda row: kind_color(row.kind)),
    Column("address", lambda row: f"{row.address:#x}", lambda row: row.address, 14, True),
    Column("access", lambda row: f"{tell.access(row)} {tell.mode(row)}", tell.access, 8),
    Column("frame", tell.frames, lambda row: row.frame or 0, 17),
    Column("VM_FAULT_", tell.returned, tell.returned, 10, rank=3),
    Column("in", tell.area, tell.area, 20, rank=2),
    Column("PID", lambda row: str(row.pid), lambda row: row.pid, 7, True, rank=4),
    Column("by", lambda row: row.place, lambda row: row.place, 0, least=18),
)


class TargetInput(Input):
    """What to trace; Esc leaves it."""

    DEFAULT_CSS = """
    TargetInput { background: $panel; display: none; }
    TargetInput.-shown { display: block; }
    """

    def on_key(self, event: events.Key) -> None:
        """Give the keys that end the typing to the view."""
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            self.post_message(self.Submitted(self, ""))


class FaultsView(ListView[Traceable, Fault]):
    """The list as it grows, the VMA as it fills, and the fault under the cursor entry by entry."""

    NAME = ViewName.FAULTS
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.FAULTS])

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._target: int | str = 1
        self._children = False
        self._faults: tuple[Fault, ...] = ()

    def compose(self) -> ComposeResult:
        """Summary, strip, table, the fault, inputs."""
        yield Static(id="faults-summary", classes="summary", markup=False)
        yield FaultStrip()
        yield VirtualTable(COLUMNS, lambda row: row.number, _search, id="fault-table")
        yield FaultPicture()
        yield self.filter_input()
        yield TargetInput(
            placeholder="a PID, or a command like /labs/touch 64K", select_on_focus=True, compact=True
        )

    @property
    def pid(self) -> int:
        """The process that is traced, or would be; 0 for a command that has none yet."""
        return self._recorder.progress.pid or (self._target if isinstance(self._target, int) else 0)

    @property
    def traced(self) -> Progress:
        """How the trace goes."""
        return self._recorder.progress

    def request(self, place: Place) -> Callable[[Source], Traceable]:
        """How much of the task's address space is there."""
        pid = self.pid
        return lambda source: source.traceable(pid)

    def show(self, data: Traceable) -> None:
        """The strip fills, and the summary knows the name."""
        super().show(data)
        self._summarize()
        self._draw()

    def forget(self) -> None:
        """Another task is to be traced."""
        self._target = 1 if self.place.pid is None else self.place.pid
        self._recorder.forget()
        super().forget()
        self.news()

    def leave(self) -> None:
        """The screen is closed: the trace ends."""
        self._recorder.stop()

    def news(self) -> None:
        """The trace got on."""
        progress, faults = self._recorder.progress, self._recorder.faults()
        follow = self.table.cursor >= len(self.table.shown) - 1 or progress.state == "holding"
        fresh = bool(faults) and (not self._faults or faults[-1] is not self._faults[-1])
        self._faults = faults
        self.table.empty = self._hint()
        self.table.set_rows(faults)
        if follow and fresh:
            self.table.move_to(faults[-1].number)
        self._summarize()
        self._draw()
        other = self.data is None or self.data.pid != self.pid
        if self.display and (other or (fresh and progress.state != "running")):
            self.post_message(Reread())

    def _hint(self) -> str:
        progress = self._recorder.progress
        if progress.on:
            return "waiting for the first page fault"
        if progress.state == "ended":
            return "it had no page fault" if not progress.error else "nothing was traced"
        return f"t traces PID {self.pid}; i takes another, or a command to start"

    def on_virtual_table_moved(self) -> None:
        """The pictures follow the cursor."""
        self._draw()

    def _draw(self) -> None:
        fault = self.table.row
        here = self.data is not None and fault is not None and self.data.pid == fault.tgid
        self.query_one(FaultStrip).show(
            fault, self._faults, self.data.resident if self.data and here else None
        )
        self.query_one(FaultPicture).show(fault)

    def _summarize(self) -> None:
        progress = self._recorder.progress
        text = Text(overflow="ellipsis")
        if progress.state in _STATES:
            text.append(*_STATES[progress.state]).append("  ")
        what = progress.target if isinstance(progress.target, str) else ""
        name = what or (self.data.name if self.data and self.data.pid == self.pid else "")
        text.append(f"{name} ", f"bold {palette.FOREGROUND}")
        text.append(f"PID {self.pid or '?'} ", f"bold {palette.ACCENT}")
        if self._children:
            text.append("and what it forks ", palette.DIM)
        if progress.error:
            text.append(progress.error, palette.BAD)
        elif progress.state == "none":
            text.append("not traced", palette.DIM)
        else:
            text.append(f" {progress.total}", f"bold {palette.FOREGROUND}")
            text.append(f" fault{'s' if progress.total != 1 else ''}, {progress.major} major", palette.DIM)
            if progress.lost:
                text.append(f", {progress.lost} lost", palette.BAD)
            if progress.total > MOST:
                text.append(f", the last {MOST} are listed", palette.DIM)
            for kind, count in progress.counts:
                text.append(f"  {kind.name.lower()} ", kind_color(kind)).append(str(count))
            text.append(f"  others' {progress.others}", palette.DIM)
        summary = self.query_one("#faults-summary", Static)
        summary.set_class(bool(progress.error), "-error")
        summary.update(text)

    # What keys do

    def action_open(self) -> None:
        """The frame that came in, or is mapped there."""
        fault = self.table.row
        if fault is not None and fault.after.pfn is not None:
            self.post_message(Go(Place(ViewName.PAGE, pfn=fault.after.pfn)))

    def action_walk(self) -> None:
        """The address as it is now."""
        fault = self.table.row
        if fault is not None:
            self.post_message(Go(Place(ViewName.WALK, pid=fault.tgid, va=fault.address)))

    def action_trace(self) -> None:
        """On or off."""
        if self._recorder.progress.on:
            self._recorder.stop()
        else:
            self.begin(self._target)

    def begin(self, target: int | str, run: bool = False) -> None:
        """Trace a PID or a command, up to its first fault or on and on; another trace ends."""
        self._target = target
        self._recorder.start(target, self._children)
        self._recorder.let_run(run)
        self.news()

    def action_next(self) -> None:
        """One fault further; begins where nothing is traced."""
        if self._recorder.progress.on:
            self._recorder.step()
        else:
            self.action_trace()

    def action_run(self) -> None:
        """Run, or hold."""
        if self._recorder.progress.on:
            self._recorder.let_run(self._recorder.progress.state != "running")
        else:
            self.begin(self._target, run=True)

    def action_children(self) -> None:
        """For the next trace."""
        if not self._recorder.progress.on:
            self._children = not self._children
            self._summarize()

    def action_command(self) -> None:
        """Type what to trace."""
        field = self.query_one(TargetInput)
        field.add_class("-shown")
        self.screen.set_focus(field)  # at once: see ListView.action_filter

    def on_input_changed(self, event: Input.Changed) -> None:
        """Only the filter filters."""
        if isinstance(event.input, TargetInput):
            event.stop()
            event.prevent_default()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Trace what was typed."""
        if not isinstance(event.input, TargetInput):
            return
        event.stop()
        event.prevent_default()
        event.input.remove_class("-shown")
        self.table.focus()
        text = event.value.strip()
        if text:
            self.begin(int(text) if text.isdecimal() and text.isascii() else text)

    def action_export(self) -> None:
        """Two files in the current folder, named in a notice."""
        fault = self.table.row
        if fault is None:
            return
        try:
            names = save(fault, Path())
        except OSError as error:
            self.notify(f"not saved: {error.strerror}", severity="error", markup=False)
        else:
            self.notify(f"saved {' and '.join(names)}", markup=False)


def _search(row: Fault) -> str:
    return f"{tell.kind_name(row)} {row.address:#x} {tell.mode(row)} {row.place} {tell.area(row)}"


def save(fault: Fault, folder: Path) -> list[str]:
    """Write a fault as JSON and as SVG, beside what is there already; gives the names. Raises OSError."""
    console = Console(
        record=True, file=io.StringIO(), width=_SAVED_WIDTH, force_terminal=True, color_system="truecolor"
    )
    console.print(fault_text(fault, _SAVED_WIDTH))
    contents = {
        ".json": json.dumps(tell.fault_data(fault), indent=2) + "\n",
        ".svg": plain(console.export_svg(title=f"fault {fault.number} of PID {fault.pid}")),
    }
    stem, number = f"fault-{fault.pid}-{fault.number}", 1
    while any((folder / (stem + suffix)).exists() for suffix in contents):
        number += 1
        stem = f"fault-{fault.pid}-{fault.number}.{number}"
    for suffix, text in contents.items():
        (folder / (stem + suffix)).write_text(text)
    return [stem + suffix for suffix in contents]
