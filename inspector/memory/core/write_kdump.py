"""Write a kdump-compressed image, version 6, each page packed by zlib; all zero pages share their bytes."""

from __future__ import annotations

import os
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from inspector.memory.core import codecs, notes
from inspector.memory.core.kdump import HEADER, MAGIC, PAGE_DESCRIPTOR, SUB_HEADER
from inspector.memory.core.model import PAGE
from inspector.memory.core.writing import Machine, not_zero, write_all
from inspector.progress import Progress
from inspector.units import PhysAddr

_VERSION = 6
_UINT_MAX = (1 << 32) - 1
_WORD = (1 << 64) - 1
_AHEAD = 4  # chunks for each thread that wait for the disk

_Packed = tuple[PhysAddr, int, NDArray[np.intp], list[bytes]]
"""A chunk: where it is, its pages, which of them hold anything, and the bytes of these."""


def write_kdump(fd: int, machine: Machine, level: int, progress: Progress) -> None:
    """Write it. `level` is zlib's, 1 to 9; `progress` counts bytes of RAM. Raises OSError."""
    text, info_at = notes.build(machine.cpus, machine.vmcoreinfo)
    firsts = np.array([block.start // PAGE for block in machine.blocks], np.int64)
    counts = np.array([block.size // PAGE for block in machine.blocks], np.int64)
    max_mapnr = int(firsts[-1] + counts[-1])
    sub_blocks = _blocks(SUB_HEADER.size + len(text))
    bitmap_blocks = _blocks(-(-max_mapnr // 8))
    descriptors_at = (1 + sub_blocks + 2 * bitmap_blocks) * PAGE
    total = int(counts.sum())
    end = descriptors_at + total * PAGE_DESCRIPTOR.itemsize

    notes_at = PAGE + SUB_HEADER.size
    write_all(fd, _header(machine, sub_blocks, 2 * bitmap_blocks, max_mapnr, total), 0)
    info = (notes_at + info_at, len(machine.vmcoreinfo))
    begin = (machine.phys_base & _WORD, 0, 0, 0, max_mapnr)  # nothing left out, not split
    end_of_all = (0, 0, 0, max_mapnr, max_mapnr)  # no eraseinfo
    sub = SUB_HEADER.pack(*begin, *info, notes_at, len(text), *end_of_all)
    write_all(fd, sub + text, PAGE)
    bits = np.zeros(bitmap_blocks * PAGE * 8, np.uint8)
    for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
        bits[first : first + count] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    write_all(fd, bitmap + bitmap, (1 + sub_blocks) * PAGE)

    zero = zlib.compress(bytes(PAGE), level)
    write_all(fd, zero, end)
    descriptors = np.empty(total, PAGE_DESCRIPTOR)
    descriptors[:] = (end, len(zero), codecs.ZLIB, 0)
    end += len(zero)
    ranks = np.cumsum(counts) - counts  # of each block's first page among the descriptors
    for address, pages, used, packed in _pack_all(machine, level):
        index = int(firsts.searchsorted(address // PAGE, "right")) - 1
        rank = int(ranks[index]) + address // PAGE - int(firsts[index])
        sizes = np.array([len(data) for data in packed], np.int64)
        rows = rank + used
        descriptors["offset"][rows] = end + np.cumsum(sizes) - sizes
        descriptors["size"][rows] = sizes
        descriptors["flags"][rows] = np.where(sizes < PAGE, codecs.ZLIB, 0)
        write_all(fd, b"".join(packed), end)
        end += int(sizes.sum())
        progress.update((rank + pages) * PAGE)
    write_all(fd, descriptors.tobytes(), descriptors_at)


def _header(machine: Machine, sub_blocks: int, bitmap_blocks: int, max_mapnr: int, total: int) -> bytes:
    now = int(time.time()).to_bytes(16, "little")  # C: struct timeval
    shown = min(max_mapnr, _UINT_MAX), min(total, _UINT_MAX)
    cpus = len(machine.cpus)
    return HEADER.pack(
        *(MAGIC, _VERSION, machine.utsname, now, codecs.ZLIB, PAGE, sub_blocks, bitmap_blocks),
        *(shown[0], shown[1], 0, 0, 0, cpus),
    )


def _pack_all(machine: Machine, level: int) -> Iterator[_Packed]:
    """Chunks in order, packed by as many threads as there are CPUs (zlib lets go of Python's lock)."""
    threads = os.cpu_count() or 1
    waiting: deque[Future[_Packed]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kmi-pack")
    try:
        for address, pages in machine.chunks():
            waiting.append(pool.submit(_pack, address, pages, level))
            if len(waiting) > threads * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pack(address: PhysAddr, pages: NDArray[np.uint8], level: int) -> _Packed:
    used = np.flatnonzero(not_zero(pages))
    packed = []
    for index in used.tolist():
        data = zlib.compress(pages[index], level)
        packed.append(data if len(data) < PAGE else pages[index].tobytes())
    return address, len(pages), used, packed


def _blocks(size: int) -> int:
    return -(-size // PAGE)
