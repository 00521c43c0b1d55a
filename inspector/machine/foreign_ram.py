"""How the RAM of a QEMU that others started can be read: in place, from its process, by its monitor."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.errors import GuestDied, MachineError, QmpError
from inspector.machine.model import RamRange
from inspector.machine.qmp import Qmp
from inspector.machine.registers import parse_ram

PAGE = mmap.PAGESIZE
_HVA = re.compile(r"^Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]+)", re.MULTILINE)
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$", re.MULTILINE
)
_WANTED_SOCKET = "on its host, give the path of a Unix socket"
_WANTED_RIGHTS = (
    "be root, or its user where kernel.yama.ptrace_scope is 0, or share the RAM: start QEMU with "
    "`-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem`"
)
_WORD = re.compile(r"0x([0-9a-f]{16})\b")
_XP_WORDS = 1 << 15
_EXISTS = 62
"""In /proc/PID/pagemap bit 62 is `swapped`, 63 `present` (Documentation/admin-guide/mm/pagemap.rst)."""
_TRIES = 8
_PROBED = (0, 0x30000, 1 << 24)  # in the block above VGA's window the second is 0xf0000: the BIOS's copy
_PROBE_WORDS = 32

Moment = Callable[[], int | None]


class Backend(NamedTuple):
    """A memory backend that is RAM of the guest: its bytes lie from `offset` on in our numbering."""

    name: str
    size: int
    offset: int


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


@dataclass(frozen=True, slots=True)
class ForeignRam:
    """What was found: a file that is the RAM, open for reading, or a source of copies."""

    blocks: list[RamRange]
    fd: int | None
    source: RamSource | None
    how: str
    """For a person: `RAM read in place`."""
    lack: str = ""
    """What would be better, and how to have it; empty where all is well."""


def find_ram(qmp: Qmp, pid: int | None, moment: Moment) -> ForeignRam:
    """The best way to the RAM that there is. Raises MachineError, GuestDied.

    `pid` is QEMU's, where the host is ours. How a QEMU keeps its RAM does not change while it runs.
    """
    blocks, backends = _layout(qmp.hmp("info mtree -f"), _names_of_ram(qmp))
    lack = f"RAM can only be read slowly, by its monitor: {_WANTED_SOCKET}"
    if pid is not None:
        try:
            return _of_process(qmp, pid, blocks, backends, moment)
        except (OSError, _NotThis) as error:
            why = f"process {pid}: {getattr(error, 'strerror', None) or error}"
            lack = f"RAM can only be read slowly, by its monitor ({why}): {_WANTED_RIGHTS}"
    source = MonitorRam(qmp, blocks, moment, same_host=pid is not None)
    return ForeignRam(blocks, None, source, f"RAM read slowly, by {source.command}", lack)


class _NotThis(Exception):
    """That process does not have the RAM."""


def _names_of_ram(qmp: Qmp) -> list[str]:
    """The memory backends that are RAM, not a device's (QAPI query-memdev, query-memory-devices)."""
    known = [memdev["id"] for memdev in qmp.execute("query-memdev") if memdev.get("id")]
    plugged = [device["data"].get("memdev", "") for device in qmp.execute("query-memory-devices")]
    with suppress(QmpError):
        whole = str(qmp.execute("qom-get", {"path": "/machine", "property": "memory-backend"}))
        if whole:
            return [_last(name) for name in (whole, *plugged) if name]
    return known  # NUMA nodes' own; what of them is a device's we cannot tell


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _layout(mtree: str, names: list[str]) -> tuple[list[RamRange], list[Backend]]:
    """Where each backend lies in the guest, one after the other in our numbering."""
    blocks: list[RamRange] = []
    backends: list[Backend] = []
    offset = 0
    for name in names:
        for spelt in (name, f"/objects/{name}"):  # the latter before machine types of QEMU 4.1
            with suppress(MachineError):
                found = parse_ram(mtree, spelt)
                size = max(at + length for _, length, at in found)
                backends.append(Backend(name, size, offset))
                blocks += [(start, length, at + offset) for start, length, at in found]
                offset += -(-size // PAGE) * PAGE
                break
    if not blocks:
        raise MachineError("QEMU's `info mtree -f` shows no RAM: is this an x86 machine that has started?")
    return sorted(blocks), backends


class _Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int
    path: str


class _Piece(NamedTuple):
    """A backend in QEMU's own memory."""

    offset: int
    size: int
    address: int
    mappings: list[_Mapping]


def _of_process(
    qmp: Qmp, pid: int, blocks: list[RamRange], backends: list[Backend], moment: Moment
) -> ForeignRam:
    mappings = [
        _Mapping(
            int(start, 16),
            int(end, 16),
            rights[3] == "s",
            int(offset, 16),
            os.makedev(int(major, 16), int(minor, 16)),
            int(inode),
            path,
        )
        for start, end, rights, offset, major, minor, inode, path in _MAPPING.findall(
            Path(f"/proc/{pid}/maps").read_text(errors="replace")
        )
    ]
    pieces = [_piece(qmp, backend, blocks, mappings) for backend in backends]
    if len(pieces) == 1 and (placed := _shared_file(pid, pieces[0])):
        fd, shift = placed
        placed_blocks = [(start, size, offset + shift) for start, size, offset in blocks]
        if _agrees(qmp, placed_blocks, lambda offset, size: os.pread(fd, size, offset)):
            return ForeignRam(placed_blocks, fd, None, "RAM read in place")
        os.close(fd)
    source = ProcessRam(pid, pieces, moment)
    try:
        if not _agrees(qmp, blocks, source.bytes):
            raise _NotThis("its memory is not the guest's")
    except BaseException:
        source.close()
        raise
    return ForeignRam(blocks, None, source, "RAM copied from its process")


def _piece(qmp: Qmp, backend: Backend, blocks: list[RamRange], mappings: list[_Mapping]) -> _Piece:
    """Ask QEMU where it has the backend (HMP gpa2hva), and check that the process has memory there."""
    start, _, offset = next(block for block in blocks if 0 <= block[2] - backend.offset < backend.size)
    found = _HVA.search(qmp.hmp(f"gpa2hva {start:#x}"))
    if not found:
        raise _NotThis("QEMU does not tell where it has the RAM")
    address = int(found[1], 16) - (offset - backend.offset)
    end = address + backend.size
    within = [mapping for mapping in mappings if mapping.start < end and address < mapping.end]
    covered = address
    for mapping in within:
        if mapping.start > covered:
            break
        covered = mapping.end
    if covered < end:
        raise _NotThis("it has no memory where QEMU has the RAM")
    return _Piece(backend.offset, backend.size, address, within)


def _shared_file(pid: int, piece: _Piece) -> tuple[int, int] | None:
    """The file that all of the piece is shared with, opened, and where in it the piece begins."""
    first = piece.mappings[0]
    shift = first.offset + piece.address - first.start
    for mapping in piece.mappings:
        same = (mapping.device, mapping.inode) == (first.device, first.inode)
        if not (mapping.shared and same and mapping.offset - mapping.start == first.offset - first.start):
            return None
    for name in _names(pid, first):
        with suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) == (first.device, first.inode) and (
                status.st_size >= shift + piece.size
            ):
                return fd, shift
            os.close(fd)
    return None


