"""mem_map: which PFNs have a struct page, and all of them as one array (SPARSEMEM_VMEMMAP, mm/sparse.c)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest, NoSuchFrame
from inspector.kernel.recall import recall
from inspector.symbols import Kernel, StructView
from inspector.units import Pfn, PhysAddr, VirtAddr

_HAS_MEM_MAP = 1 << 1  # SECTION_HAS_MEM_MAP
_PART = 1 << 13  # PFNs: 512 KiB of struct pages
_MAX_SECTIONS = 1 << 20
_TAIL = np.uint64(1)  # of a tail page's compound_head or compound_info
_LOWEST_MASK = np.uint64(0xFFFF_FFFF_C000_0000)  # no struct page lies so high, and no folio is so wide


class MemMap:
    """The kernel's struct page array. Memory hotplug changes its runs: build it anew for each question."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.page_size: int = kernel.space.format.page_size
        self.struct_size = kernel.types.sizeof("page")
        self.base = kernel.vmemmap_base

    @cached_property
    def pages_per_section(self) -> int:
        """PFNs in one section (C: PAGES_PER_SECTION)."""
        bits = self.kernel.vmcoreinfo.number("SECTION_SIZE_BITS")
        if not 0 < bits < 48 or 1 << bits < self.page_size:
            raise BadFormat(f"VMCOREINFO is corrupt: it has memory sections of 2**{bits} bytes")
        return (1 << bits) // self.page_size

    @cached_property
    def runs(self) -> tuple[tuple[Pfn, Pfn], ...]:
        """Runs of PFNs with a struct page: (first, end exclusive), in order; between them lie holes."""
        runs = recall(self.kernel, _runs)
        last = self.kernel.memory.blocks[-1]
        if (runs[-1][1] - self.pages_per_section) * self.page_size >= last.start + last.size:
            section = runs[-1][1] // self.pages_per_section - 1
            raise CorruptGuest(f"memory section {section} is present, but RAM ends below it")
        return runs

    @property
    def holes(self) -> list[tuple[Pfn, Pfn]]:
        """The PFNs between the runs, and below them."""
        ends = [Pfn(0), *(end for _, end in self.runs)]
        return list(zip(ends, (first for first, _ in self.runs), strict=False))

    @property
    def end(self) -> Pfn:
        """One past the last PFN with a struct page."""
        return self.runs[-1][1]

    def has(self, pfn: Pfn) -> bool:
        """Whether the PFN has a struct page (C: pfn_valid)."""
        return any(first <= pfn < end for first, end in self.runs)

    def address(self, pfn: Pfn) -> VirtAddr:
        """Where a PFN's struct page lies (C: pfn_to_page). Raises NoSuchFrame."""
        if not self.has(pfn):
            runs = ", ".join(f"{a:#x}-{b - 1:#x}" for a, b in self.runs)
            raise NoSuchFrame(f"PFN {pfn:#x} has no struct page; this guest has {runs}")
        return VirtAddr(self.base + pfn * self.struct_size)

    def addresses(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Where the struct pages of many PFNs lie; the PFNs are taken as they are."""
        return np.uint64(self.base) + pfns * np.uint64(self.struct_size)

    def pfn(self, page: VirtAddr) -> Pfn:
        """The PFN whose struct page lies at, or holds, this address (C: page_to_pfn). Raises NoSuchFrame."""
        pfn = Pfn((page - self.base) // self.struct_size)
        if not self.has(pfn):
            raise NoSuchFrame(f"no struct page at {page:#x}")
        return pfn

    def pieces(self, size: int = _PART) -> Iterator[tuple[Pfn, Pfn, NDArray[np.uint8]]]:
        """The runs in parts whose struct pages fit a CPU's cache: many members are one pass over memory.

        The first PFN, the end and structs() of each.
        """
        for first, end in self.runs:
            for low, high in self._whole(first, end):
                structs = self.structs(low, high)
                for start in range(low, high, size):
                    stop = Pfn(min(start + size, high))
                    yield Pfn(start), stop, structs[start - low : stop - low]

    def _whole(self, first: Pfn, end: Pfn) -> Iterator[tuple[Pfn, Pfn]]:
        """PFNs whose struct pages are contiguous in RAM, or few enough to be copied."""
        at = first
        while at < end:
            place = bisect_right(self._extents, (self.base + at * self.struct_size, math.inf, 0)) - 1
            last = int(self._extents[place][1] - self.base) // self.struct_size if place >= 0 else 0
            stop = Pfn(min(end, last if last > at else at + _PART))
            yield at, stop
            at = stop

    def structs(self, first: Pfn, end: Pfn) -> NDArray[np.uint8]:
        """The bytes of the struct pages from `first` to `end` exclusive, a row each; a copy if need be."""
        size = (end - first) * self.struct_size
        start = self.address(first) if end > first else self.base
        place = bisect_right(self._extents, (start, math.inf, 0)) - 1
        if place >= 0 and start + size <= self._extents[place][1]:
            va, _, pa = self._extents[place]
            raw = self.kernel.memory.array(PhysAddr(pa + start - va), size)
        else:
            raw = self.kernel.space.array(VirtAddr(start), size)
        return raw.reshape(end - first, self.struct_size)

    def member(self, structs: NDArray[np.uint8], path: str, dtype: str) -> NDArray[Any]:
        """One member of every row of structs()."""
        offset = self.kernel.types.offsetof("page", path)
        end = offset + np.dtype(dtype).itemsize
        if end > self.struct_size:
            raise BadFormat(f"the types are corrupt: page.{path} lies {offset} bytes in")
        return structs[:, offset:end].view(dtype)[:, 0]

    def column(self, first: Pfn, end: Pfn, path: str, dtype: str) -> NDArray[Any]:
        """One member of the struct pages from `first` to `end` exclusive."""
        return self.member(self.structs(first, end), path, dtype)

    def heads(self, first: Pfn, end: Pfn) -> NDArray[np.int64]:
        """For each PFN from `first` to `end` exclusive its compound page's first; itself if it is no tail."""
        return self.heads_of(np.arange(first, end), self.compound_words(self.structs(first, end)))

    def compound_words(self, structs: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Of every row of structs() the word that leads a tail page to its head."""
        return self.member(structs, self.compound_word, "<u8")

    def heads_of(self, pfns: NDArray[np.int64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The same for any PFNs, given compound_words() of their struct pages.

        A head that would lie outside of all memory is corrupt: the tail is then taken for a page of its own.
        """
        heads = pfns.copy()
        tails = np.flatnonzero(words & _TAIL != 0)
        info = words[tails] & ~_TAIL
        own = self.addresses(pfns[tails].astype(np.uint64))
        at = (np.where(info >= _LOWEST_MASK, own & info, info) - np.uint64(self.base)) // np.uint64(
            self.struct_size
        )
        inside = at < self.end
        heads[tails[inside]] = at[inside].astype(np.int64)
        return heads

    @cached_property
    def compound_word(self) -> str:
        """The word of a tail page that leads to its head, bit 0 set.

        compound_head, the head's address, became compound_info in 7.1 ("mm: rework compound_head() for
        power-of-2 sizeof(struct page)"): with CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP a mask, which makes the
        tail's address the head's.
        """
        return "compound_info" if self.kernel.types.has("page", "compound_info") else "compound_head"

    @cached_property
    def _extents(self) -> list[tuple[int, float, int]]:
        """Physically contiguous stretches of the array: (virtual start, end exclusive, physical start)."""
        bounds = self.address(self.runs[0][0]), self.base + self.end * self.struct_size
        start, end = (np.array([min(bound, (1 << 64) - 1)], np.uint64) for bound in bounds)
        pieces = self.kernel.space.overlaps(start, end)
        return [
            (va, va + size, pa) for va, pa, size in zip(*(each.tolist() for each in pieces[1:]), strict=True)
        ]

    def view(self, pfn: Pfn) -> StructView:
        """A PFN's struct page. Raises NoSuchFrame."""
        return self.kernel.view("page", self.address(pfn))

    def sections(self, member: str) -> NDArray[np.uint64]:
        """A pointer-wide member of every struct mem_section, by number: they lie in pages of their own."""
        return recall(self.kernel, _sections, member)


def _runs(kernel: Kernel) -> tuple[tuple[Pfn, Pfn], ...]:
    memmap = MemMap(kernel)
    present = np.flatnonzero(memmap.sections("section_mem_map") & np.uint64(_HAS_MEM_MAP))
    if not present.size:
        raise CorruptGuest("no memory section is present: mem_section is not set up or not readable")
    breaks = np.flatnonzero(np.diff(present) > 1)
    firsts = present[np.concatenate(([0], breaks + 1))] * memmap.pages_per_section
    lasts = (present[np.concatenate((breaks, [present.size - 1]))] + 1) * memmap.pages_per_section
    return tuple((Pfn(int(a)), Pfn(int(b))) for a, b in zip(firsts, lasts, strict=True))


def _sections(kernel: Kernel, member: str) -> NDArray[np.uint64]:
    page_size = kernel.space.format.page_size
    size, offset = kernel.types.sizeof("mem_section"), kernel.types.offsetof("mem_section", member)
    per_root = page_size // size
    roots_at = VirtAddr(kernel.word("mem_section"))
    roots_count = kernel.vmcoreinfo.length("mem_section")
    if not 0 < roots_count * per_root <= _MAX_SECTIONS * per_root:
        raise CorruptGuest(f"mem_section has {roots_count} roots")
    # With 5 levels there is room for 2 MiB of roots; those beyond the end of RAM are not used.
    end = kernel.memory.blocks[-1].end >> kernel.vmcoreinfo.number("SECTION_SIZE_BITS")
    roots_count = min(roots_count, end // per_root + 1)
    roots = kernel.space.array(roots_at, roots_count * kernel.pointer_size).view(np.uint64)
    used = np.flatnonzero(roots)
    found = np.zeros((int(used[-1]) + 1 if used.size else 0, per_root), np.uint64)
    for root in used.tolist():
        count = min(end + 1 - root * per_root, per_root)
        page = kernel.space.array(VirtAddr(int(roots[root])), count * size)
        members = page.reshape(count, size)[:, offset : offset + kernel.pointer_size]
        found[root, :count] = np.ascontiguousarray(members).view(np.uint64)[:, 0]
    return found.ravel()
