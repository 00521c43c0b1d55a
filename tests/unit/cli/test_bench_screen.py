"""The bench's terminal: what runs in it is seen, and quit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inspector.cli import bench_screen
from inspector.cli.bench_screen import shown
from inspector.errors import MachineError

_READS_A_KEY = """
import os, sys, tty
tty.setraw(0)
os.write(1, b"%d columns, fil" % os.get_terminal_size(1).columns)
os.write(1, b"led")
assert os.read(0, 1) == bytes([17])
os.write(1, b"x" * 100_000)  # more than a terminal takes that nobody reads
open(sys.argv[1], "w").write("quit")
"""


def test_a_program_is_seen_and_quit(tmp_path: Path) -> None:
    end = tmp_path / "end"
    assert shown([sys.executable, "-c", _READS_A_KEY, str(end)], b"140 columns, filled") > 0
    assert end.read_text() == "quit"


def test_a_program_that_ends_early_is_told() -> None:
    with pytest.raises(MachineError, match=r"before its screen was there: .*no guest today"):
        shown([sys.executable, "-c", "print('no guest today')"], b"filled")


def test_a_program_that_draws_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_screen, "_PATIENCE", 0.0)
    with pytest.raises(MachineError, match="did not draw"):
        shown([sys.executable, "-c", "input()"], b"filled")


def test_the_floor_shows_as_much() -> None:
    assert shown([sys.executable, "-c", bench_screen._FLOOR], bench_screen._FILLED) > 0
