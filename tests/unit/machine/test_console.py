"""The console's ring: what it keeps, what it shows, what it recognises."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from inspector.machine.console import Console


@pytest.fixture
def console() -> Callable[[bytes], Console]:
    def after(data: bytes) -> Console:
        ours, theirs = socket.socketpair()
        console = Console(ours)
        theirs.sendall(data)
        theirs.close()
        assert console.ended.wait(10)
        ours.close()
        return console

    return after


def test_the_tail_in_lines(console: Callable[[bytes], Console]) -> None:
    text = console(b"one\r\ntwo\r\n\r\nthree\r\n")
    assert text.tail(2) == "\nthree"
    assert text.tail(100) == "one\ntwo\n\nthree"
    assert text.tail(0) == ""
    assert text.last_line() == "three"


def test_escape_sequences_reach_no_terminal(console: Callable[[bytes], Console]) -> None:
    assert console(b"\x1b[2Jhello\x07\xff\n").tail() == "\\x1b[2Jhello\\x07\ufffd"


def test_a_flood_is_bounded_and_keeps_the_end(console: Callable[[bytes], Console]) -> None:
    flooded = console(b"y\n" * 3_000_000 + b"the end\n")
    assert flooded.total == 6_000_008
    assert 1 << 20 <= len(flooded.text()) + 1 <= 2 << 20
    assert flooded.tail(1) == "the end"


def test_a_panic_is_recognised(console: Callable[[bytes], Console]) -> None:
    said = (
        b"[    3.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
        b"[    3.2] CPU: 0 PID: 1 Comm: swapper/0 Not tainted\r\n"
        b"[    3.3] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
    )
    assert console(said).fatal().startswith("Kernel panic - not syncing: VFS: Unable to mount root fs")


def test_a_halted_decompressor_is_recognised(console: Callable[[bytes], Console]) -> None:
    said = b"Decompressing Linux...\r\n\r\nXZ-compressed data is corrupt\r\n\r\n -- System halted"
    assert console(said).fatal() == "XZ-compressed data is corrupt -- System halted"


def test_a_healthy_console_has_no_last_words(console: Callable[[bytes], Console]) -> None:
    assert console(b"[    0.0] Linux version 6.1\r\n[    0.1] printk: panic=-1\r\n").fatal() == ""


def test_contains(console: Callable[[bytes], Console]) -> None:
    text = console(b"Welcome to my init\n")
    assert text.contains("my init")
    assert not text.contains("your init")
