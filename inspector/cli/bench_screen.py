"""From the command to the filled overview, in a terminal of our own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

from inspector.cli.bench_rows import Effort, Row
from inspector.errors import MachineError
from inspector.units import printable

_LINES, _COLUMNS = 40, 140
_PATIENCE = 60.0  # seconds
_QUIT = b"\x11"  # Ctrl-Q
_FILLED = b"build id"
_FLOOR = """
import numpy
from textual.app import App
from textual.widgets import Static

class Bare(App):
    def compose(self):
        yield Static("build id")

Bare().run()
"""
"""What Python, numpy and Textual take alone to show as much."""


def screen_row(kernel: str, memory: str, effort: Effort) -> Row:
    """`kmi` where there is a booted state; the floor is an empty application of Textual's."""
    ours = [sys.executable, "-m", "inspector.cli.main", "tui", "--kernel", kernel, "--memory", memory]
    floor = [sys.executable, "-c", _FLOOR]
    # By turns, so that whatever else the host does meets both.
    times = [(shown(ours, _FILLED), shown(floor, _FILLED)) for _ in range(effort.repeats)]
    took, least = (statistics.median(column) for column in zip(*times, strict=True))
    note = f"from `kmi` to the filled overview of {memory}; floor: Python, numpy and an empty Textual screen"
    return Row("screen", 1, took, floor_s=least, note=note)


def shown(command: Sequence[str], text: bytes) -> float:
    """Seconds until a program has written this to its terminal; it is quit then. Raises MachineError."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", _LINES, _COLUMNS, 0, 0))
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(theirs)
        try:
            seen = b""
            while text not in seen:
                data = _read(ours)
                if not data:
                    last = printable(seen.decode(errors="replace"))[-200:]
                    raise MachineError(f"the program ended before its screen was there: {last}")
                seen += data
            took = time.perf_counter() - started
            os.write(ours, _QUIT)
            while _read(ours):
                pass
            process.wait(_PATIENCE)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(ours)
    return took


def _read(terminal: int) -> bytes:
    """What is written next; nothing where nobody has the terminal open any more (EIO)."""
    if not select.select([terminal], [], [], _PATIENCE)[0]:
        raise MachineError(f"a program did not draw for {_PATIENCE:g} s")
    with suppress(OSError):
        return os.read(terminal, 1 << 16)
    return b""
