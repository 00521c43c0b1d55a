"""makedumpfile's flattened form: the pieces of a file in the order they were written, for a pipe.

QEMU's dump-guest-memory writes its kdump formats so. Numbers are big-endian. Source: makedumpfile
IMPLEMENTATION, "The flattened format"; QEMU include/sysemu/dump.h.
"""

from __future__ import annotations

import os
import struct

from inspector.errors import BadFormat
from inspector.memory.core.source import Source, scratch
from inspector.progress import Reporter

MAGIC = b"makedumpfile\0\0\0\0"

_FIRST = 4096  # bytes of the header
_TYPE, _VERSION = 1, 1
_PIECE = struct.Struct(">qq")
_STEP = 1 << 20
_REPORT = 512


def unflatten(source: Source, reporter: Reporter) -> Source:
    """The file that the pieces make up, in a scratch file. Raises BadFormat, SetupError."""
    if struct.unpack_from(">qq", source.read(0, 32, "its header"), 16) != (_TYPE, _VERSION):
        raise BadFormat(f"{source.name}: a flattened dump of an unknown version")
    pieces = _pieces(source)
    end = max((offset + size for offset, size, _ in pieces), default=0)
    total = sum(size for _, size, _ in pieces)
    fd = scratch(end, total)
    try:
        done = 0
        with reporter.task("Putting the dump's pieces in order", total=total, unit="B") as progress:
            for number, (offset, size, at) in enumerate(pieces):
                for skip in range(0, size, _STEP):
                    data = source.read(at + skip, min(_STEP, size - skip), "a piece")
                    os.pwrite(fd, data, offset + skip)
                done += size
                if number % _REPORT == 0:
                    progress.update(done)
    except BaseException:
        os.close(fd)
        raise
    return Source(fd, end, source.name)


def _pieces(source: Source) -> list[tuple[int, int, int]]:
    """(offset, size, where it is here) of every piece."""
    pieces: list[tuple[int, int, int]] = []
    at = _FIRST
    while True:
        offset, size = _PIECE.unpack(source.read(at, _PIECE.size, "the head of its next piece"))
        if offset < 0:  # END_FLAG_FLAT_HEADER
            return pieces
        at += _PIECE.size
        if size <= 0:
            raise BadFormat(f"{source.name} is corrupt: a piece of {size} bytes at {at:#x}")
        source.check(at, size, "a piece")
        if offset > 1 << 56:
            raise BadFormat(f"{source.name} is corrupt: a piece for offset {offset:#x}")
        pieces.append((offset, size, at))
        at += size
