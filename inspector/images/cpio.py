"""The cpio format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

Written here, not by cpio(1), because only so can a device node be put in without being root.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of an archive, owned by root."""

    path: str
    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


def directory(path: str) -> Entry:
    """A folder; the kernel takes one twice without complaint."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def device(path: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(path, stat.S_IFCHR | 0o600, b"", major, minor)


def write_cpio(target: Path, entries: Iterable[Entry]) -> None:
    """Write a newc archive; folders must come before what lies in them."""
    with target.open("wb") as out:
        for number, entry in enumerate(entries, 1):
            out.write(_member(number, entry))
        out.write(_member(0, Entry("TRAILER!!!", 0)))


def _member(number: int, entry: Entry) -> bytes:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
    fields = (
        number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, entry.major, entry.minor, len(name), 0
    )  # fmt: skip
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
