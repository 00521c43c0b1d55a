"""The program of all labs, /labs/actor in the guest: told line by line what to do, and a witness of it."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass

from inspector.errors import LabFailed
from inspector.guest import Guest
from inspector.units import Pfn, VirtAddr, printable

_PATIENCE = 30  # seconds for an answer; an actor that is gone is noticed within one
_PRESENT, _SWAPPED = 1 << 63, 1 << 62  # Documentation/admin-guide/mm/pagemap.rst
_FRAME = (1 << 55) - 1
_TYPE_BITS = 5


@dataclass(frozen=True, slots=True)
class PagemapWord:
    """An entry of /proc/self/pagemap: the kernel's own word on a page."""

    raw: int

    @property
    def pfn(self) -> Pfn | None:
        """The frame; None where the page is not present."""
        return Pfn(self.raw & _FRAME) if self.raw & _PRESENT else None

    @property
    def swap(self) -> tuple[int, int] | None:
        """Type and offset of a page that is swapped out; None elsewhere."""
        if not self.raw & _SWAPPED:
            return None
        word = self.raw & _FRAME
        return word & (1 << _TYPE_BITS) - 1, word >> _TYPE_BITS


@dataclass(frozen=True, slots=True)
class PagemapCount:
    """How many pages are present or swapped out, and how many different frames the present ones have."""

    present: int
    swapped: int
    frames: int


@dataclass(frozen=True, slots=True)
class Access:
    """What an access came to: the byte read, page faults (getrusage), a signal, and pagemap after it."""

    value: int
    minor: int
    major: int
    signal: int
    code: int
    address: int
    pagemap: PagemapWord


