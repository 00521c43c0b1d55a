"""Write a memory image: the whole of it, or nothing."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspector.errors import SetupError, UsageError
from inspector.memory.core.model import PAGE, SavedCpu
from inspector.memory.physical import PhysicalMemory, RamBlock
from inspector.units import PhysAddr, format_size

CHUNK = 1 << 20
"""Bytes that are looked at at once."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What goes into an image. `ram_fd` holds `memory`, to know its holes; None where nothing is known.

    `page_offset` is where the direct map begins, `phys_base` VMCOREINFO's, `utsname` six strings of 65 bytes
    (C: struct new_utsname).
    """

    memory: PhysicalMemory
    ram_fd: int | None
    cpus: tuple[SavedCpu, ...]
    vmcoreinfo: bytes
    page_offset: int
    phys_base: int
    utsname: bytes

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return sum(block.size for block in self.blocks)

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """The RAM in whole page frames."""
        return tuple(found for block in self.memory.blocks if (found := _whole_pages(block)).size > 0)

    def chunks(self) -> Iterator[tuple[PhysAddr, NDArray[np.uint8]]]:
        """The RAM that may hold something other than zeros: where it is, and its pages, one a row."""
        for block in self.blocks:
            for first, last in _data(self.ram_fd, block.offset, block.offset + block.size):
                # A page frame may begin anywhere in the file.
                start = (first - block.offset) // PAGE * PAGE
                end = -(-(last - block.offset) // PAGE) * PAGE
                for skip in range(start, end, CHUNK):
                    address = PhysAddr(block.start + skip)
                    yield address, self.memory.array(address, min(CHUNK, end - skip)).reshape(-1, PAGE)


def _whole_pages(block: RamBlock) -> RamBlock:
    skip = -block.start % PAGE
    return RamBlock(PhysAddr(block.start + skip), (block.size - skip) // PAGE * PAGE, block.offset + skip)


def _data(fd: int | None, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs of a file that are not holes; all of it where it does not tell."""
    if fd is None:
        yield start, end
        return
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            yield start, end
            return
        if first >= end:
            return
        last = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        yield first, last
        start = last


def not_zero(pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pages hold anything."""
    used: NDArray[np.bool_] = np.bitwise_or.reduce(pages.view(np.uint64), axis=1) != 0
    return used


def check_target(path: Path, overwrite: bool) -> None:
    """Raise UsageError where the file cannot be written, or is there and may not be overwritten."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give a file's name")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already: remove it, or ask to overwrite it")


@contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[int]:
    """A descriptor to write to; the file has its name once all went well, and is gone otherwise.

    Raises UsageError as check_target(), SetupError where the disk is full or the folder is not ours.
    """
    check_target(path, overwrite)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # Whoever may read the image reads all of the guest's memory.
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)
        check_target(path, overwrite)
        part.replace(path)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _failed(path: Path, error: OSError) -> SetupError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        room = os.statvfs(path.parent)
        free = format_size(room.f_bavail * room.f_frsize)
        return SetupError(f"no room for the image in {path.parent}: {free} are free; nothing is left of it")
    return SetupError(f"{path} cannot be written: {error.strerror or error}")


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write at an offset, all of it. Raises OSError."""
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