def _names(pid: int, mapping: _Mapping) -> Iterator[str]:
    """By what a mapped file may be opened; /proc/PID/map_files is root's alone."""
    yield f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                status = entry.stat()
                if (status.st_dev, status.st_ino) == (mapping.device, mapping.inode):
                    yield entry.path
    if mapping.path.startswith("/"):
        yield f"/proc/{pid}/root{mapping.path}"


def _agrees(qmp: Qmp, blocks: list[RamRange], read: Callable[[int, int], bytes]) -> bool:
    """Whether the bytes are those that QEMU shows for the guest, at some places; it may run meanwhile."""
    size = 8 * _PROBE_WORDS
    for start, length, offset in blocks:
        for skip in _PROBED:
            if skip + size > length:
                continue
            before = b""
            for _ in range(_TRIES):
                ours = read(offset + skip, size)
                after = _xp(qmp, start + skip, _PROBE_WORDS)
                if ours in (before, after):
                    break
                before = after
            else:
                return False
    return True


def _xp(qmp: Qmp, address: int, words: int) -> bytes:
    """Words of 64 bits at a physical address, as the monitor prints them."""
    found = _WORD.findall(qmp.hmp(f"xp /{words}gx {address:#x}"))
    if len(found) < words:
        raise MachineError(f"QEMU's monitor does not show the memory at {address:#x}")
    swapped = np.frombuffer(bytes.fromhex("".join(found[:words])), ">u8")
    return swapped.astype("<u8").tobytes()


class ProcessRam:
    """RAM that is QEMU's alone, read out of /proc/PID/mem. Raises OSError where that is not allowed."""

    stride = 8  # copying 32 KiB costs what a call does

    def __init__(self, pid: int, pieces: list[_Piece], moment: Moment) -> None:
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
            parts.append(_xp(self._qmp, address + skip, min(_XP_WORDS, (size - skip) // 8)))
        return b"".join(parts)

    def present(self, page: int, count: int) -> None:
        """See RamSource: the monitor does not tell."""

    def close(self) -> None:
        """Remove the file."""
        if self._folder:
            self._folder.cleanup()
            self._folder = None
