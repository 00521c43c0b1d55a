"""A guest's whole state in one file, and the cache of such files: from them guests start in no time.

A file is the RAM's data, run after run; the devices' state as QEMU migrates it; the console so far; where the
runs lie; and, last, who made it and checksums. What is cut off or damaged is seen, so nothing waits for the
disk. A file has no name until it is whole: a process that is killed while it writes leaves nothing.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspector.errors import MachineError
from inspector.machine.devices import PciConfig
from inspector.progress import Reporter
from inspector.units import GIB

CACHE_LIMIT = 4 * GIB
"""Bytes that all the states in a cache may take; those used longest ago go first."""
_SUFFIX = ".state"
_LOCK_TICK = 0.05
_FOOT = struct.Struct("<8sII")  # magic, length and CRC-32 of the JSON before it
_MAGIC = b"KMISTAT1"
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Guest:
    """What whoever wakes the guest has to know."""

    agent_pid: int
    """The agent's PID in the guest; 0 where none speaks."""
    window: bool
    """Whether the agent has taken the window."""
    pci: PciConfig
    """What must be set before the devices' state is loaded."""


@dataclass(frozen=True, slots=True)
class _About:
    """What a state's file says of itself; sizes in bytes."""

    guest: Guest
    memory: int
    ram_size: int
    ram_crc: int
    devices_size: int
    console_size: int
    runs: int
    rest_crc: int
    written_ns: int
    """The file's modification time since it is whole."""
    host_boot: str
    """Since this boot of the host what was written is in the host's memory, be it on the disk yet or not."""


class State:
    """A state in an open file, with or without a name. Close it. Raises MachineError where it is damaged."""

    def __init__(self, fd: int) -> None:
        """Read all but the RAM, and check that; the caller keeps `fd` where it raises."""
        size = os.fstat(fd).st_size
        foot = os.pread(fd, _FOOT.size, max(0, size - _FOOT.size))
        if len(foot) < _FOOT.size or foot[:8] != _MAGIC:
            raise MachineError("it is cut off, or none of ours")
        _, length, crc = _FOOT.unpack(foot)
        text = os.pread(fd, length, max(0, size - _FOOT.size - length))
        if zlib.crc32(text) != crc:
            raise MachineError("what it says of itself is damaged")
        self.fd = fd
        self.size = size
        told = json.loads(text)
        self._about = about = _About(**told | {"guest": Guest(**told["guest"])})
        self.guest = about.guest
        rest = os.pread(fd, size - _FOOT.size - length - about.ram_size, about.ram_size)
        if zlib.crc32(rest) != about.rest_crc:
            raise MachineError("its devices' state is damaged")
        self.devices = rest[: about.devices_size]
        self.console = rest[about.devices_size :][: about.console_size]
        runs = np.frombuffer(rest, np.uint64, offset=about.devices_size + about.console_size)
        self._runs: NDArray[np.uint64] = runs.reshape(about.runs, 2)

    def check_ram(self) -> None:
        """Raises MachineError where the RAM's bytes are not those that were saved.

        Nothing is read where nobody wrote to the file since it was whole, and the host has not been down.
        """
        about = self._about
        if about.written_ns == os.fstat(self.fd).st_mtime_ns and about.host_boot == _host_boot():
            return
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        with mmap.mmap(self.fd, about.ram_size, flags=flags, prot=mmap.PROT_READ) as data:
            if zlib.crc32(data) != about.ram_crc:
                raise MachineError("its RAM is damaged")

    def fill(self, ram_fd: int) -> None:
        """Make the RAM's file what it was; between the runs its bytes are given back and read as 0."""
        at = 0
        with mmap.mmap(ram_fd, self._about.memory) as ram:
            for start, end in _gaps(self._runs, self._about.memory):
                ram.madvise(mmap.MADV_REMOVE, start, end - start)  # in the file, fallocate(2): a hole
        for start, size in self._runs.tolist():
            os.lseek(ram_fd, start, os.SEEK_SET)
            at = _copy(self.fd, at, ram_fd, size)

    def close(self) -> None:
        """Let go; the file goes with the last who has it, if it has no name. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def save(folder: Path, ram_fd: int, devices: bytes, console: bytes, guest: Guest) -> State:
    """Write the state of a guest that stands still to a file without a name in `folder`. Raises OSError."""
    fd = _nameless(folder)
    try:
        memory = os.fstat(ram_fd).st_size
        runs = np.array(list(_data(ram_fd, memory)), np.uint64).reshape(-1, 2)
        for start, size in runs.tolist():
            _copy(ram_fd, start, fd, size)
        rest = devices + console + runs.tobytes()
        ram_size = int(runs[:, 1].sum())
        with mmap.mmap(fd, ram_size, prot=mmap.PROT_READ) as data:
            crc = zlib.crc32(data)
        about = _About(
            guest=guest,
            memory=memory,
            ram_size=ram_size,
            ram_crc=crc,
            devices_size=len(devices),
            console_size=len(console),
            runs=len(runs),
            rest_crc=zlib.crc32(rest),
            written_ns=(now := time.time_ns()),
            host_boot=_host_boot(),
        )
        text = json.dumps(asdict(about)).encode()
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(rest + text + _FOOT.pack(_MAGIC, len(text), zlib.crc32(text)))
        os.utime(fd, ns=(now, now))
        return State(fd)
    except BaseException:
        os.close(fd)
        raise


def _host_boot() -> str:
    """Which boot of the host this is; random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _nameless(folder: Path) -> int:
    """A new file there, without a name; in memory where the file system cannot do that (O_TMPFILE)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return os.memfd_create("kmi-state")


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The runs of a sparse file that hold data: offset and size in bytes."""
    at = 0
    with suppress(OSError):  # ENXIO: no data from here on
        while at < size:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, at - start


