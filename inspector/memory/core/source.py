"""The file that an image is read from: every read is whole, or a named error."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inspector.errors import BadFormat, SetupError
from inspector.units import format_size


@dataclass(frozen=True, slots=True)
class Source:
    """An open file of `size` bytes."""

    fd: int
    size: int
    name: str

    def read(self, offset: int, size: int, what: str) -> bytes:
        """Bytes of the file. Raises BadFormat where they are not all there."""
        self.check(offset, size, what)
        try:
            data = os.pread(self.fd, size, offset)
        except OSError as error:
            raise SetupError(f"{self.name} cannot be read: {error.strerror}") from error
        if len(data) < size:
            data += self._more(offset + len(data), size - len(data), what)
        return data

    def check(self, offset: int, size: int, what: str) -> None:
        """Raise BadFormat where bytes lie past the file's end."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BadFormat(
                f"{self.name} is cut short or corrupt: {what} would end at byte {offset + size}, "
                f"the file ends at {self.size}"
            )

    def _more(self, offset: int, size: int, what: str) -> bytes:
        """Linux reads at most 2 GiB at once."""
        parts = []
        while size:
            data = os.pread(self.fd, size, offset)
            if not data:
                raise BadFormat(f"{self.name} became shorter while {what} was read")
            parts.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(parts)


def scratch(size: int, bytes_in_it: int) -> int:
    """A descriptor of a file without a name, `size` bytes of holes; `bytes_in_it` will be written.

    In memory where that takes at most half of what is free, else in the folder for temporary files. Raises
    SetupError where there is no room.
    """
    if bytes_in_it <= _available() // 2:
        fd = os.memfd_create("kmi-image", os.MFD_CLOEXEC)
    else:
        folder = Path(tempfile.gettempdir())
        room = os.statvfs(folder)
        if bytes_in_it > room.f_bavail * room.f_frsize:
            raise SetupError(
                f"no room to unpack the image: {format_size(bytes_in_it)} are needed, neither memory nor "
                f"{folder} has them; set TMPDIR to a folder with room, or convert the image to ELF elsewhere"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise SetupError(f"no room to unpack {format_size(size)} of RAM: {error.strerror}") from error
    return fd


def _available() -> int:
    """Bytes of memory that programs may still take (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
