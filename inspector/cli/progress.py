"""Long work, told on stderr: bars where that is a terminal, a plain line a step elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from inspector.progress import Progress, Reporter

_SOON = 0.2  # seconds: what is done by then needs no bar, and to draw one takes some of them


def reporter() -> Reporter:
    """The Reporter that suits stderr."""
    return BarReporter(Console(stderr=True)) if sys.stderr.isatty() else LineReporter()


class LineReporter:
    """One plain line a step, for logs."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        """Say that a piece of work begins."""
        print(f"kmi: {title}", file=sys.stderr, flush=True)
        yield _Quiet()


class BarReporter:
    """A bar a piece of work that lasts, gone when it is done; bytes and speed where its unit is B."""

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._bars = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=30),
            _Amount(),
            bars.TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        """Show a bar while the piece of work lasts; one that only pulses where `total` is not known."""
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._soon = threading.Timer(_SOON, self._bars.start)
                self._soon.daemon = True
                self._soon.start()
        row = self._bars.add_task(title, total=total, unit=unit)
        try:
            yield _Bar(self._bars, row)
        finally:
            self._bars.remove_task(row)
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._soon.cancel()
                    self._soon.join()
                    self._bars.stop()


class _Quiet:
    def update(self, done: float, total: float | None = None) -> None:
        """A log has the step's line already."""


class _Bar:
    def __init__(self, owner: bars.Progress, row: bars.TaskID) -> None:
        self._owner = owner
        self._row = row

    def update(self, done: float, total: float | None = None) -> None:
        """Move the bar."""
        if total is None:
            self._owner.update(self._row, completed=done)
        else:
            self._owner.update(self._row, completed=done, total=total)


class _Amount(bars.ProgressColumn):
    """How much is done, in the work's unit."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = bars.DownloadColumn(binary_units=True)
        self._count = bars.MofNCompleteColumn()

    def render(self, task: bars.Task) -> Text:
        if task.total is None:
            return Text("")
        return self._bytes.render(task) if task.fields["unit"] == "B" else self._count.render(task)
