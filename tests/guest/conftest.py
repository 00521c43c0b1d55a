"""Booted guests for the tests, and the witness: the guest's own /proc, read around our own reading."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pytest

from inspector import Guest
from inspector.machine import Completed

T = TypeVar("T")


@dataclass(frozen=True)
class GuestSpec:
    """A guest that tests ask for."""

    kernel: str
    la57: bool
    memory: str = "4G"
    cpus: int = 2
    # One reserved page of 1 GiB, for the task that maps it.
    cmdline: str = "hugepagesz=1G hugepages=1"

    def __str__(self) -> str:
        return f"{self.kernel}-{'la57' if self.la57 else '4level'}"


MATRIX = [
    GuestSpec("debian-5.10", False),
    GuestSpec("debian-6.1", False),
    GuestSpec("debian-6.1", True),
    GuestSpec("debian-6.12", False),
    GuestSpec("debian-7.2", True),
]


@pytest.fixture(scope="session")
def guest(boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """The default guest with two CPUs, for all tests that leave it as it was."""
    with boot_guest("debian-6.1", "512M", 2) as booted:
        yield booted


@pytest.fixture(scope="session", params=MATRIX, ids=str)
def any_guest(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """Each guest of the matrix in turn."""
    spec: GuestSpec = request.param
    with boot_guest(spec.kernel, spec.memory, spec.cpus, la57=spec.la57, cmdline=spec.cmdline) as booted:
        yield booted


@pytest.fixture(scope="session")
def start() -> Callable[[Guest, str], int]:
    """Spawn a lab program and wait until it says that it is ready; gives its PID."""

    def spawn(guest: Guest, command: str) -> int:
        pid = guest.spawn(command)
        guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
        return pid

    return spawn


@dataclass(frozen=True)
class Witnessed:
    """Both readings of each file, and the first and second whole."""

    readings: dict[str, tuple[bytes, bytes]]

    def agreed_lines(self, path: str) -> list[str | None]:
        """The file's lines; None for a line that changed between the readings."""
        first, second = (reading.decode().splitlines() for reading in self.readings[path])
        assert len(first) == len(second), f"{path} changed its shape between two readings"
        return [a if a == b else None for a, b in zip(first, second, strict=True)]

    def same(self, path: str) -> bool:
        """Whether the two readings are equal."""
        first, second = self.readings[path]
        return first == second

    def text(self, path: str) -> str:
        """The first reading."""
        return self.readings[path][0].decode()


Witness = Callable[[Guest, list[str], Callable[[], T]], tuple[Witnessed, T]]


@pytest.fixture(scope="session")
def witness() -> Witness[object]:
    """The guest reads files before and after a reading of ours, for which it is stopped."""
    return read_between


def read_between(guest: Guest, files: list[str], ours: Callable[[], T]) -> tuple[Witnessed, T]:
    """`ours` runs once, stopped, between the guest's two readings of `files` (PATH or PATH@OFFSET+LENGTH)."""
    result: list[Completed] = []
    command = "/labs/witness 1.5 " + " ".join(f"'{path}'" for path in files) + " | gzip -1"
    thread = threading.Thread(target=lambda: result.append(guest.run(command, timeout=120)), daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and thread.is_alive():
        with guest.paused():
            if any(task.comm == "witness-ready" for task in guest.tasks()):
                answer = ours()
                break
        time.sleep(0.03)
    else:
        thread.join(5)
        raise AssertionError(f"the witness never got ready: {result}")
    thread.join(120)
    return Witnessed(_parse(gzip.decompress(result[0].check().stdout_bytes))), answer


def _parse(data: bytes) -> dict[str, tuple[bytes, bytes]]:
    found: dict[str, list[bytes]] = {}
    while data:
        header, _, data = data.partition(b"\n")
        path, _, size = header.decode().rsplit(" ", 2)
        found.setdefault(path, []).append(data[: int(size)])
        data = data[int(size) :]
    return {path: (first, second) for path, (first, second) in found.items()}
