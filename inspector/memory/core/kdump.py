"""kdump-compressed images: makedumpfile's, and QEMU's dump-guest-memory with a kdump format.

In blocks of a page: a header, a sub-header with the notes, two bitmaps of page frames (which there are; of
which the bytes are here), a descriptor for each page that is here, their bytes. Sources: makedumpfile
IMPLEMENTATION and diskdump_mod.h; QEMU include/sysemu/dump.h.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat
from inspector.memory.core import codecs, notes
from inspector.memory.core.model import MemoryImage
from inspector.memory.core.source import Source, scratch
from inspector.memory.physical import RamBlock
from inspector.progress import Reporter
from inspector.units import PhysAddr

MAGIC = b"KDUMP   "

HEADER = struct.Struct("<8si390s6x16sIIiiIIIIIi")
SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
PAGE_DESCRIPTOR = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
_INCOMPLETE = 0x8  # status: makedumpfile ran out of room
_MACHINE_AT, _UTSNAME_FIELD = 4 * 65, 65
_MAX_PFN = 1 << 32  # 16 TiB of RAM
_PAGES = 1024  # that a thread unpacks at once
_SPREAD = 4  # bytes in the file that are read for one byte wanted, at most


@dataclass(frozen=True, slots=True)
class _Header:
    block: int
    bitmap_at: int
    bitmap_size: int
    max_mapnr: int
    dump_level: int
    notes: tuple[int, int]
    info: tuple[int, int]


def read_kdump(source: Source, reporter: Reporter) -> MemoryImage:
    """Unpack it into a file without a name. Raises BadFormat, SetupError."""
    header = _header(source)
    cpus, info = notes.parse(source.read(*header.notes, "its notes"))
    if header.info[1]:
        info = source.read(*header.info, "its VMCOREINFO")
    there, here = _bitmaps(source, header)
    descriptors = _descriptors(source, header, len(here))
    flags = [int(flag) for flag in np.unique(descriptors["flags"])]
    for flag in flags:
        codecs.require(flag)
    fd = _unpack(source, header, descriptors, np.searchsorted(there, here), len(there), reporter)
    form = "kdump, " + ", ".join(codecs.NAMES[flag] for flag in flags if flag or len(flags) == 1)
    left_out = len(there) - len(here)
    remarks = (f"{left_out} pages were left out of it and read as zeros",) if left_out else ()
    return MemoryImage(fd, _blocks(there, header.block), tuple(cpus), info, form, remarks)


def _header(source: Source) -> _Header:
    _, version, utsname, _, status, block, sub_size, bitmap_blocks, max_mapnr, *_ = HEADER.unpack(
        source.read(0, HEADER.size, "its header")
    )
    machine = utsname[_MACHINE_AT:][:_UTSNAME_FIELD].split(b"\0")[0].decode("ascii", "replace")
    if machine not in ("x86_64", ""):
        raise BadFormat(
            f"{source.name} is not an x86-64 image, but one of {machine!r}: it cannot be read yet"
        )
    if status & _INCOMPLETE:
        raise BadFormat(f"{source.name} is incomplete: whoever wrote it ran out of room")
    if block != 4096 or not 3 <= version <= 6:
        raise BadFormat(f"{source.name} is corrupt: a kdump of version {version} in blocks of {block} bytes")
    (_, level, split, _, _, info_at, info_size, notes_at, notes_size, _, _, _, _, mapnr) = SUB_HEADER.unpack(
        source.read(block, SUB_HEADER.size, "its sub-header")
    )
    if split:
        raise BadFormat(f"{source.name} is one of a split set: join them with makedumpfile --reassemble")
    if version >= 6:
        max_mapnr = mapnr
    if version < 4:
        notes_at = notes_size = 0
    bitmap_size = bitmap_blocks // 2 * block
    if not 0 < max_mapnr <= 8 * bitmap_size <= 2 * _MAX_PFN or sub_size < 1:
        raise BadFormat(f"{source.name} is corrupt: {max_mapnr} page frames, a bitmap of {bitmap_size} bytes")
    if notes_size > notes.MOST or info_size > notes.MOST:
        raise BadFormat(f"{source.name} is corrupt: its notes are larger than {notes.MOST} bytes")
    return _Header(
        block=block,
        bitmap_at=(1 + sub_size) * block,
        bitmap_size=bitmap_size,
        max_mapnr=max_mapnr,
        dump_level=level,
        notes=(notes_at, notes_size),
        info=(info_at, info_size),
    )


def _bitmaps(source: Source, header: _Header) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The page frames that there are, and those whose bytes are here."""
    bits = []
    for number in range(2):
        at = header.bitmap_at + number * header.bitmap_size
        raw = np.frombuffer(source.read(at, header.bitmap_size, "its bitmaps"), np.uint8)
        used = raw[: (header.max_mapnr + 7) // 8]
        bits.append(np.unpackbits(used, bitorder="little", count=header.max_mapnr).view(np.bool_))
    here = np.flatnonzero(bits[1])
    if not len(here):
        raise BadFormat(f"{source.name} has no memory in it")
    return np.flatnonzero(bits[0] | bits[1]), here


def _descriptors(source: Source, header: _Header, count: int) -> NDArray[np.void]:
    at = header.bitmap_at + 2 * header.bitmap_size
    size = count * PAGE_DESCRIPTOR.itemsize
    rows = np.frombuffer(source.read(at, size, "the descriptors of its pages"), PAGE_DESCRIPTOR)
    sizes = rows["size"].astype(np.uint64)
    if (rows["offset"] > np.uint64(source.size) - np.minimum(sizes, np.uint64(source.size))).any():
        raise BadFormat(f"{source.name} is cut short or corrupt: pages lie behind its end")
    known = np.isin(rows["flags"], list(codecs.NAMES))
    sane = (sizes > 0) & (sizes <= 2 * header.block) & ((rows["flags"] != 0) | (sizes == header.block))
    if not (known & sane).all():
        bad = rows[np.flatnonzero(~(known & sane))[0]]
        raise BadFormat(
            f"{source.name} is corrupt: a page of {bad['size']} bytes with flags {bad['flags']:#x}"
        )
    return rows


def _blocks(there: NDArray[np.int64], block: int) -> tuple[RamBlock, ...]:
    """Runs of page frames, packed one after another in the scratch file."""
    firsts = np.flatnonzero(np.concatenate(([True], np.diff(there) != 1)))
    lengths = np.diff(np.append(firsts, len(there)))
    return tuple(
        RamBlock(PhysAddr(pfn * block), length * block, first * block)
        for pfn, length, first in zip(there[firsts].tolist(), lengths.tolist(), firsts.tolist(), strict=True)
    )


def _unpack(
    source: Source,
    header: _Header,
    descriptors: NDArray[np.void],
    places: NDArray[np.int64],
    count: int,
    reporter: Reporter,
) -> int:
    """Every page at its place in the scratch file, by as many threads as there are CPUs."""
    # In the order of the file; pages that share their bytes (all that are zero) come together.
    order = np.argsort(descriptors["offset"], kind="stable")
    shared = int((np.diff(descriptors["offset"][order]) == 0).sum())
    fd = scratch(count * header.block, (len(places) - shared) * header.block)
    done = 0
    try:
        with (
            reporter.task("Unpacking the image", total=len(places) * header.block, unit="B") as progress,
            _threads() as pool,
        ):
            jobs = [order[at : at + _PAGES] for at in range(0, len(order), _PAGES)]
            for pages in pool.map(
                lambda job: _unpack_some(source, header.block, descriptors[job], places[job], fd), jobs
            ):
                done += pages * header.block
                progress.update(done)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Threads(ThreadPoolExecutor):
    """Leaving it by an exception drops what has not begun."""

    def __exit__(self, *exc: object) -> bool | None:
        self.shutdown(wait=True, cancel_futures=exc[0] is not None)
        return None


def _threads() -> _Threads:
    return _Threads(max_workers=os.cpu_count() or 1, thread_name_prefix="kmi-unpack")


def _unpack_some(
    source: Source, block: int, rows: NDArray[np.void], places: NDArray[np.int64], fd: int
) -> int:
    offsets, sizes, flags = (rows[name].tolist() for name in ("offset", "size", "flags"))
    first, last = offsets[0], max(offset + size for offset, size in zip(offsets, sizes, strict=True))
    together = last - first <= _SPREAD * len(rows) * block
    data = source.read(first, last - first, "its pages") if together else b""
    zeros, at, page = bytes(block), -1, b""
    for offset, size, flag, place in zip(offsets, sizes, flags, places.tolist(), strict=True):
        if offset != at:
            packed = data[offset - first :][:size] if together else source.read(offset, size, "a page")
            page, at = codecs.unpacker(flag)(packed, block), offset
            if len(page) != block:
                raise BadFormat(f"{source.name} is corrupt: a page at {offset:#x} has not {block} bytes")
        if page != zeros:
            os.pwrite(fd, page, place * block)
    return len(rows)
