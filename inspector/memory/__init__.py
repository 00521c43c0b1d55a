"""Bytes at a guest-physical address, wherever they come from."""

from __future__ import annotations

from inspector.memory.joined import JoinedRam, RamPart
from inspector.memory.mapped import MappedRam
from inspector.memory.mirror import MirroredRam, RamSource
from inspector.memory.physical import BulkMemory, PhysicalMemory, RamBlock

__all__ = [
    "BulkMemory",
    "JoinedRam",
    "MappedRam",
    "MirroredRam",
    "PhysicalMemory",
    "RamBlock",
    "RamPart",
    "RamSource",
]
