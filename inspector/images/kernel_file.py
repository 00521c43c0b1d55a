"""Is this file a kernel? Cheap checks of a bzImage (Documentation/arch/x86/boot.rst) or an ELF vmlinux."""

from __future__ import annotations

import struct
from pathlib import Path

from inspector.errors import ImageError

_ELF_MACHINES = {3: "i386", 40: "ARM", 62: "x86-64", 183: "arm64"}
_SECTOR = 512


def check(path: Path) -> str:
    """Check that a file is a whole bzImage or vmlinux; gives the kernel release where the file tells, or "".

    Raises ImageError, in one line, when it is neither or is cut short.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64 << 10)
            size = file.seek(0, 2)
    except OSError as error:
        raise ImageError(f"cannot read the kernel {path}: {error.strerror}") from None
    if head[:4] == b"\x7fELF":
        return _check_elf(path, head, size)
    if head[0x202:0x206] == b"HdrS":
        return _check_bzimage(path, head, size)
    raise ImageError(f"{path} is not a kernel: neither a bzImage nor an ELF vmlinux")


def _check_bzimage(path: Path, head: bytes, size: int) -> str:
    # boot.rst: setup_sects 0x1f1 (0 means 4), syssize 0x1f4 in 16-byte units, kernel_version 0x20e.
    sectors = head[0x1F1] or 4
    (syssize,) = struct.unpack_from("<I", head, 0x1F4)
    (version,) = struct.unpack_from("<H", head, 0x20E)
    _check_size(path, (sectors + 1) * _SECTOR + syssize * 16, size)
    text = head[version + 0x200 :][:256].split(b"\0")[0] if version else b""
    return text.split(b" ")[0].decode("ascii", "replace")


def _check_elf(path: Path, head: bytes, size: int) -> str:
    if len(head) < 64 or head[4] not in (1, 2) or head[5] != 1:
        raise ImageError(f"{path} is not a kernel: a broken or big-endian ELF file")
    wide = head[4] == 2
    kind, machine = struct.unpack_from("<HH", head, 16)
    if kind != 2 or machine not in _ELF_MACHINES:
        raise ImageError(f"{path} is not a kernel: an ELF file, but no executable for a machine known here")
    # Elf64_Ehdr, Elf32_Ehdr: e_phoff, e_shoff; e_phentsize, e_phnum, e_shentsize, e_shnum.
    phoff, shoff = struct.unpack_from("<QQ" if wide else "<II", head, 32 if wide else 28)
    phsize, phnum, shsize, shnum = struct.unpack_from("<HHHH", head, 54 if wide else 42)
    _check_size(path, max(phoff + phsize * phnum, shoff + shsize * shnum), size)
    return ""


def _check_size(path: Path, needed: int, size: int) -> None:
    if size < needed:
        raise ImageError(f"{path} is cut short: {size} bytes, but its header speaks of {needed}")
