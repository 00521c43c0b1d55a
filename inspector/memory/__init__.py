"""Bytes at a guest-physical address, wherever they come from."""

from __future__ import annotations

from inspector.memory.mapped import MappedRam
from inspector.memory.mirror import MirroredRam, RamSource
from inspector.memory.physical import PhysicalMemory, RamBlock

__all__ = ["MappedRam", "MirroredRam", "PhysicalMemory", "RamBlock", "RamSource"]
