"""What the guest says on its console, and a line to tell it something."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import Input, RichLog, Static

from inspector.errors import InspectorError
from inspector.machine import Completed
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source
from inspector.tui.views.base import View
from inspector.units import printable

_TAIL = 200
_SHOWN = 1000  # lines kept of each command's output


class RunCommand(Message):
    """Run this in the guest; the console's finished() wants the answer."""

    def __init__(self, console: ConsoleView, command: str) -> None:
        super().__init__()
        self.console = console
        self.command = command

    def run(self, source: Source) -> Completed | InspectorError:
        """Run it and give what came of it: for a worker thread of its own, since a command may take long."""
        try:
            return source.run(self.command)
        except InspectorError as error:
            return error


class CommandInput(Input):
    """A shell command; Esc leaves it."""

    DEFAULT_CSS = "CommandInput { background: $panel; }"

    def on_key(self, event: events.Key) -> None:
        """Esc gives the keys back to the view."""
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            self.screen.set_focus(self.screen.query_one("#console-log"))


class ConsoleView(View[str]):
    """The console's tail, then the commands run from here with what they printed."""

    NAME = ViewName.CONSOLE
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.CONSOLE])

    def __init__(self) -> None:
        super().__init__()
        self._output: list[Text] = []

    def compose(self) -> ComposeResult:
        """Log and input."""
        yield Static(
            "The guest's console, and below it what was run from here", classes="summary", markup=False
        )
        yield RichLog(id="console-log", wrap=True, markup=False, highlight=False, max_lines=5000, min_width=1)
        yield CommandInput(placeholder="a command for the guest, like: cat /proc/meminfo", compact=True)

    def request(self, place: Place) -> Callable[[Source], str]:
        """The tail."""
        return lambda source: source.console(_TAIL)

    def show(self, data: str) -> None:
        """Write it anew where it has changed."""
        if data != self.data:
            super().show(data)
            self._write()

    def _write(self) -> None:
        log = self.query_one(RichLog)
        log.clear()
        for line in (self.data or "").splitlines():
            log.write(Text(line, palette.FOREGROUND))
        for part in self._output:
            log.write(part)

    def focus_first(self) -> None:
        """The log."""
        self.query_one(RichLog).focus()

    def action_command(self) -> None:
        """Type a command."""
        self.screen.set_focus(self.query_one(CommandInput))  # at once: see ListView.action_filter

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Run it."""
        event.stop()
        command = event.value.strip()
        if command:
            self.query_one(CommandInput).value = ""
            self._append(Text(f"$ {command}", f"bold {palette.ACCENT}"))
            self.post_message(RunCommand(self, command))

    def finished(self, answer: Completed | InspectorError) -> None:
        """Show what a command gave."""
        if isinstance(answer, InspectorError):
            self._append(Text(str(answer), palette.BAD))
            return
        lines = [(line, palette.FOREGROUND) for line in answer.stdout.splitlines()]
        lines += [(line, palette.WARN) for line in answer.stderr.splitlines()]
        for line, color in lines[:_SHOWN]:
            self._append(Text(printable(line.expandtabs()), color))
        if len(lines) > _SHOWN:
            self._append(Text(f"… {len(lines) - _SHOWN} more lines", palette.DIM))
        if answer.returncode:
            self._append(Text(f"exit code {answer.returncode}", palette.BAD))

    def _append(self, text: Text) -> None:
        self._output.append(text)
        self.query_one(RichLog).write(text)