def _gaps(runs: NDArray[np.uint64], end: int) -> Iterator[tuple[int, int]]:
    """What lies between the runs, from 0 to `end`: start and end of each."""
    at = 0
    for start, size in [*runs.tolist(), (end, 0)]:
        if start > at:
            yield at, start
        at = start + size


def _copy(source: int, at: int, target: int, size: int) -> int:
    """Copy `size` bytes from `at` to where `target` stands; gives where they end. Raises OSError."""
    end = at + size
    while at < end:
        copied = os.sendfile(target, source, at, end - at)
        if not copied:
            raise OSError(errno.EIO, "the file ends early")
        at += copied
    return end


def _lock(fd: int, timeout: float) -> bool:
    """Whether the file's lock was got in time."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(_LOCK_TICK)


class StateCache:
    """The states in a folder, by key. What is damaged counts as not there, and goes."""

    def __init__(self, folder: Path, limit: int = CACHE_LIMIT) -> None:
        self.folder = folder
        self.limit = limit

    def _path(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)

    def find(self, key: str) -> State | None:
        """The state, all but its RAM checked; None where there is none. Raises MachineError (damaged)."""
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            state = State(fd)
            with suppress(OSError):
                os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))  # used just now
            return state
        except BaseException as error:
            os.close(fd)
            if isinstance(error, MachineError):
                raise
            if isinstance(error, (ValueError, KeyError, TypeError, OSError)):
                raise MachineError("it cannot be read") from error
            raise

    def drop(self, key: str) -> None:
        """Forget a state; who has it open keeps it."""
        with suppress(OSError):
            self._path(key).unlink()

    def keep(self, key: str, state: State) -> None:
        """Give a new state its name, and drop the oldest beyond the limit. Raises OSError.

        Where another process was quicker, its state stays.
        """
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileExistsError):
                name = self._path(
                    key
                ).name  # dst_dir_fd: without it os.link() is link(2), and follows nothing
                os.link(f"/proc/self/fd/{state.fd}", name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
        self._shrink(key)

    def _shrink(self, newest: str) -> None:
        found = []
        for path in self.folder.glob("*" + _SUFFIX):
            with suppress(OSError):  # gone meanwhile
                about = path.stat()
                found.append((path.name != newest + _SUFFIX, -about.st_atime_ns, about.st_size, path))
        total = 0
        for _, _, size, path in sorted(found):
            total += size
            if total > self.limit:
                path.unlink(missing_ok=True)

    @contextmanager
    def making(self, key: str, timeout: float, reporter: Reporter) -> Iterator[None]:
        """Be the only one that boots the guest of this key; others wait, so look again for it inside.

        After `timeout` seconds one goes on beside the other.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # a cache that cannot be written is locked for all
            yield
            return
        try:
            if not _lock(fd, 0):
                with reporter.task("Waiting for another kmi, which boots such a guest"):
                    _lock(fd, timeout)
            yield
        finally:
            os.close(fd)
