"""Open a memory image, whatever its format."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from inspector.errors import BadFormat, UsageError
from inspector.memory.core import elf, flat, kdump
from inspector.memory.core.model import MemoryImage
from inspector.memory.core.source import Source
from inspector.progress import SILENT, Reporter

_LONGEST_MAGIC = 16
_OTHERS = {
    b"DISKDUMP": "a diskdump of before 2006",
    b"EMiL": "a LiME image",
    b"PAGEDU": "a Windows crash dump",
    b"QEVM": "a QEMU migration stream",
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first",
    b"\xfd7zXZ": "packed with xz: unpack it first",
}


def open_image(path: Path, reporter: Reporter = SILENT) -> MemoryImage:
    """Open an ELF or kdump image. What is packed is unpacked into memory, or a temporary file.

    Raises UsageError (no such file), BadFormat (not an image, cut short, corrupt), SetupError (no room, a
    library is missing).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a file")
        return _read(Source(fd, status.st_size, path.name), reporter)
    finally:
        os.close(fd)


def _read(source: Source, reporter: Reporter) -> MemoryImage:
    magic = os.pread(source.fd, _LONGEST_MAGIC, 0)
    if magic.startswith(elf.MAGIC):
        return elf.read_elf(source, reporter)
    if magic.startswith(kdump.MAGIC):
        return kdump.read_kdump(source, reporter)
    if magic == flat.MAGIC:
        ordered = flat.unflatten(source, reporter)
        try:
            if os.pread(ordered.fd, _LONGEST_MAGIC, 0) == flat.MAGIC:
                raise BadFormat(f"{source.name} is corrupt: flattened twice")
            return _read(ordered, reporter)
        finally:
            os.close(ordered.fd)
    for begin, what in _OTHERS.items():
        if magic.startswith(begin):
            raise BadFormat(f"{source.name} is {what}; ELF and kdump images can be read")
    raise BadFormat(f"{source.name} is no memory image: it is neither ELF nor kdump")
