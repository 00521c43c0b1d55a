"""Bytes of a foreign guest's RAM as they are copied: out of QEMU's process, or by its monitor."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.errors import GuestDied, MachineError
from inspector.machine.model import RamRange
from inspector.machine.qmp import Qmp

PAGE = mmap.PAGESIZE
_WORD = re.compile(r"0x([0-9a-f]{16})\b")
_XP_WORDS = 1 << 15
_EXISTS = 62
"""In /proc/PID/pagemap bit 62 is `swapped`, 63 `present` (Documentation/admin-guide/mm/pagemap.rst)."""

Moment = Callable[[], int | None]


class RamSource(Protocol):
    """RAM that is copied rather than mapped; memory/mirror.py says what is wanted of it."""

    stride: int

    def moment(self) -> int | None:
        """A number that is another one once the guest has run; None while it runs."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on. Raises MachineError."""

    def present(self, page: int, count: int) -> NDArray[np.bool_] | None:
        """Which of `count` pages from number `page` on may hold anything but zeros; None: all may."""

    def close(self) -> None:
        """Let go."""


class Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int
    path: str


class Piece(NamedTuple):
    """A backend in QEMU's own memory."""

    offset: int
    size: int
    address: int
    mappings: list[Mapping]


def xp(qmp: Qmp, address: int, words: int) -> bytes:
    """Words of 64 bits at a physical address, as the monitor prints them."""
    found = _WORD.findall(qmp.hmp(f"xp /{words}gx {address:#x}"))
    if len(found) < words:
        raise MachineError(f"QEMU's monitor does not show the memory at {address:#x}")
    swapped = np.frombuffer(bytes.fromhex("".join(found[:words])), ">u8")
    return swapped.astype("<u8").tobytes()


class ProcessRam:
    """RAM that is QEMU's alone, read out of /proc/PID/mem. Raises OSError where that is not allowed."""

    stride = 8  # copying 32 KiB costs what a call does

    def __init__(self, pid: int, pieces: list[Piece], moment: Moment) -> None:
        self._pid = pid
        self._pieces = pieces
        self.moment = moment
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        # Pages that a file gives are not zeros where QEMU has not touched them.
        anonymous = not any(mapping.inode for piece in pieces for mapping in piece.mappings)
        self._pagemap: int | None = None
        with suppress(OSError):
            if anonymous:
                self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, into: memoryview) -> None:
        """See RamSource. Raises GuestDied."""
        for piece in self._pieces:
            start, end = max(offset, piece.offset), min(offset + len(into), piece.offset + piece.size)
            while start < end:
                got = self._pread(into[start - offset : end - offset], piece.address + start - piece.offset)
                start += got

    def bytes(self, offset: int, size: int) -> bytes:
        """A copy."""
        buffer = bytearray(size)
        self.read(offset, memoryview(buffer))
        return bytes(buffer)

    def _pread(self, into: memoryview, address: int) -> int:
        try:
            got = os.preadv(self._memory, [into], address)
        except OSError as error:
            raise GuestDied(f"the guest is gone: its RAM cannot be read ({error.strerror})") from error
        if not got:  # the process has ended
            raise GuestDied("the guest is gone: QEMU has ended")
        return got

    def present(self, page: int, count: int) -> NDArray[np.bool_] | None:
        """See RamSource: a page that QEMU never touched is zeros."""
        if self._pagemap is None:
            return None
        found = np.ones(count, np.bool_)
        for piece in self._pieces:
            first, last = piece.offset // PAGE, -(-(piece.offset + piece.size) // PAGE)
            start, end = max(page, first), min(page + count, last)
            if start >= end:
                continue
            at = (piece.address // PAGE + start - first) * 8
            entries = np.frombuffer(os.pread(self._pagemap, (end - start) * 8, at), np.uint64)
            if len(entries) < end - start:
                return None
            found[start - page : end - page] = entries >> np.uint64(_EXISTS) != 0
        return found

    def close(self) -> None:
        """Let go of the process."""
        for fd in (self._memory, self._pagemap):
            if fd is not None:
                os.close(fd)
        self._pagemap = None


class MonitorRam:
    """RAM as QEMU's monitor gives it: saved into a file of ours (pmemsave), or else printed as text (xp)."""

    stride = 8

    def __init__(self, qmp: Qmp, blocks: list[RamRange], moment: Moment, *, same_host: bool) -> None:
        self._qmp = qmp
        self._blocks = blocks
        self.moment = moment
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if same_host:
            self._folder = tempfile.TemporaryDirectory(prefix="kmi-ram-")
            try:
                saved = self._save(blocks[0][0], PAGE)
            except (MachineError, OSError):
                saved = b""
            if len(saved) != PAGE:  # QEMU may not write there, or sees other folders
                self._folder.cleanup()
                self._folder = None
        self.command = "pmemsave" if self._folder else "xp"

    def _save(self, address: int, size: int) -> bytes:
        assert self._folder
        path = Path(self._folder.name) / "pages"
        path.unlink(missing_ok=True)
        self._qmp.execute("pmemsave", {"val": address, "size": size, "filename": str(path)})
        return path.read_bytes()

    def read(self, offset: int, into: memoryview) -> None:
        """See RamSource. What no block holds is zeros."""
        end = offset + len(into)
        for start, size, at in self._blocks:
            first, last = max(offset, at), min(end, at + size)
            if first < last:
                into[first - offset : last - offset] = self._get(start + first - at, last - first)

    def _get(self, address: int, size: int) -> bytes:
        if self._folder:
            return self._save(address, size)
        parts = []
        for skip in range(0, size, 8 * _XP_WORDS):
            parts.append(xp(self._qmp, address + skip, min(_XP_WORDS, (size - skip) // 8)))
        return b"".join(parts)

    def present(self, page: int, count: int) -> None:
        """See RamSource: the monitor does not tell."""

    def close(self) -> None:
        """Remove the file."""
        if self._folder:
            self._folder.cleanup()
            self._folder = None
