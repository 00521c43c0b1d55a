"""What every source of guest-physical bytes offers to the layers above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.units import PhysAddr


@dataclass(frozen=True, slots=True)
class RamBlock:
    """A run of guest RAM: where it starts in the guest, its size, and its offset in the RAM file (bytes)."""

    start: PhysAddr
    size: int
    offset: int

    @property
    def end(self) -> PhysAddr:
        """The first physical address behind the block."""
        return PhysAddr(self.start + self.size)


class BulkMemory(Protocol):
    """Guest-physical memory that is read at many addresses at once: all that a scan of page tables needs."""

    def gather(
        self, addresses: NDArray[np.uint64], dtype: np.dtype[Any], count: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """`count` items of `dtype` at each address: values of shape (n,), or (n, count), and which are RAM.

        What is not RAM reads as zeros. Any alignment works; natural alignment is fastest.
        """
        ...


class PhysicalMemory(BulkMemory, Protocol):
    """Guest-physical memory. Reads never touch an address outside `blocks`."""

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """The RAM, sorted by start; what adjoins in the guest and in the file is one block."""
        ...

    def read(self, address: PhysAddr, size: int) -> bytes:
        """A copy of `size` bytes. Raises OutsideRam where any of them is not RAM."""
        ...

    def array(self, address: PhysAddr, size: int) -> NDArray[np.uint8]:
        """The bytes, read-only: a view where one block holds them all, else a copy. Raises OutsideRam."""
        ...

    def contains(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
        """For each address: are all `size` bytes from there on RAM?"""
        ...

    def write(self, address: PhysAddr, data: bytes) -> None:
        """Change guest memory. Raises OutsideRam, or UsageError where the memory was opened for reading."""
        ...
