"""ELF memory images: the kernel's /proc/vmcore, QEMU's dump-guest-memory, makedumpfile -E, our own.

A PT_LOAD is a run of physical memory at p_paddr. Several may name the same memory: /proc/vmcore has the
kernel's text twice, and QEMU with paging=true has a PT_LOAD for each mapping. Source: elf(5).
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat
from inspector.memory.core import notes
from inspector.memory.core.model import PAGE, MemoryImage
from inspector.memory.core.source import Source, scratch
from inspector.memory.physical import RamBlock
from inspector.progress import Reporter
from inspector.units import PhysAddr

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_CLASS64, _LITTLE, _CORE, _X86_64 = 2, 1, 4, 62
_MACHINES = {3: "i386", 40: "ARM", 183: "arm64", 243: "RISC-V", 22: "s390x", 21: "ppc64"}
_PN_XNUM = 0xFFFF  # the number of program headers is in section 0
_PT_LOAD, _PT_NOTE = 1, 4
_PROGRAM = np.dtype(
    [("type", "<u4"), ("flags", "<u4")]
    + [(name, "<u8") for name in ("offset", "vaddr", "paddr", "filesz", "memsz", "align")]
)
_MOST_PROGRAMS = 1 << 24
_MAX_PHYS = 1 << 52  # MAXPHYADDR, SDM vol. 3A, 4.1.4
_STEP = 4 << 20


def read_elf(source: Source, reporter: Reporter) -> MemoryImage:
    """Open it; where all memory is in the file, in place. Raises BadFormat, SetupError."""
    programs = _programs(source)
    loads = programs[programs["type"] == _PT_LOAD]
    _check(source, loads)
    data = b"".join(_note_bytes(source, programs[programs["type"] == _PT_NOTE]))
    cpus, info = notes.parse(data)
    blocks = _in_file(loads)
    holes = _zeros(loads, blocks)
    if not holes:
        return MemoryImage(os.dup(source.fd), blocks, tuple(cpus), info, "ELF")
    fd, blocks = _unpack(source, blocks, holes, reporter)
    left_out = sum(last - first for first, last in holes) // PAGE
    remarks = (f"{left_out} pages were left out of it and read as zeros",)
    return MemoryImage(fd, blocks, tuple(cpus), info, "ELF", remarks)


def _programs(source: Source) -> NDArray[np.void]:
    ident, type_, machine, _, _, phoff, shoff, _, _, phentsize, phnum, _, _, _ = _HEADER.unpack(
        source.read(0, _HEADER.size, "its ELF header")
    )
    if ident[4] != _CLASS64 or ident[5] != _LITTLE or machine != _X86_64:
        other = _MACHINES.get(machine, f"ELF machine {machine}")
        raise BadFormat(f"{source.name} is not an x86-64 image, but one of {other}; only x86-64 is read")
    if type_ != _CORE:
        raise BadFormat(f"{source.name} is an ELF file, but no core: a vmlinux goes with --vmlinux")
    if phentsize != _PROGRAM.itemsize:
        raise BadFormat(f"{source.name} is corrupt: its program headers have {phentsize} bytes each")
    if phnum == _PN_XNUM:
        phnum = int.from_bytes(source.read(shoff + 44, 4, "its section header"), "little")
    if phnum > _MOST_PROGRAMS:
        raise BadFormat(f"{source.name} is corrupt: it has {phnum} program headers")
    return np.frombuffer(source.read(phoff, phnum * phentsize, "its program headers"), _PROGRAM)


def _check(source: Source, loads: NDArray[np.void]) -> None:
    if not len(loads):
        raise BadFormat(f"{source.name} is an ELF file without memory in it: it has no PT_LOAD")
    if len(loads) > 1 and not loads["paddr"].any():
        raise BadFormat(f"{source.name} has no physical addresses: is it a process's core?")
    for offset, size, paddr, length in loads[["offset", "filesz", "paddr", "memsz"]].tolist():
        if size:
            source.check(offset, size, f"the memory at {paddr:#x}")
        if max(size, length) + paddr > _MAX_PHYS:
            raise BadFormat(f"{source.name} is corrupt: it has memory at {paddr:#x}, {length:#x} bytes")


def _note_bytes(source: Source, rows: NDArray[np.void]) -> Iterable[bytes]:
    if sum(rows["filesz"].tolist()) > notes.MOST:
        raise BadFormat(f"{source.name} is corrupt: its notes are larger than {notes.MOST} bytes")
    for offset, size in rows[["offset", "filesz"]].tolist():
        yield source.read(offset, size, "its notes")


def _in_file(loads: NDArray[np.void]) -> tuple[RamBlock, ...]:
    """The memory whose bytes are in the file, each address once."""
    blocks, end = [], 0
    for paddr, size, offset in sorted(loads[["paddr", "filesz", "offset"]].tolist()):
        skip = max(end - paddr, 0)
        if skip < size:
            blocks.append(RamBlock(PhysAddr(paddr + skip), size - skip, offset + skip))
            end = paddr + size
    return tuple(blocks)


def _zeros(loads: NDArray[np.void], blocks: tuple[RamBlock, ...]) -> list[tuple[int, int]]:
    """(start, end) of memory that no segment has bytes for (p_memsz > p_filesz): it reads as zeros."""
    starts, ends = [block.start for block in blocks], [block.end for block in blocks]
    found: list[tuple[int, int]] = []
    done = 0
    for paddr, size, length in sorted(loads[["paddr", "filesz", "memsz"]].tolist()):
        at, last = max(paddr + size, done), paddr + length
        while at < last:
            index = bisect_right(ends, at)  # the first block that ends behind
            border = min(starts[index], last) if index < len(starts) else last
            if at < border:
                found.append((at, border))
            at = ends[index] if index < len(starts) else last
        done = max(done, last)
    return found


def _unpack(
    source: Source, blocks: tuple[RamBlock, ...], holes: list[tuple[int, int]], reporter: Reporter
) -> tuple[int, tuple[RamBlock, ...]]:
    """Bytes and zeros together in one scratch file, packed."""
    runs = [(int(block.start), block.size, block.offset) for block in blocks]
    runs += [(first, last - first, -1) for first, last in holes]
    total = sum(block.size for block in blocks)
    fd = scratch(sum(size for _, size, _ in runs), total)
    placed, at, done = [], 0, 0
    try:
        with reporter.task("Unpacking the image", total=total, unit="B") as progress:
            for start, size, offset in sorted(runs):
                placed.append(RamBlock(PhysAddr(start), size, at))
                for skip in range(0, size if offset >= 0 else 0, _STEP):
                    data = source.read(offset + skip, min(_STEP, size - skip), "its memory")
                    os.pwrite(fd, data, at + skip)
                    done += len(data)
                    progress.update(done)
                at += size
    except BaseException:
        os.close(fd)
        raise
    return fd, tuple(placed)
