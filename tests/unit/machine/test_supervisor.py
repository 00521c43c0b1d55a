"""The supervisor with a stand-in for QEMU: who dies with whom, and what is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from inspector.machine import supervisor


class Supervised:
    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        folder.mkdir()
        lifeline, self.lifeline = os.pipe()
        status, status_end = os.pipe()
        handed, self.handed = os.pipe()
        spec = {
            "command": command,
            "fds": [handed],
            "hand_over": [handed],
            "folder": str(folder),
            "parent": os.getpid(),
            "lifeline": lifeline,
            "status": status_end,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(spec)],
            pass_fds=[handed, lifeline, status_end],
        )
        for fd in (lifeline, status_end, handed):
            os.close(fd)
        self.status: IO[bytes] = os.fdopen(status, "rb")

    def told(self) -> dict[str, Any] | None:
        line = self.status.readline()
        return json.loads(line) if line else None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.status.close()
        for fd in (self.lifeline, self.handed):
            with suppress(OSError):
                os.close(fd)


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Supervised] = []

    def begin(*command: str) -> Supervised:
        started.append(Supervised(tmp_path / f"m-{len(started)}", list(command)))
        return started[-1]

    yield begin
    for supervised in started:
        supervised.end()


def gone(pid: int) -> bool:
    """Whether the process ends within some seconds (a zombie that init has not reaped yet has ended)."""
    for _ in range(2000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_the_end_of_the_child_is_reported_with_its_last_words(start: Start) -> None:
    run = start("sh", "-c", "echo first >&2; echo 'qemu: bad kernel' >&2; exit 3")
    assert (run.told() or {}).keys() == {"qemu"}
    assert run.told() == {"exit": 3, "said": "first\nqemu: bad kernel\n"}
    assert run.told() is None
    assert run.process.wait(10) == 0
    assert not run.folder.exists()


def test_a_child_that_is_killed_is_reported_so(start: Start) -> None:
    run = start("sleep", "1000")
    pid = (run.told() or {})["qemu"]
    os.kill(pid, signal.SIGKILL)
    assert (run.told() or {})["exit"] == -signal.SIGKILL
    assert run.process.wait(10) == 0
    assert not run.folder.exists()


def test_the_end_of_the_lifeline_ends_the_child_and_the_folder(start: Start) -> None:
    run = start("sleep", "1000")
    pid = (run.told() or {})["qemu"]
    os.close(run.lifeline)
    run.lifeline = -1
    assert run.process.wait(10) == 0
    assert gone(pid)
    assert not run.folder.exists()


def test_the_child_dies_with_the_supervisor(start: Start) -> None:
    run = start("sleep", "1000")
    pid = (run.told() or {})["qemu"]
    run.process.kill()
    assert gone(pid)


def test_terminate_cleans_up(start: Start) -> None:
    run = start("sleep", "1000")
    pid = (run.told() or {})["qemu"]
    run.process.terminate()
    assert run.process.wait(10) == 0
    assert gone(pid)
    assert not run.folder.exists()


def test_ctrl_c_is_not_for_the_supervisor(start: Start) -> None:
    run = start("sleep", "1000")
    pid = (run.told() or {})["qemu"]
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGHUP)
    os.kill(pid, 0)
    assert run.process.poll() is None
    os.close(run.lifeline)
    run.lifeline = -1
    assert run.process.wait(10) == 0, "it ended by the lifeline, not by a signal"


def test_a_program_that_is_not_there_is_reported(start: Start) -> None:
    run = start("/no/such/qemu")
    told = run.told() or {}
    assert told["exit"] == 127
    assert "/no/such/qemu" in told["said"]
    assert run.process.wait(10) == 0
    assert not run.folder.exists()


def test_what_is_handed_over_is_the_childs_alone(start: Start) -> None:
    """The other end sees the child close it while the supervisor lives."""
    close_all = "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && eval exec $n'>&-'; done"
    run = start("sh", "-c", close_all + "; sleep 1000")
    assert "qemu" in (run.told() or {})
    poll = select.poll()
    poll.register(run.handed, 0)
    assert poll.poll(10_000) == [(run.handed, select.POLLERR)], (
        "a pipe without a reader is in error (poll(2))"
    )
    assert run.process.poll() is None


def test_it_ends_with_its_parent_though_a_fork_holds_the_lifeline(tmp_path: Path) -> None:
    """The parent forks a child that keeps every descriptor, then dies by SIGKILL."""
    folder = tmp_path / "m-fork"
    folder.mkdir()
    script = f"""
import json, os, signal, subprocess, sys, time
lifeline, keep = os.pipe(); status, end = os.pipe()
spec = dict(command=["sleep", "1000"], fds=[], hand_over=[], folder={str(folder)!r}, parent=os.getpid(),
            lifeline=lifeline, status=end)
command = [sys.executable, "-I", "-S", {supervisor.__file__!r}, json.dumps(spec)]
run = subprocess.Popen(command, pass_fds=[lifeline, end])
told = json.loads(os.fdopen(status, "rb").readline())
child = os.fork()
if not child:
    os.close(1)
    time.sleep(1000)
print(json.dumps([told["qemu"], run.pid, child]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False)
    qemu, run, child = json.loads(parent.stdout)
    try:
        assert gone(qemu)
        assert gone(run) or not folder.exists()
        assert not folder.exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_word_on_the_lifeline_ends_the_child_and_leaves_the_folder(start: Start) -> None:
    run = start("sleep", "1000")
    pid = (run.told() or {})["qemu"]
    (run.folder / "other").touch()
    os.write(run.lifeline, b"L")
    assert run.process.wait(10) == 0
    assert gone(pid)
    assert (run.folder / "other").exists()
