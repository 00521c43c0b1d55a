"""What a memory image holds, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from inspector.memory.physical import RamBlock

SegmentWords: TypeAlias = tuple[int, int, int, int]
"""Selector, base, limit and attributes (the second word of the descriptor, SDM vol. 3A, 3.4.5)."""

PAGE = 4096
"""Bytes in a page frame of x86-64."""


@dataclass(frozen=True, slots=True)
class SavedCpu:
    """A CPU's registers as an image's notes have them.

    `general` has rax..r15, rip, rflags. A note of the kernel's own has of segments only the selectors, and
    of the bases those of fs and gs; `control` (cr0..cr4) and the tables are QEMU's to know.
    """

    general: Mapping[str, int]
    segments: Mapping[str, SegmentWords]
    """By name: cs ds es fs gs ss ldt tr gdt idt."""
    control: tuple[int, int, int, int, int] | None = None
    kernel_gs_base: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryImage:
    """An open image: `fd` has the bytes of `blocks`, at their offsets. Close it."""

    fd: int
    blocks: tuple[RamBlock, ...]
    cpus: tuple[SavedCpu, ...]
    vmcoreinfo: bytes | None
    """The kernel's text about itself, where the image has it."""
    form: str
    """For a person: `ELF`, `kdump, zlib`."""
    remarks: tuple[str, ...] = field(default=())
    """What is not as in a live guest: pages that were left out."""

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)
