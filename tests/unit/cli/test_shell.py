"""The REPL and what is bound in it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from inspector.cli.shell import _Console
from inspector.errors import NoSuchTask

Kmi = Callable[..., Any]


def test_runs_what_is_piped_in(kmi: Kmi, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("print(guest.info().release, Pfn(3), spawned)\n"))
    done = kmi("shell", "--spawn", "sleep 9")
    assert (done.status, done.out) == (0, "6.1.0-test 3 1\n")
    assert fake.closed == 1


def test_an_error_in_what_is_piped_in_is_one_line(kmi: Kmi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("guest.task(99)\n"))
    done = kmi("shell")
    assert done.status == 2
    assert "no task has PID 99" in done.error


def test_our_errors_take_a_line_in_the_repl(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise NoSuchTask("no task\x1b has PID 99")

    repl = _Console({"fail": fail})
    repl.runsource("fail()")
    assert capsys.readouterr().err == "NoSuchTask: no task\\x1b has PID 99\n"
    repl.runsource("1/0")
    assert "Traceback" in capsys.readouterr().err
