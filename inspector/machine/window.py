"""Memory that host and guest both see, QEMU's ivshmem-plain device: for what the serial line is too slow for.

qemu_images/agent.c draws how it is shared out: slots for the way to the host, the rest for the way in.
"""

from __future__ import annotations

import mmap
import os

from inspector.units import KIB

SLOTS = 8
SLOT = 512 * KIB
IN = SLOTS * SLOT
SIZE = 2 * IN
"""A power of two: it is a PCI BAR."""


class Window:
    """The window's file and our view of it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("kmi-window")
        os.ftruncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)

    def prove(self) -> bytes:
        """Bytes now in the window that nobody can guess: who reads them there has the same memory."""
        proof = os.urandom(16)
        self._map[IN : IN + len(proof)] = proof
        return proof

    def take(self, offset: int, length: int) -> bytes:
        """What the guest has put into a slot. Raises ValueError where it is outside of the slots."""
        if offset + length > IN or length > SLOT:
            raise ValueError("outside of the window's slots")
        return self._map[offset : offset + length]

    def show(self, data: bytes) -> tuple[int, int]:
        """Put data, at most IN bytes, where the guest finds it; its offset and length."""
        self._map[IN : IN + len(data)] = data
        return IN, len(data)

    def close(self) -> None:
        """Take it back; idempotent."""
        if self.fd >= 0:
            self._map.close()
            os.close(self.fd)
            self.fd = -1
