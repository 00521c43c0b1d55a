"""Areas kept for large contiguous allocations (mm/cma.c, mm/cma.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inspector.errors import CorruptGuest
from inspector.symbols import Kernel, StructView
from inspector.units import Pfn, VirtAddr, printable

_MAX_AREAS = 1 << 12
_MAX_RANGES = 64
_MAX_PAGES = 1 << 32


@dataclass(frozen=True, slots=True)
class CmaRange:
    """A run of an area's page frames; `used` of its `pages` are allocated."""

    start: Pfn
    pages: int
    used: int


@dataclass(frozen=True, slots=True)
class CmaArea:
    """A struct cma. One run of frames before c009da4258f9 (6.15), some since."""

    name: str
    ranges: tuple[CmaRange, ...]
    address: VirtAddr

    @property
    def pages(self) -> int:
        """How many it has."""
        return sum(each.pages for each in self.ranges)

    @property
    def used(self) -> int:
        """How many of them are allocated."""
        return sum(each.used for each in self.ranges)


def cma_areas(kernel: Kernel) -> list[CmaArea] | None:
    """Every area; None for a kernel that is built without CMA. Raises CorruptGuest."""
    if "cma_areas" not in kernel.symbols or not kernel.types.has("cma"):
        return None
    count = kernel.space.u32(kernel.symbol("cma_area_count"))
    if count > _MAX_AREAS:
        raise CorruptGuest(f"there are {count} CMA areas")
    size, first = kernel.types.sizeof("cma"), kernel.symbol("cma_areas")
    return [_area(kernel.view("cma", VirtAddr(first + i * size))) for i in range(count)]


def _area(view: StructView) -> CmaArea:
    per_bit = view.int("order_per_bit")
    if view.has("nranges"):
        count = view.int("nranges")
        if not 0 <= count <= _MAX_RANGES:
            raise CorruptGuest(f"the CMA area at {view.address:#x} has {count} ranges")
        ranges = [view.at(f"ranges[{i}]") for i in range(count)]
    else:
        ranges = [view]
    return CmaArea(
        printable(view.text("name")), tuple(_range(each, per_bit) for each in ranges), view.address
    )


def _range(view: StructView, per_bit: int) -> CmaRange:
    pages = view.int("count")
    bitmap = view.ptr("bitmap")
    if not 0 <= pages <= _MAX_PAGES or not 0 <= per_bit < 64:
        raise CorruptGuest(f"the CMA range at {view.address:#x} has {pages} pages")
    bits = -(-pages >> per_bit)
    used = 0
    if bitmap:
        raw = view.kernel.space.array(bitmap, -(-bits // 8))
        used = int(np.unpackbits(raw, bitorder="little")[:bits].sum()) << per_bit
    return CmaRange(Pfn(view.int("base_pfn")), pages, min(used, pages))
