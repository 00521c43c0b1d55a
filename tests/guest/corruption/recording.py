"""A recorded guest: its memory, mapped copy-on-write, the kernel in it, and where its readers look."""

from __future__ import annotations

import json
import mmap
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector import symbols
from inspector.arch import AddressSpace
from inspector.memory import MappedRam, RamBlock
from inspector.symbols import Kernel
from inspector.symbols.modules import KernelTypes
from inspector.units import PhysAddr

_KEPT = 256  # places remembered of each line of code that reads
_PAGE_TABLES = ("arch/walker.py", "arch/scanner.py")
_PLUMBING = ("memory/", "arch/", "symbols/view.py", "symbols/kernel.py", "kernel/bulk.py")

Place = tuple[int, int]
"""A physical address, and how many bytes were read there."""


class ReadOutside(AssertionError):
    """A reading was answered with bytes that are not RAM."""


@dataclass(frozen=True)
class Registers:
    """What leads to the kernel."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    idt_base: int


class Watched(MappedRam):
    """RAM that checks each answer against the blocks, and can note which line of code reads where."""

    def __init__(self, buffer: Any, blocks: tuple[RamBlock, ...]) -> None:
        super().__init__(buffer, blocks)
        self.raw = memoryview(buffer)
        self.notes: dict[tuple[str, ...], list[Place]] | None = None

    def read(self, address: PhysAddr, size: int) -> bytes:
        data = super().read(address, size)
        self._check(address, size, data)
        return data

    def array(self, address: PhysAddr, size: int) -> NDArray[np.uint8]:
        data = super().array(address, size)
        self._check(address, size, data)
        return data

    def gather(
        self, addresses: NDArray[np.uint64], dtype: np.dtype[Any], count: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values, ok = super().gather(addresses, dtype, count)
        size = np.dtype(dtype).itemsize * count
        rows = np.flatnonzero(ok)
        if len(ok) != len(addresses) or len(values) != len(addresses) or any(values[~ok].tobytes()):
            raise ReadOutside(f"gather() answers {len(values)} rows of {len(addresses)}, or lies about them")
        inside = np.zeros(len(rows), np.bool_)
        for block in self.blocks:
            skip = addresses[rows] - np.uint64(block.start)
            inside |= skip <= np.uint64(max(block.size - size, 0)) if block.size >= size else False
        for row in rows[~inside].tolist():  # over a border between blocks that adjoin, or not RAM
            self._bytes(int(addresses[row]), size)
        for row in rows[[0, len(rows) // 2, -1]].tolist() if len(rows) else ():
            if values[row : row + 1].tobytes() != self._bytes(int(addresses[row]), size):
                raise ReadOutside(f"gather() gives other bytes than RAM has at {int(addresses[row]):#x}")
        if self.notes is not None and len(rows):
            step = max(len(rows) // _KEPT, 1)
            self._note([(int(address), size) for address in addresses[rows[::step]]])
        return values, ok

    def _check(self, address: int, size: int, data: Any) -> None:
        if size < 0 or len(data) != size:
            raise ReadOutside(f"{len(data)} bytes for a reading of {size} at {address:#x}")
        if size:
            self._bytes(address, 1)
            self._bytes(address + size - 1, 1)
        if size <= mmap.PAGESIZE and bytes(data) != self._bytes(address, size):
            raise ReadOutside(f"other bytes than RAM has at {address:#x}")
        if self.notes is not None and size:
            self._note([(address, size)])

    def _bytes(self, address: int, size: int) -> bytes:
        """The plainest way to read: byte by byte where blocks meet."""
        for block in self.blocks:
            if block.start <= address and address + size <= block.end:
                at = block.offset + address - block.start
                return bytes(self.raw[at : at + size])
        if size <= 1:
            if size:
                raise ReadOutside(f"an answer for {address:#x}, which is not RAM")
            return b""
        return b"".join(self._bytes(address + i, 1) for i in range(size))

    def _note(self, places: list[Place]) -> None:
        assert self.notes is not None
        kept = self.notes.setdefault(_site(), [])
        if len(kept) < 4 * _KEPT:
            kept += places
        else:
            kept[random.randrange(len(kept))] = places[0]


def _site() -> tuple[str, ...]:
    """The line of code that reads and what called it; of page tables, the level."""
    frame: FrameType | None = sys._getframe(3)
    found: list[str] = []
    while frame is not None and len(found) < 3:
        _, inside, path = frame.f_code.co_filename.rpartition("/inspector/")
        if path in _PAGE_TABLES and "level" in frame.f_locals:
            return "page table", path, frame.f_locals["level"].name
        if inside and not path.startswith(_PLUMBING):
            found.append(f"{path}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(found)


class Recording:
    """A guest's memory at one moment, and the kernel in it as it was before anything was changed."""

    def __init__(self, folder: Path, readers: Mapping[str, Reader]) -> None:
        known = json.loads((folder / "machine.json").read_text())
        with (folder / "ram").open("rb") as file:
            self.buffer = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        self.blocks = tuple(RamBlock(PhysAddr(a), size, offset) for a, size, offset in known["blocks"])
        self.cpus = [Registers(**each) for each in known["cpus"]]
        self.memory = Watched(self.buffer, self.blocks)
        self.kernel = symbols.attach(self.memory, self.cpus)
        self.readers = readers
        self.notes: dict[str, dict[tuple[str, ...], list[Place]]] = {}
        self.pointers: list[int] = []

    def fresh(self, memory: Watched, own_types: bool) -> Kernel:
        """The same kernel as nobody has read it yet."""
        old = self.kernel
        space = AddressSpace(memory, old.space.format, old.space.root)
        types = old.types
        if own_types and isinstance(types, KernelTypes):
            types = KernelTypes(types.base, space, old.symbols)
        return Kernel(memory, space, old.symbols, types, old.vmcoreinfo)

    def places(self, name: str) -> dict[tuple[str, ...], list[Place]]:
        """Where a reader looks in whole memory."""
        if name not in self.notes:
            random.seed(0)
            memory = Watched(self.buffer, self.blocks)
            kernel = self.fresh(memory, own_types=True)
            memory.notes = {}
            self.readers[name](self, kernel, random.Random(0))
            self.notes[name] = memory.notes if name != "BTF" else self._btf_places(kernel)
            for kept in memory.notes.values():
                words = [memory._bytes(at, 8) for at, size in kept[:16] if size == 8]
                self.pointers += [p for p in (int.from_bytes(w, "little") for w in words) if p >> 47]
        return self.notes[name]

    def _btf_places(self, kernel: Kernel) -> dict[tuple[str, ...], list[Place]]:
        """BTF's header, the types that other readers asked for, and anything in it."""
        for name in self.readers:
            if name not in ("BTF", "attach"):
                self.places(name)
        types = self.kernel.types
        assert isinstance(types, KernelTypes)
        starts = [*types.base.starts.tolist(), len(types.base.starts)]
        first = kernel.symbol("__start_BTF")
        header, phys = 24, kernel.virt_to_phys(first)  # the image lies together
        found: dict[tuple[str, ...], list[Place]] = {("any",): [(phys, len(types.base.data))]}
        found["header",] = [(phys + at, 4) for at in range(0, header, 4)]
        for id_ in types.base._types:
            if 0 < id_ < len(starts):
                called, info, *rest = (
                    phys + header + 4 * word for word in range(starts[id_ - 1], starts[id_])
                )
                found["type", str(id_)] = [(at, 4) for at in (called, *rest)]
                found.setdefault(("info",), []).append((info, 4))
        return found

    def offset(self, address: int) -> int:
        """Where in the buffer a physical address is."""
        return next(b.offset + address - b.start for b in self.blocks if b.start <= address < b.end)


Reader = Callable[[Recording, Kernel, random.Random], None]
"""Reads something of a kernel and shows it, as a face would; what to look at is drawn by chance."""
