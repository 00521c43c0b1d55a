"""What the screens of traces share: what is traced, how it goes, the list as it grows, and the keys."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Generic, Protocol, TypeVar

from rich.text import Text
from textual import events
from textual.widgets import Input, Static

from inspector.errors import UsageError
from inspector.tui import palette
from inspector.tui.places import Place
from inspector.tui.recorder import MOST, Progress, Recorder
from inspector.tui.tracing import Target
from inspector.tui.views.base import Reread
from inspector.tui.views.listing import ListView

_COMMAND = 24  # characters of a command in the summary
_STATES = {
    "starting": ("◌ starting", palette.WARN),
    "running": ("● running", palette.GOOD),
    "holding": ("▮▮ held", palette.WARN),
    "ended": ("■ ended", palette.DIM),
}


class Numbered(Protocol):
    """A record of a trace."""

    @property
    def number(self) -> int:
        """Which one it is, from 1 on."""


class Named(Protocol):
    """What is known of the task that is traced."""

    @property
    def name(self) -> str:
        """Its name; empty where it is gone."""

    @property
    def pid(self) -> int:
        """Its PID."""


Subject = TypeVar("Subject", bound=Named)
Record = TypeVar("Record", bound=Numbered)
Tally = TypeVar("Tally")


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


def _short(command: str) -> str:
    """A command that leaves room for what comes of it."""
    return command if len(command) <= _COMMAND else f"{command[: _COMMAND - 1]}…"


class TraceView(ListView[Subject, Record], Generic[Subject, Record, Tally]):
    """A list of records that grows, a summary above it, and pictures of the record under the cursor."""

    NOUN: ClassVar[str]
    """What is traced, in the singular."""
    EXAMPLE: ClassVar[str] = "a PID, or a command like /labs/touch 64K"
    """What may be typed to trace it."""

    def __init__(self, recorder: Recorder[Record, Tally]) -> None:
        super().__init__()
        self._recorder = recorder
        self._target = Target(1)
        self._children = False
        self._refused = ""
        self._records: tuple[Record, ...] = ()

    @property
    def pid(self) -> int:
        """The process that is traced, or would be; 0 where it has no PID yet, or none is meant."""
        return self._recorder.progress.pid or self._target.pid

    @property
    def traced(self) -> Progress:
        """How the trace goes."""
        return self._recorder.progress

    def summary(self) -> Static:
        """The lines that _summarize() fills."""
        return Static(classes="summary trace-summary", markup=False)

    def target_input(self) -> TargetInput:
        """The line to type a target into, hidden at first."""
        return TargetInput(placeholder=self.EXAMPLE, select_on_focus=True, compact=True)

    def show(self, data: Subject) -> None:
        """The pictures fill, and the summary knows the name."""
        super().show(data)
        self._summarize()
        self._draw()

    def forget(self) -> None:
        """Another task is to be traced."""
        self._target, self._refused = self._meant(self.place), ""
        self._recorder.forget()
        super().forget()
        self.news()

    def leave(self) -> None:
        """The screen is closed: the trace ends."""
        self._recorder.stop()

    def news(self) -> None:
        """The trace got on."""
        progress, records = self._recorder.progress, self._recorder.records()
        follow = self.table.cursor >= len(self.table.shown) - 1 or progress.state == "holding"
        fresh = bool(records) and (not self._records or records[-1] is not self._records[-1])
        self._records = records
        self.table.empty = self._hint(progress)
        self.table.set_rows(records)
        if follow and fresh:
            self.table.move_to(records[-1].number)
        self._summarize()
        self._draw()
        if self.display and (self._outdated() or (fresh and progress.state != "running")):
            self.post_message(Reread())

    def on_virtual_table_moved(self) -> None:
        """The pictures follow the cursor."""
        self._draw()

    # What a subclass says

    @abstractmethod
    def _meant(self, place: Place) -> Target:
        """What a place wants to have traced."""

    @abstractmethod
    def _draw(self) -> None:
        """The pictures of the record under the cursor."""

    @abstractmethod
    def _whose(self) -> Text:
        """What is traced, for the summary."""

    @abstractmethod
    def _sums(self, total: int) -> Text:
        """What came of so many records, for the summary."""

    @abstractmethod
    def _save(self, record: Record) -> list[str]:
        """Write files to the current folder; gives their names. Raises OSError."""

    def _parsed(self, text: str) -> Target:
        """What was typed. Raises UsageError."""
        return Target(int(text) if text.isdecimal() and text.isascii() else text)

    def _invitation(self) -> str:
        """What to do where nothing is traced yet."""
        return f"t traces PID {self.pid}; i takes another, or a command to start"

    # Words

    def _outdated(self) -> bool:
        """Whether the data is of another task."""
        return self.data is None or self.data.pid != self.pid

    def _task_name(self, target: Target) -> Text:
        """A command, or the name of the process if it is known, and its PID."""
        name = _short(target.command) or ("" if self.data is None or self._outdated() else self.data.name)
        return Text.assemble(
            (f"{name} ", f"bold {palette.FOREGROUND}"), (f"PID {self.pid or '?'} ", f"bold {palette.ACCENT}")
        )

    def _hint(self, progress: Progress) -> str:
        if progress.on:
            return f"waiting for the first {self.NOUN}"
        if progress.state == "ended":
            return f"there was no {self.NOUN}" if not progress.error else "nothing was traced"
        return self._invitation()

    def _summarize(self) -> None:
        progress = self._recorder.progress
        text = Text(overflow="ellipsis")
        if progress.state in _STATES:
            text.append(*_STATES[progress.state]).append("  ")
        text.append_text(self._whose())
        if self._children:
            text.append("and what it forks ", palette.DIM)
        error = self._refused or progress.error
        if error:
            text.append(error, palette.BAD)
        elif progress.state == "none":
            text.append("not traced", palette.DIM)
        else:
            text.append(" ").append_text(self._sums(progress.total))
            if progress.lost:
                text.append(f", {progress.lost} lost", palette.BAD)
            if progress.total > MOST:
                text.append(f", the last {MOST} are listed", palette.DIM)
            text.append(f"  others' {progress.others}", palette.DIM)
        summary = self.query_one(".trace-summary", Static)
        summary.set_class(bool(error), "-error")
        summary.update(text)

    # What keys do

    def action_trace(self) -> None:
        """On or off."""
        if self._recorder.progress.on:
            self._recorder.stop()
        else:
            self.begin(self._target)

    def begin(self, target: Target, run: bool = False) -> None:
        """Trace a target, up to its first record or on and on; another trace ends."""
        self._target, self._refused = target, ""
        self._recorder.start(Target(target.who, target.pfn, self._children))
        self._recorder.let_run(run)
        self.news()

    def action_next(self) -> None:
        """One record further; begins where nothing is traced."""
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
        if text := event.value.strip():
            try:
                self.begin(self._parsed(text))
            except UsageError as error:
                self._refused = str(error)
                self._summarize()

    def action_export(self) -> None:
        """Two files in the current folder, named in a notice."""
        record = self.table.row
        if record is None:
            return
        try:
            names = self._save(record)
        except OSError as error:
            self.notify(f"not saved: {error.strerror}", severity="error", markup=False)
        else:
            self.notify(f"saved {' and '.join(names)}", markup=False)