class Actor:
    """A program in the guest that does what it is told. Raises LabFailed where it cannot, or is gone."""

    def __init__(self, guest: Guest, prepare: str = "", undo: str = "") -> None:
        self._guest, self._undo, self._prefix = guest, undo, ""
        self._folder = f"/tmp/lab.{uuid.uuid4().hex[:4]}"
        # The FIFOs are open both ways: nobody waits for the other end, and none sees an end of file.
        self.pid = guest.spawn(
            f"mkdir {self._folder} && cd {self._folder} && mkfifo in out && {{ {prepare or ':'}\n}} "
            f"</dev/null >&2 && exec /labs/actor 0<>in 1<>out"
        )
        try:
            guest.run(f"while [ -d /proc/{self.pid} ] && [ ! -p {self._folder}/out ]; do sleep 0.02; done")
            self._fields(self._read())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the program, and undo what was prepared."""
        gone = f"while [ -d /proc/{self.pid} ]; do sleep 0.02; done"
        undo = f"cd {self._folder} && {{ {self._undo or ':'}\n}} >/dev/null 2>&1"
        self._guest.run(f"kill -9 {self.pid}; {gone}; ({undo}); rm -rf {self._folder}")

    # Asking

    def ask(self, command: str) -> dict[str, str]:
        """Have one line done; what it answers, by name. Raises LabFailed."""
        return self._fields(self._read(f"printf '%s\\n' '{self._prefix}{command}' 1<>in; "), command)

    def _read(self, before: str = "") -> str:
        alive = f"[ -d /proc/{self.pid} ]"
        # Builtins alone: each command that is run costs page faults, of which a tracer sees every one.
        # A read that times out loses what it had: so it waits for one byte, behind which is the line.
        once = "read -t 1 -n 1 a <>out && read -t 9 -r b <>out && line=$a$b && break; i=$((i-1))"
        waits = f"i={_PATIENCE}; while [ $i -gt 0 ] && {alive}; do {once}; done"
        result = self._guest.run(
            f'cd {self._folder} && {alive} || exit 1; {before}line=; {waits}; echo "$line"', _PATIENCE * 2
        )
        if result.returncode or not result.stdout.strip():
            said = self._guest.run(f"tail -n 1 /tmp/spawn-{self.pid}.log").stdout.strip()
            raise LabFailed(f"the program is gone{': ' + printable(said) if said else ''}")
        return result.stdout.strip()

    @staticmethod
    def _fields(answer: str, command: str = "") -> dict[str, str]:
        state, _, rest = answer.partition(" ")
        if state != "ok":
            raise LabFailed(f"the program could not do {command!r}: {printable(rest)}")
        return dict(word.partition("=")[::2] for word in rest.split())

    # What it can do

    def map(self, name: str, pages: int, *options: str) -> VirtAddr:
        """Map memory; see `actor --help` in the guest for the options."""
        return VirtAddr(int(self.ask(" ".join(("map", name, str(pages), *options)))["start"], 16))

    def read(self, va: int) -> Access:
        """Read a byte."""
        return self._access(f"read {va:#x}")

    def write(self, va: int, value: int = 1) -> Access:
        """Write a byte."""
        return self._access(f"write {va:#x} {value}")

    def execute(self, va: int) -> Access:
        """Jump there."""
        return self._access(f"exec {va:#x}")

    def read_all(self, va: int, pages: int) -> Access:
        """Read a byte of each of so many pages; `value` is the last, `pagemap` that of the first."""
        return self._access(f"scan {va:#x} {pages}")

    def touch(self, va: int, pages: int) -> Access:
        """Write a byte to each of so many pages."""
        return self._access(f"touch {va:#x} {pages}")

    def _access(self, command: str) -> Access:
        said = self.ask(command)
        return Access(
            value=int(said["value"]),
            minor=int(said["minor"]),
            major=int(said["major"]),
            signal=int(said["signal"]),
            code=int(said.get("code", "0")),
            address=int(said.get("address", "0"), 16),
            pagemap=PagemapWord(int(said["entry"], 16)),
        )

    def pagemap(self, va: int) -> PagemapWord:
        """The page's word in /proc/self/pagemap."""
        return PagemapWord(int(self.ask(f"look {va:#x}")["entry"], 16))

    def count(self, va: int, pages: int) -> PagemapCount:
        """What /proc/self/pagemap says of so many pages."""
        said = self.ask(f"count {va:#x} {pages}")
        return PagemapCount(int(said["present"]), int(said["swapped"]), int(said["frames"]))

    def cached(self, va: int, pages: int) -> int:
        """How many of so many pages of a file the page cache has, by mincore()."""
        return int(self.ask(f"cached {va:#x} {pages}")["pages"])

    def smaps(self, va: int) -> Counter[str]:
        """The numbers of the mapping in /proc/self/smaps, in KiB; all 0 where there is none."""
        said = self.ask(f"smaps {va:#x}")
        return Counter({name: int(value) for name, value in said.items() if name not in ("start", "end")})

    def unmap(self, va: int, pages: int) -> None:
        """munmap() so many pages."""
        self.ask(f"unmap {va:#x} {pages}")

    def thin(self, va: int, pages: int) -> None:
        """Give every other 64 of so many pages back."""
        self.ask(f"thin {va:#x} {pages}")

    def lock(self, va: int, pages: int) -> None:
        """mlock() so many pages."""
        self.ask(f"lock {va:#x} {pages}")

    def peek(self, va: int, size: int) -> bytes:
        """What the program reads there, at most 1024 bytes."""
        return bytes.fromhex(self.ask(f"peek {va:#x} {size}")["data"])

    def poke(self, va: int, data: bytes) -> None:
        """Write bytes, at most 1024."""
        self.ask(f"poke {va:#x} {data.hex()}")

    # Devices. To map one: map(..., "shared", "device=NAME").

    def open(self, name: str, path: str) -> None:
        """Open a device's file, to be called by a name."""
        self.ask(f"open {name} {path}")

    def close_device(self, name: str) -> None:
        """close() what open() opened."""
        self.ask(f"close {name}")

    def ioctl(self, name: str, request: int, data: bytes = b"") -> bytes:
        """Ask the driver with a struct, at most 1024 bytes; what it made of it."""
        return bytes.fromhex(self.ask(f"ioctl {name} {request:#x} {data.hex()}")["data"])

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """Read from a device, at most 1024 bytes."""
        return bytes.fromhex(self.ask(f"pread {name} {offset:#x} {size}")["data"])

    def pwrite(self, name: str, offset: int, data: bytes) -> int:
        """Write to a device, at most 1024 bytes; how many it took."""
        return int(self.ask(f"pwrite {name} {offset:#x} {data.hex()}")["bytes"])

    def fork(self) -> Child:
        """Make a child that can be told too."""
        return Child(self, int(self.ask("fork")["pid"]))

    def reap(self) -> None:
        """End the child and wait for it."""
        self.ask("reap")


class Child(Actor):
    """The actor's child: its lines go through the parent."""

    def __init__(self, parent: Actor, pid: int) -> None:
        self._guest, self._folder, self._undo = parent._guest, parent._folder, ""
        self._prefix = "child "
        self._parent = parent
        self.pid = pid

    def _read(self, before: str = "") -> str:
        return self._parent._read(before)
