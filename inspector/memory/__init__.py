"""Bytes at a guest-physical address, wherever they come from."""

from __future__ import annotations

from inspector.memory.mapped import MappedRam
from inspector.memory.physical import PhysicalMemory, RamBlock

__all__ = ["MappedRam", "PhysicalMemory", "RamBlock"]
