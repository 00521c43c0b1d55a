"""`kmi` as a process of its own, and what it may not leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inspector import Guest, machine
from inspector.machine import LocalMachine

_PATIENCE = 120.0  # seconds; a bound for what must come, not a claim about how fast it comes
_MARK = "KMI_TEST_MARK"


class Host:
    """A place to run `kmi` in: a private folder for its sockets, and a mark on all its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime_dir = str(folder)
        self.mark = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []
        folder.chmod(0o700)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_RUNTIME_DIR": self.runtime_dir, _MARK: self.mark, "COLUMNS": "80"}

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "inspector.cli.main", *arguments]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A run to its end, without a terminal."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A run whose stdout and stderr go to the file that log() reads."""
        with (self.folder.parent / f"{self.folder.name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    @staticmethod
    def wait_for(condition: Callable[[], bool], what: str) -> None:
        """Until it holds. Fails after a long time."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"never came: {what}"
            time.sleep(0.05)

    def log(self) -> str:
        """What the last start() has said so far."""
        return (self.folder.parent / f"{self.folder.name}.log").read_text()

    def processes(self) -> list[int]:
        """All processes that carry the mark, whoever their parent is now."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{_MARK}={self.mark}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue  # gone meanwhile
        return found

    def sockets(self) -> list[Path]:
        """All that is left in the folder for sockets, but the empty folders themselves."""
        return [path for path in self.folder.rglob("*") if not path.is_dir() or path.name.startswith("m-")]

    def assert_clean(self) -> None:
        """No process, socket or private folder is left, now or soon."""
        self.wait_for(lambda: not self.processes(), "the end of all processes")
        self.wait_for(lambda: not self.sockets(), "the end of all sockets")

    def kill_all(self) -> None:
        """Whatever a failed test left."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A fresh Host. Its folder's path is short: a Unix socket's must be."""
    made = Host(tmp_path_factory.mktemp("kmi"))
    yield made
    made.kill_all()


@pytest.fixture
def served(guest: Guest, host: Host) -> Iterator[str]:
    """The session's guest, held open under a name; host's commands look where its folder is: in ours."""
    host.runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    name = f"clitest-{os.getpid()}"
    assert isinstance(guest.machine, LocalMachine)
    with machine.serve(guest.machine, name):
        yield name
