"""Guest RAM read in place, from a mapped RAM file or from any buffer."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import MachineError, OutsideRam, SetupError, UsageError
from inspector.memory.physical import RamBlock
from inspector.units import PhysAddr


class MappedRam:
    """A PhysicalMemory over one buffer, whose pieces `blocks` place in the guest's physical address space.

    The buffer is anything with the buffer protocol: mmap, bytes, bytearray, np.memmap. Arrays that are given
    out are read-only views on it: they show what the guest writes. Raises UsageError where the blocks are
    empty, overlap, or reach past the buffer.
    """

    def __init__(self, buffer: Any, blocks: Iterable[RamBlock]) -> None:
        self.blocks = _merge(blocks)
        self._buffer = memoryview(buffer).cast("B")
        if any(block.offset < 0 or block.offset + block.size > len(self._buffer) for block in self.blocks):
            raise UsageError(f"the RAM blocks reach past the {len(self._buffer)} bytes that hold them")
        self._mmap: mmap.mmap | None = None
        self._all = np.frombuffer(self._buffer, np.uint8)
        self._all.flags.writeable = False
        self._starts = [int(block.start) for block in self.blocks]
        self._block_index = _Runs([(block.start, block.end) for block in self.blocks])
        self._offsets = np.array([block.offset for block in self.blocks], np.uint64)
        # Blocks may adjoin in the guest and not in the file: then there are fewer runs than blocks.
        self._runs = _Runs(_adjoining(self.blocks))

    @classmethod
    def from_fd(cls, fd: int, blocks: Iterable[RamBlock], writable: bool = False) -> MappedRam:
        """Map the RAM file behind `fd`, which may be closed afterwards. Mapping commits no memory.

        Reading a page that nobody wrote yet does, where the file is a memfd or on tmpfs (mm/shmem.c,
        shmem_fault). Raises SetupError where the file is too short or cannot be mapped.
        """
        blocks = tuple(blocks)
        length = max((block.offset + block.size for block in blocks), default=0)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size < length:
            raise SetupError(f"the RAM file has {status.st_size} bytes, but the guest's RAM needs {length}")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            mapped = mmap.mmap(fd, length, mmap.MAP_SHARED, protection)
        except (OSError, ValueError) as error:
            raise SetupError(f"the RAM file cannot be mapped: {error}") from error
        ram = cls(mapped, blocks)
        ram._mmap = mapped
        return ram

    def close(self) -> None:
        """Let go of the RAM: reads then raise MachineError. Arrays given out stay valid until dropped."""
        self.blocks = ()
        self._starts = []
        self._all = np.empty(0, np.uint8)
        self._buffer = memoryview(b"")
        if self._mmap is not None:
            with contextlib.suppress(
                BufferError
            ):  # a view is still out: the mapping goes with the last of them
                self._mmap.close()
            self._mmap = None

    def read(self, address: PhysAddr, size: int) -> bytes:
        """A copy of `size` bytes. Raises OutsideRam where any of them is not RAM."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            block = self.blocks[index]
            skip = address - block.start
            if skip + size <= block.size:
                offset = block.offset + skip
                return self._buffer[offset : offset + size].tobytes()
        return b"".join(self._buffer[piece] for piece in self._pieces(address, size))

    def array(self, address: PhysAddr, size: int) -> NDArray[np.uint8]:
        """The bytes, read-only: a view where one block holds them all, else a copy. Raises OutsideRam."""
        pieces = [self._all[piece] for piece in self._pieces(address, size)]
        if len(pieces) == 1:
            return pieces[0]
        copy = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        copy.flags.writeable = False
        return copy

    def contains(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
        """For each address: are all `size` bytes from there on RAM?"""
        self._check_open()
        return self._runs.locate(addresses, size)[2]

    def gather(
        self, addresses: NDArray[np.uint64], dtype: np.dtype[Any], count: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """`count` items of `dtype` at each address: values of shape (n,), or (n, count), and which are RAM.

        What is not RAM reads as zeros. Any alignment works; natural alignment is fastest.
        """
        self._check_open()
        dtype = np.dtype(dtype)
        size = dtype.itemsize * count
        index, skip, ok = self._block_index.locate(addresses, size)
        offsets = skip + self._offsets[index]
        if ok.all():
            return self._take(offsets, dtype, count), ok
        values = np.zeros((len(addresses), count) if count > 1 else len(addresses), dtype)
        values[ok] = self._take(offsets[ok], dtype, count)
        if len(self._runs) < len(self._block_index):
            across = np.flatnonzero(self.contains(addresses, size) & ~ok)
            for row in across:  # only elements over a border between blocks that adjoin: a handful
                address = PhysAddr(int(addresses[row]))
                values[row] = np.frombuffer(self.read(address, size), dtype)[slice(None) if count > 1 else 0]
            ok[across] = True
        return values, ok

    def write(self, address: PhysAddr, data: bytes) -> None:
        """Change guest memory, all or nothing. Raises OutsideRam, or UsageError where it is read-only."""
        pieces = list(self._pieces(address, len(data)))
        if self._buffer.readonly:
            raise UsageError("guest RAM is mapped for reading only; map it writable to change it")
        for piece in pieces:
            length = piece.stop - piece.start
            self._buffer[piece] = data[:length]
            data = data[length:]

    def _take(self, offsets: NDArray[np.uint64], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """The items at these offsets in the buffer, all of which are known to be inside."""
        row = dtype.itemsize * count
        where = offsets.view(np.int64)
        if not len(where):
            return np.empty((0, count) if count > 1 else 0, dtype)
        if not (where % row).any():
            rows = self._all[: len(self._all) // row * row].view(dtype)
            if rows.flags.aligned:  # take() would first copy an unaligned array whole
                return (rows.reshape(-1, count) if count > 1 else rows).take(where // row, axis=0)
        # A window at every byte, as sliding_window_view() has it, but a hundred times sooner made.
        windows = np.ndarray((len(self._all) - row + 1, row), np.uint8, self._all, 0, (1, 1))
        values: NDArray[Any] = windows[where].view(dtype)
        return values if count > 1 else values.reshape(-1)

    def _pieces(self, address: int, size: int) -> Iterator[slice]:
        """Where in the buffer the bytes are, block by block. Raises OutsideRam before it gives a piece."""
        self._check_open()
        pieces, todo = [], size
        while todo > 0:
            index = bisect_right(self._starts, address) - 1
            block = self.blocks[index]
            if index < 0 or address >= block.end:
                raise OutsideRam(address, todo)
            length = min(todo, block.end - address)
            offset = block.offset + address - block.start
            pieces.append(slice(offset, offset + length))
            address += length
            todo -= length
        return iter(pieces)

    def _check_open(self) -> None:
        if not self.blocks:
            raise MachineError("the guest's RAM is closed; attach again to read it")


class _Runs:
    """Address ranges that do not overlap, to look up many addresses at once."""

    def __init__(self, runs: list[tuple[int, int]]) -> None:
        self._start = np.array([start for start, _ in runs], np.uint64)
        self._size = np.array([end - start for start, end in runs], np.int64)

    def __len__(self) -> int:
        return len(self._start)

    def locate(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.intp], NDArray[np.uint64], NDArray[np.bool_]]:
        """Of each address its run, how far it is in, and whether `size` bytes from it on are in that run."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        room = np.maximum(self._size - size + 1, 0).astype(np.uint64)  # how many places in the run would do
        if len(self) == 1:
            index = np.zeros(len(addresses), np.intp)
            skip = addresses - self._start[0]  # below the start it wraps to more than any room
            return index, skip, skip < room[0]
        index = self._start.searchsorted(addresses, "right") - 1  # -1 is the last run: skip wraps there too
        skip = addresses - self._start[index]
        return index, skip, skip < room[index]


def _merge(blocks: Iterable[RamBlock]) -> tuple[RamBlock, ...]:
    """The blocks sorted, those joined that adjoin both in the guest and in the file. Raises UsageError."""
    merged: list[RamBlock] = []
    for block in sorted(blocks, key=lambda block: block.start):
        if block.size <= 0:
            continue
        last = merged[-1] if merged else None
        if last and block.start < last.end:
            raise UsageError(f"two RAM blocks overlap at physical address {block.start:#x}")
        if last and (block.start, block.offset) == (last.end, last.offset + last.size):
            merged[-1] = RamBlock(last.start, last.size + block.size, last.offset)
        else:
            merged.append(block)
    if not merged:
        raise UsageError("no RAM blocks: a guest without RAM has nothing to read")
    return tuple(merged)


def _adjoining(blocks: tuple[RamBlock, ...]) -> list[tuple[int, int]]:
    """(start, end) of the runs of blocks that adjoin in the guest."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block.start:
            runs[-1] = (runs[-1][0], block.end)
        else:
            runs.append((block.start, block.end))
    return runs
