"""Guest RAM that lies in several files, as that of NUMA nodes and DIMMs does: mapped side by side."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from inspector.errors import SetupError
from inspector.memory.mapped import MappedRam
from inspector.memory.physical import RamBlock

_ALIGNMENT = 1 << 30  # of the largest huge page a file of RAM may be of
_MAP_FIXED = 0x10  # asm-generic/mman-common.h; the same on x86 and ARM

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)


class RamPart(NamedTuple):
    """`size` bytes of the file `fd` from `start` on are those from `offset` on, in the blocks' numbering."""

    fd: int
    start: int
    size: int
    offset: int


class JoinedRam(MappedRam):
    """A PhysicalMemory over parts of files, read-only; the files may be closed afterwards.

    Raises SetupError where a part cannot be mapped.
    """

    def __init__(self, parts: Iterable[RamPart], blocks: Iterable[RamBlock]) -> None:
        parts = tuple(parts)
        length = max(part.offset + part.size for part in parts)
        # A range of addresses is taken first, and with it go the mappings that are then laid over it.
        taken = mmap.mmap(-1, length + _ALIGNMENT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
        base = np.frombuffer(taken, np.uint8).ctypes.data
        skip = -base % _ALIGNMENT
        for part in parts:
            _lay(base + skip + part.offset, part)
        super().__init__(memoryview(taken)[skip : skip + length], blocks)
        self._mmap = taken


def _lay(address: int, part: RamPart) -> None:
    if os.fstat(part.fd).st_size < part.start + part.size:  # reading behind the end would be a SIGBUS
        raise SetupError("a file of the guest's RAM is shorter than QEMU says")
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if _mmap(address, part.size, mmap.PROT_READ, flags, part.fd, part.start) != address:
        raise SetupError(f"the RAM file cannot be mapped: {os.strerror(ctypes.get_errno())}")
