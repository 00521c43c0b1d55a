"""Write an ELF image as /proc/vmcore is one: notes, then a PT_LOAD for each run of RAM; zeros are holes."""

from __future__ import annotations

import os
import struct

import numpy as np

from inspector.memory.core import notes
from inspector.memory.core.model import PAGE
from inspector.memory.core.writing import Machine, not_zero, write_all
from inspector.progress import Progress

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION_SIZE = 64
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_CORE, _X86_64, _PT_LOAD, _PT_NOTE, _RWX = 4, 62, 1, 4, 7
_NO_ALIGN = 0  # as /proc/vmcore: crash takes any other for a netdump, a form of 2002
_WORD = (1 << 64) - 1


def write_elf(fd: int, machine: Machine, progress: Progress) -> None:
    """Write it. `progress` counts bytes of RAM. Raises OSError."""
    blocks = machine.blocks
    text, _ = notes.build(machine.cpus, machine.vmcoreinfo)
    heads = _HEADER.size + (1 + len(blocks)) * _PROGRAM.size
    at = -(-(heads + len(text)) // PAGE) * PAGE
    places: list[tuple[int, int]] = []
    programs = [_PROGRAM.pack(_PT_NOTE, 0, heads, 0, 0, len(text), len(text), 4)]
    for block in blocks:
        virtual = block.start + machine.page_offset & _WORD
        sizes = (block.size, block.size)
        programs.append(_PROGRAM.pack(_PT_LOAD, _RWX, at, virtual, block.start, *sizes, _NO_ALIGN))
        places.append((block.start, at))
        at += -(-block.size // PAGE) * PAGE
    count = 1 + len(blocks)
    header = _HEADER.pack(
        *(_IDENT, _CORE, _X86_64, 1, 0, _HEADER.size, 0, 0),
        *(_HEADER.size, _PROGRAM.size, count, 0, 0, 0),
    )
    os.ftruncate(fd, at)
    write_all(fd, header + b"".join(programs) + text, 0)
    starts = np.array([start for start, _ in places], np.uint64)
    for address, pages in machine.chunks():
        index = int(starts.searchsorted(np.uint64(address), "right")) - 1
        start, place = places[index]
        edges = np.flatnonzero(np.diff(np.concatenate(([False], not_zero(pages), [False]))))
        for first, last in edges.reshape(-1, 2).tolist():
            write_all(fd, pages[first:last].data.cast("B"), place + address - start + first * PAGE)
        progress.update(sum(b.size for b in blocks[:index]) + address - start + pages.nbytes)
