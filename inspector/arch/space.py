"""Guest memory at virtual addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from inspector.arch import scanner
from inspector.arch.format import PagingFormat
from inspector.arch.scanner import LIMIT, MAPPING, U64
from inspector.arch.stretches import Pieces, Stretches
from inspector.arch.walker import Walk, walk
from inspector.errors import PageFault
from inspector.memory import PhysicalMemory
from inspector.units import PhysAddr, VirtAddr

_CACHED_PAGES = 1 << 16  # small pages remembered per address space: some MiB of dictionary
_SCAN_FROM = 32  # pages from which on one scan of the range is cheaper than a translation each
_BYTES_AT_ONCE = 1 << 20  # elements over a page border are gathered byte by byte, so many bytes at a time


class AddressSpace:
    """The memory that one root of page tables maps, read through its translations.

    Scalar reads remember translations, as a TLB does: flush() when the guest has run. Bulk reads
    (gather, large read and array, scan) look at the tables each time.
    """

    on_walk: ClassVar[Callable[[Walk], None] | None] = None
    """Hears of each walk() that is asked for: a test's report shows the last."""

    def __init__(self, memory: PhysicalMemory, format: PagingFormat, root: PhysAddr) -> None:
        self.memory = memory
        self.format = format
        self.root = root
        self._page_mask = format.page_size - 1
        self._cache: dict[int, int] = {}  # va of a small page -> what to add for the physical address
        self._large: dict[tuple[int, int], int] = {}  # (page size, va // page size) -> the same
        self._large_sizes = [level.span for level in format.levels if level.large]

    def flush(self) -> None:
        """Forget all translations: the guest may have changed its tables."""
        self._cache.clear()
        self._large.clear()

    def walk(self, va: VirtAddr) -> Walk:
        """Follow an address level by level; a fault is an answer."""
        found = walk(self.memory, self.format, self.root, va)
        if AddressSpace.on_walk:
            AddressSpace.on_walk(found)
        return found

    def translate(self, va: VirtAddr) -> PhysAddr | None:
        """The physical address, or None where there is no mapping (walk() says why)."""
        delta = self._cache.get(va & ~self._page_mask)
        if delta is None:
            delta = self._lookup(va)
        return None if delta is None else PhysAddr(va + delta)

    def read(self, va: VirtAddr, size: int) -> bytes:
        """A copy of `size` bytes. Raises PageFault, OutsideRam where a page is not RAM, or as scan()."""
        if (va & self._page_mask) + size <= self._page_mask + 1:
            return self.memory.read(self._phys(va), size)
        return b"".join(self.memory.read(pa, length) for pa, length in self._runs(va, size))

    def array(self, va: VirtAddr, size: int) -> NDArray[np.uint8]:
        """The bytes, read-only: a view where they are contiguous in RAM, else a copy. Raises as read()."""
        parts = [self.memory.array(pa, length) for pa, length in self._runs(va, size)]
        if len(parts) == 1:
            return parts[0]
        copy = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        copy.flags.writeable = False
        return copy

    def u8(self, va: VirtAddr) -> int:
        """An unsigned byte. Raises PageFault or OutsideRam."""
        return self.read(va, 1)[0]

    def u16(self, va: VirtAddr) -> int:
        """An unsigned 16-bit number. Raises PageFault or OutsideRam."""
        return int.from_bytes(self.read(va, 2), "little")

    def u32(self, va: VirtAddr) -> int:
        """An unsigned 32-bit number. Raises PageFault or OutsideRam."""
        return int.from_bytes(self.read(va, 4), "little")

    def u64(self, va: VirtAddr) -> int:
        """An unsigned 64-bit number. Raises PageFault or OutsideRam."""
        return int.from_bytes(self.read(va, 8), "little")

    def pointer(self, va: VirtAddr) -> VirtAddr:
        """A pointer of the format's width. Raises PageFault or OutsideRam."""
        return VirtAddr(int.from_bytes(self.read(va, self.format.pointer_size), "little"))

    def cstring(self, va: VirtAddr, limit: int = 256) -> str:
        r"""Text up to a NUL or `limit` bytes; what is not UTF-8 becomes \xNN. Raises PageFault, OutsideRam.

        The guest chose every character of it: show it through units.printable().
        """
        text = b""
        while len(text) < limit:
            here = VirtAddr(va + len(text))
            size = min(limit - len(text), self._page_mask + 1 - (here & self._page_mask))
            part, nul, _ = self.read(here, size).partition(b"\0")
            text += part
            if nul:
                break
        return text.decode("utf-8", "backslashreplace")

    def gather(
        self, vas: NDArray[np.uint64], dtype: np.dtype[Any], count: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """`count` items of `dtype` at each address: values of shape (n,) or (n, count), and which were read.

        What is not mapped, or not RAM, reads as zeros.
        """
        dtype = np.dtype(dtype)
        vas = np.ascontiguousarray(vas, U64)
        size = dtype.itemsize * count
        pas, room = self.locate(vas)
        over = room < U64.type(size)
        ok = ~over
        if ok.all():
            return self.memory.gather(pas, dtype, count)
        values = np.zeros((len(vas), count) if count > 1 else len(vas), dtype)
        values[ok], ok[ok] = self.memory.gather(pas[ok], dtype, count)
        rows = np.flatnonzero(over & (room != 0) & (vas <= U64.type((1 << 64) - size)))
        chunk = max(1, _BYTES_AT_ONCE // max(1, size))
        for first in range(0, len(rows), chunk):
            some = rows[first : first + chunk]
            each = np.add.outer(vas[some], np.arange(size, dtype=U64)).reshape(-1)
            pas, room = self.locate(each)
            data, good = self.memory.gather(pas, np.dtype(np.uint8))
            whole = (good & (room != 0)).reshape(-1, size).all(axis=1)
            items = data.reshape(-1, size)[whole].view(dtype)
            values[some[whole]] = items if count > 1 else items.reshape(-1)
            ok[some[whole]] = True
        return values, ok

    def scan(
        self, start: int = 0, end: int = 1 << 64, *, nonpresent: bool = False, limit: int = LIMIT
    ) -> NDArray[np.void]:
        """Every mapping that overlaps [start, end), as rows of MAPPING; see arch.scanner.scan()."""
        return scanner.scan(
            self.memory, self.format, self.root, start, end, nonpresent=nonpresent, limit=limit
        )

    def overlaps(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Pieces:
        """What is mapped of the ranges [start, end), in pieces that are contiguous in both memories."""
        leaves = self.scan(int(starts.min()), int(ends.max())) if len(starts) else np.empty(0, MAPPING)
        return Stretches(leaves).overlaps(starts, ends)

    def locate(self, vas: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Of each address the physical one, and how many bytes from there on lie behind it: 0 for none."""
        pas, sizes = self._resolve(vas)
        return pas, sizes - (vas & (np.maximum(sizes, U64.type(1)) - U64.type(1)))

    def _resolve(self, vas: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """scanner.resolve(), but neighbours on the same page are looked up once."""
        pages = vas & ~np.uint64(self._page_mask)
        new = np.ones(len(vas), np.bool_)
        np.not_equal(pages[1:], pages[:-1], out=new[1:])
        if new.all():
            return scanner.resolve(self.memory, self.format, self.root, vas)
        run = np.cumsum(new) - 1
        pas, sizes = scanner.resolve(self.memory, self.format, self.root, pages[new])
        return pas[run] + (vas & np.uint64(self._page_mask)), sizes[run]

    def _lookup(self, va: VirtAddr) -> int | None:
        """The distance from virtual to physical in the page around `va`, remembered."""
        for size in self._large_sizes:
            delta = self._large.get((size, va // size))
            if delta is not None:
                break
        else:
            found = walk(self.memory, self.format, self.root, va)
            if found.phys is None or found.page_size is None:
                return None
            delta = found.phys - va
            if found.page_size > self._page_mask + 1:
                self._large[found.page_size, va // found.page_size] = delta
        if len(self._cache) >= _CACHED_PAGES:
            self.flush()
        self._cache[va & ~self._page_mask] = delta
        return delta

    def _phys(self, va: VirtAddr) -> PhysAddr:
        """translate() that raises PageFault."""
        delta = self._cache.get(va & ~self._page_mask)
        if delta is None:
            delta = self._lookup(va)
            if delta is None:
                raise self._fault(va)
        return PhysAddr(va + delta)

    def _fault(self, va: VirtAddr) -> PageFault:
        found = walk(self.memory, self.format, self.root, va)
        why = found.fault.what if found.fault else "the entry changed while it was read"
        return PageFault(f"virtual address {va:#x} does not translate: {why}", found)

    def _runs(self, va: VirtAddr, size: int) -> list[tuple[PhysAddr, int]]:
        """The physically contiguous runs, (address, bytes), behind a virtual range. Raises PageFault."""
        page, end = self._page_mask + 1, va + size
        if size >= _SCAN_FROM * page:
            return self._scanned_runs(va, end)
        runs: list[tuple[PhysAddr, int]] = []
        while va < end:
            pa, length = self._phys(va), min(end - va, page - (va & self._page_mask))
            if runs and sum(runs[-1]) == pa:
                pa, length = runs[-1][0], runs[-1][1] + length
                runs.pop()
            runs.append((pa, length))
            va = VirtAddr(-(-(va + 1) // page) * page)
        return runs

    def _scanned_runs(self, va: VirtAddr, end: int) -> list[tuple[PhysAddr, int]]:
        """_runs() of many pages, from one scan of the range."""
        rows = self.scan(va, end)
        if not len(rows) or rows["va"][0] > va:
            raise self._fault(va)
        ends = rows["va"] + rows["size"]
        gaps = np.flatnonzero(rows["va"][1:] != ends[:-1])
        covered = int(ends[gaps[0] if len(gaps) else -1]) or 1 << 64  # the very last end wraps to 0
        if covered < end:
            raise self._fault(VirtAddr(covered))
        breaks = np.flatnonzero(rows["pa"][1:] != rows["pa"][:-1] + rows["size"][:-1]) + 1
        firsts = [0, *breaks.tolist()]
        starts = [max(va, int(rows["va"][first])) for first in firsts]
        pas = [int(rows["pa"][first]) for first in firsts]
        pas[0] += va - int(rows["va"][0])
        return [
            (PhysAddr(pa), stop - start)
            for pa, start, stop in zip(pas, starts, [*starts[1:], end], strict=True)
        ]
