"""Progress on stderr: bars for a terminal, lines for a log."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from inspector.cli import progress as progresses
from inspector.cli.progress import BarReporter, LineReporter, reporter


def bars() -> tuple[BarReporter, io.StringIO]:
    text = io.StringIO()
    return BarReporter(Console(file=text, force_terminal=True, width=100)), text


def test_a_log_gets_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with LineReporter().task("Fetching [b]it", 10, "B") as progress:
        progress.update(5)
        progress.update(10, 10)
    assert capsys.readouterr().err == "kmi: Fetching [b]it\n"


def test_without_a_terminal_it_is_lines() -> None:
    assert isinstance(reporter(), LineReporter)


def test_bars_nest_and_go() -> None:
    reporter, text = bars()
    with reporter.task("Outer [b]", 4 << 20, "B") as outer:
        outer.update(1 << 20)
        with reporter.task("Inner") as inner:
            inner.update(3)
            _await_bars(reporter)
            reporter._bars.refresh()
            assert {task.description for task in reporter._bars.tasks} == {"Outer [b]", "Inner"}
        reporter._bars.refresh()
        assert reporter._bars.live.is_started
    drawn = text.getvalue()
    assert "Outer [b]" in drawn
    assert "1.0/4.0 MiB" in drawn
    assert not reporter._bars.live.is_started
    assert reporter._bars.tasks == []


def _await_bars(reporter: BarReporter) -> None:
    for _ in range(1000):
        if reporter._bars.live.is_started:
            return
        time.sleep(0.02)
    raise AssertionError("there are no bars")


def test_what_is_done_at_once_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progresses, "_SOON", 3600)
    reporter, text = bars()
    with reporter.task("Work", 2) as progress:
        progress.update(1)
    assert text.getvalue() == ""
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_bars_go_after_an_error() -> None:
    reporter, _ = bars()

    def work() -> None:
        with reporter.task("Work"):
            _await_bars(reporter)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not reporter._bars.live.is_started


def test_bars_from_several_threads() -> None:
    reporter, _ = bars()

    def work() -> None:
        for _ in range(20):
            with reporter.task("Part", 1) as progress:
                progress.update(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not reporter._bars.live.is_started
