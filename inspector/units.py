"""Addresses, frame numbers and sizes: what they are and how they print."""

from __future__ import annotations

import re
from typing import NewType

from inspector.errors import UsageError

PhysAddr = NewType("PhysAddr", int)
"""A guest-physical address, in bytes (C: phys_addr_t)."""

VirtAddr = NewType("VirtAddr", int)
"""A guest-virtual address, in bytes, as an unsigned number (C: unsigned long)."""

BusAddr = NewType("BusAddr", int)
"""An address as a device is told it, in bytes (C: dma_addr_t): physical, unless an IOMMU stands between."""

Pfn = NewType("Pfn", int)
"""A page frame number: a physical address divided by the page size (C: unsigned long)."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from `512M`, `4 GiB` or `4096`; suffixes are powers of two. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"not a size: {text!r}; write it like 512M or 4G")
    return int(match[1]) * _SUFFIXES[match[2].upper()]


def format_size(count: int) -> str:
    """Bytes as a person reads them: `4 KiB`, `1.5 GiB`; exact where it divides, one decimal otherwise."""
    for size, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= size:
            whole, rest = divmod(count, size)
            return f"{whole} {unit}" if not rest else f"{count / size:.1f} {unit}"
    return f"{count} B"


def parse_int(text: str, what: str = "number") -> int:
    """A non-negative number from decimal or 0x hexadecimal text. Raises UsageError, naming `what`."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise UsageError(f"not a {what}: {text!r}; write it in decimal, or in hexadecimal as 0x1f")
    return value


def parse_address(text: str) -> int:
    """An address from hexadecimal text, with or without 0x. Raises UsageError."""
    try:
        value = int(text.replace("_", ""), 16)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise UsageError(
            f"not an address: {text!r}; write it in hexadecimal, like 0x7ffd1000 or ffff888000000000"
        )
    return value


def word(value: int | None) -> str | None:
    """An address or a raw word for JSON: hexadecimal text, as many readers round integers above 2**53."""
    return None if value is None else f"{value:#x}"


def printable(text: str) -> str:
    """Text from the guest with control characters made visible, so that none reaches a terminal."""
    if text.isprintable():  # nearly always
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
