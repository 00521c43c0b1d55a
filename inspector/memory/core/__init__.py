"""Memory images: the whole RAM of a machine and its CPUs' registers in a file (vmcore)."""

from __future__ import annotations

from inspector.memory.core.model import MemoryImage, SavedCpu
from inspector.memory.core.opening import open_image
from inspector.memory.core.write_elf import write_elf
from inspector.memory.core.write_kdump import write_kdump
from inspector.memory.core.writing import Machine, check_target, new_file

__all__ = [
    "Machine",
    "MemoryImage",
    "SavedCpu",
    "check_target",
    "new_file",
    "open_image",
    "write_elf",
    "write_kdump",
]
