"""How the RAM of a QEMU that others started can be read: in place, from its process, by its monitor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from inspector.errors import MachineError, QmpError
from inspector.machine.foreign_sources import (
    PAGE,
    Mapping,
    Moment,
    MonitorRam,
    Piece,
    ProcessRam,
    RamSource,
    xp,
)
from inspector.machine.model import RamRange
from inspector.machine.qmp import Qmp
from inspector.machine.registers import parse_ram

_HVA = re.compile(r"^Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]+)", re.MULTILINE)
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$", re.MULTILINE
)
_WANTED_SOCKET = "on its host, give the path of a Unix socket"
_WANTED_RIGHTS = (
    "be root, or its user where kernel.yama.ptrace_scope is 0, or share the RAM: start QEMU with "
    "`-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem`"
)
_TRIES = 8
_PROBED = (0, 0x30000, 1 << 24)  # in the block above VGA's window the second is 0xf0000: the BIOS's copy
_PROBE_WORDS = 32


class Backend(NamedTuple):
    """A memory backend that is RAM of the guest: its bytes lie from `offset` on in our numbering."""

    name: str
    size: int
    offset: int


class RamFile(NamedTuple):
    """A backend's file: `size` bytes from `start` on are those from `offset` on in our numbering."""

    fd: int
    start: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class ForeignRam:
    """What was found: the files that are the RAM, open for reading, or a source of copies."""

    blocks: list[RamRange]
    files: list[RamFile]
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
    return ForeignRam(blocks, [], source, f"RAM read slowly, by {source.command}", lack)


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


def _of_process(
    qmp: Qmp, pid: int, blocks: list[RamRange], backends: list[Backend], moment: Moment
) -> ForeignRam:
    mappings = [
        Mapping(
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
    files = _shared_files(pid, pieces)
    try:
        if files and _agrees(qmp, blocks, lambda offset, size: _read_files(files, offset, size)):
            return ForeignRam(blocks, files, None, "RAM read in place")
    except BaseException:
        _close(files)
        raise
    _close(files)
    source = ProcessRam(pid, pieces, moment)
    try:
        if not _agrees(qmp, blocks, source.bytes):
            raise _NotThis("its memory is not the guest's")
    except BaseException:
        source.close()
        raise
    return ForeignRam(blocks, [], source, "RAM copied from its process")


def _piece(qmp: Qmp, backend: Backend, blocks: list[RamRange], mappings: list[Mapping]) -> Piece:
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
    return Piece(backend.offset, backend.size, address, within)


def _shared_files(pid: int, pieces: list[Piece]) -> list[RamFile]:
    """The file that each piece is shared with, opened; none where one has none."""
    files: list[RamFile] = []
    for piece in pieces:
        found = _shared_file(pid, piece)
        if not found:
            _close(files)
            return []
        files.append(found)
    return files


def _close(files: list[RamFile]) -> None:
    for file in files:
        os.close(file.fd)


def _read_files(files: list[RamFile], offset: int, size: int) -> bytes:
    file = next(file for file in files if 0 <= offset - file.offset < file.size)
    return os.pread(file.fd, size, file.start + offset - file.offset)


def _shared_file(pid: int, piece: Piece) -> RamFile | None:
    """The file that all of the piece is shared with."""
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
                return RamFile(fd, shift, piece.size, piece.offset)
            os.close(fd)
    return None


def _names(pid: int, mapping: Mapping) -> Iterator[str]:
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
                after = xp(qmp, start + skip, _PROBE_WORDS)
                if ours in (before, after):
                    break
                before = after
            else:
                return False
    return True
