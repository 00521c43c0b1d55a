"""An address space at one moment: its page tables read once, as a few contiguous stretches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.arch.format import PagingFormat
from inspector.arch.space import AddressSpace
from inspector.arch.stretches import Pieces, Stretches
from inspector.memory import PhysicalMemory
from inspector.units import PhysAddr, VirtAddr


class StillSpace(AddressSpace):
    """What all the leaf mappings of one root at one moment map.

    For many questions about a guest that stands still: a bulk read looks its addresses up in the stretches
    and walks no tables. It knows nothing of what the guest maps later.
    """

    def __init__(
        self, memory: PhysicalMemory, format: PagingFormat, root: PhysAddr, stretches: Stretches
    ) -> None:
        super().__init__(memory, format, root)
        self.stretches = stretches

    def overlaps(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Pieces:
        return self.stretches.overlaps(starts, ends)

    def locate(self, vas: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return self.stretches.locate(vas)

    def _lookup(self, va: int) -> int | None:
        page = va & ~self._page_mask
        found = self.stretches.between(page, page + 1)
        if not found:
            return None
        delta = found[0][1] - page
        self._cache[page] = delta
        return delta

    def _runs(self, va: VirtAddr, size: int) -> list[tuple[PhysAddr, int]]:
        runs: list[tuple[PhysAddr, int]] = []
        at = int(va)
        for start, pa, length in self.stretches.between(va, va + size) if size else []:
            if start != at:
                break
            runs.append((PhysAddr(pa), length))
            at = start + length
        if at != va + size:
            raise self._fault(VirtAddr(at))
        return runs
