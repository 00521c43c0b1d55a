"""Who maps a frame: one inverted index of all page tables, user and kernel (for every frame at once)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.arch import MAPPING
from inspector.arch.format import field
from inspector.kernel.regions import Region, regions
from inspector.kernel.tasks import Task, tasks, user_end
from inspector.symbols import Kernel
from inspector.units import Pfn, PhysAddr, VirtAddr

KERNEL = 0xFFFF_FFFF
"""The owner of a row that is the kernel's own mapping, not an address space's."""

ROW = np.dtype([*((name, MAPPING[name]) for name in MAPPING.names or ()), ("owner", np.uint32)])
"""A leaf entry with the index of the address space that it is in, or KERNEL."""


@dataclass(frozen=True, slots=True)
class Alias:
    """One virtual address of a frame. `task` is None for the kernel's own, whose `region` says where.

    `entry` is the raw leaf entry and `size` the page size in bytes; `rights` are arch.Right bits;
    `memory_type` is the index into the PAT that the entry's cache bits make.
    """

    task: Task | None
    region: str
    va: VirtAddr
    entry: int
    size: int
    rights: int
    memory_type: int | None
    flags: tuple[str, ...]


class ReverseMap:
    """The index: built once for one moment, asked for as many frames as wanted."""

    def __init__(self, kernel: Kernel, owners: Sequence[Task], rows: NDArray[np.void]) -> None:
        self.kernel = kernel
        self.owners = tuple(owners)
        self._regions = regions(kernel)
        # A frame is found by the page that holds it, once for each page size.
        self._by_size: dict[int, NDArray[np.void]] = {}
        for size in np.unique(rows["size"]).tolist():
            chosen = rows[rows["size"] == size]
            self._by_size[size] = chosen[np.argsort(chosen["pa"], kind="stable")]

    @classmethod
    def build(
        cls, kernel: Kernel, processes: Iterable[Task] | None = None, *, user_only: bool = False
    ) -> ReverseMap:
        """Scan the page tables of every address space, and of the kernel. Raises CorruptGuest."""
        # Threads and vfork()ed tasks share an address space: it is scanned once, for one of them.
        owners = {task.mm.address: task for task in processes or tasks(kernel) if task.mm}
        parts = [_rows(task.mappings(), index) for index, task in enumerate(owners.values())]
        if not user_only:
            parts.append(_rows(kernel.space.scan(user_end(kernel)), KERNEL))
        return cls(kernel, list(owners.values()), np.concatenate(parts or [np.empty(0, ROW)]))

    @property
    def rows(self) -> NDArray[np.void]:
        """Every row, by page size and physical address."""
        return np.concatenate([np.empty(0, ROW), *self._by_size.values()])

    def of(self, pfn: Pfn) -> list[Alias]:
        """Every virtual address that maps the frame, tasks' before the kernel's."""
        paging = self.kernel.space.format
        address = PhysAddr(pfn * paging.page_size)
        found: list[Alias] = []
        for size, rows in self._by_size.items():
            page = np.uint64(address & ~(size - 1))
            first, end = np.searchsorted(rows["pa"], page, "left"), np.searchsorted(rows["pa"], page, "right")
            found += [self._alias(row, address & (size - 1)) for row in rows[first:end]]
        return sorted(
            found, key=lambda alias: (alias.task is None, alias.task.pid if alias.task else 0, alias.va)
        )

    def user_mapped(self, end: Pfn) -> NDArray[np.uint32]:
        """For each PFN below `end` how many user entries map it; a large page's, for each of its frames."""
        page_size = self.kernel.space.format.page_size
        edges = np.zeros(end + 1, np.int64)
        for size, rows in self._by_size.items():
            first = (rows["pa"][rows["owner"] != KERNEL] // np.uint64(page_size)).astype(np.int64)
            inside = first < end
            np.add.at(edges, first[inside], 1)
            np.add.at(edges, np.minimum(first[inside] + size // page_size, end), -1)
        return np.cumsum(edges[:-1]).astype(np.uint32)

    def _alias(self, row: np.void, offset: int) -> Alias:
        paging = self.kernel.space.format
        owner, va, entry = int(row["owner"]), VirtAddr(int(row["va"]) + offset), int(row["entry"])
        level = next(level for level in paging.levels if level.span == row["size"])
        shape = level.shape(entry)
        return Alias(
            task=None if owner == KERNEL else self.owners[owner],
            region="user" if owner != KERNEL else _region(self._regions, va),
            va=va,
            entry=entry,
            size=int(row["size"]),
            rights=int(row["rights"]),
            memory_type=field(shape.memory_type, entry) if shape else None,
            flags=shape.names(entry) if shape else (),
        )


def _rows(mappings: NDArray[np.void], owner: int) -> NDArray[np.void]:
    rows = np.empty(len(mappings), ROW)
    for name in MAPPING.names or ():
        rows[name] = mappings[name]
    rows["owner"] = owner
    return rows


def _region(found: tuple[Region, ...], va: VirtAddr) -> str:
    return next((region.name for region in found if region.start <= va < region.end), "unknown")
