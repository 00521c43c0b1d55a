"""Who maps a frame: one inverted index of all page tables, user and kernel (for every frame at once)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.arch import MAPPING
from inspector.arch.format import field
from inspector.errors import CorruptGuest
from inspector.kernel.regions import regions
from inspector.kernel.tasks import Task, tasks, user_end
from inspector.symbols import Kernel
from inspector.units import Pfn, VirtAddr

KERNEL = 0xFFFF_FFFF
"""The owner of a row that is the kernel's own mapping, not an address space's."""

ROW = np.dtype([*((name, MAPPING[name]) for name in MAPPING.names or ()), ("owner", np.uint32)])
"""A leaf entry with the index of the address space that it is in, or KERNEL."""


_CACHE_MODES = 8  # entries of IA32_PAT, and of __pte2cachemode_tbl
_EVEN = 3  # evenly spaced addresses from this many on are told as one


@dataclass(frozen=True, slots=True)
class Alias:
    """A virtual address of a frame. `task` is None for the kernel's own, whose `region` says where.

    `entry` is the raw leaf entry and `size` the page size in bytes; `rights` are arch.Right bits;
    `memory_type` is the index into the PAT that the entry's cache bits make, `cache_mode` what Linux keeps
    there: `WB`, `WT`, `WC`, `UC-`, `UC`, `WP`. Where one address space has the frame at `count` addresses
    `stride` bytes apart, by equal entries, they are one Alias, and `va` is the first.
    """

    task: Task | None
    region: str
    va: VirtAddr
    entry: int
    size: int
    rights: int
    memory_type: int | None
    flags: tuple[str, ...]
    cache_mode: str = ""
    count: int = 1
    stride: int = 0

    @property
    def last(self) -> VirtAddr:
        """The highest of its addresses."""
        return VirtAddr(self.va + (self.count - 1) * self.stride)

    @property
    def vas(self) -> range:
        """Every one of its addresses."""
        return range(self.va, self.last + 1, self.stride or 1)


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
        cls,
        kernel: Kernel,
        processes: Iterable[Task] | None = None,
        *,
        user_only: bool = False,
        only: Pfn | None = None,
    ) -> ReverseMap:
        """Scan the page tables of every address space, and of the kernel. Raises CorruptGuest.

        With `only`, the index has that frame alone: less to keep and to sort.
        """
        # Threads and vfork()ed tasks share an address space: it is scanned once, for one of them.
        processes = tasks(kernel) if processes is None else list(processes)
        if broken := next((task for task in processes if task.error), None):
            raise CorruptGuest(f"what task {broken.pid} maps cannot be read: {broken.error}")
        owners = {task.mm.address: task for task in processes if task.mm}
        address = None if only is None else only * kernel.space.format.page_size
        parts = [_rows(task.mappings(), index, address) for index, task in enumerate(owners.values())]
        if not user_only:
            parts.append(_rows(kernel.space.scan(user_end(kernel)), KERNEL, address))
        return cls(kernel, list(owners.values()), np.concatenate(parts or [np.empty(0, ROW)]))

    @property
    def rows(self) -> NDArray[np.void]:
        """Every row, by page size and physical address."""
        return np.concatenate([np.empty(0, ROW), *self._by_size.values()])

    def rows_of(self, pfn: Pfn) -> NDArray[np.void]:
        """The rows whose pages hold the frame; `va` and `pa` are the page's, which may be a large one."""
        address = pfn * self.kernel.space.format.page_size
        found = [np.empty(0, ROW)]
        for size, rows in self._by_size.items():
            page = np.uint64(address & ~(size - 1))
            first, end = np.searchsorted(rows["pa"], page, "left"), np.searchsorted(rows["pa"], page, "right")
            found.append(rows[first:end])
        return np.concatenate(found)

    def of(self, pfn: Pfn) -> list[Alias]:
        """Every virtual address that maps the frame, tasks' before the kernel's.

        The kernel maps one frame 65,536 times (espfix), a task the zero page as often as it likes: addresses
        at even distances are one Alias.
        """
        rows = self.rows_of(pfn)
        address = np.uint64(pfn * self.kernel.space.format.page_size)
        rows["va"] += address & (rows["size"] - np.uint64(1))
        starts = np.array([region.start for region in self._regions], np.uint64)
        region = np.searchsorted(starts, rows["va"], "right") - 1
        order = np.lexsort((rows["va"], rows["entry"], rows["size"], region, rows["owner"]))
        rows, region = rows[order], region[order]
        alike = (region[1:] == region[:-1]) & np.logical_and.reduce(
            [rows[name][1:] == rows[name][:-1] for name in ("owner", "size", "entry")]
        )
        found = [
            self._alias(
                rows[first], int(region[first]), count, int(rows["va"][first + 1] - rows["va"][first])
            )
            if count > 1
            else self._alias(rows[first], int(region[first]))
            for first, count in _runs(rows["va"], alike)
        ]
        return sorted(
            found, key=lambda alias: (alias.task is None, alias.task.pid if alias.task else 0, alias.va)
        )

    def user_mapped(self, end: Pfn) -> NDArray[np.uint32]:
        """For each PFN below `end` how many user entries map it; a large page's, for each of its frames."""
        return self._mapped(end, {size: rows["owner"] != KERNEL for size, rows in self._by_size.items()})

    def mixed_cache_modes(self, end: Pfn) -> NDArray[np.uint64]:
        """The PFNs below `end` whose addresses differ in their cache mode.

        The processor gives no promise for such a frame (Intel SDM, volume 3A, "Programming the PAT").
        """
        modes = {size: self._modes(size, rows["entry"]) for size, rows in self._by_size.items()}
        kinds = np.zeros(end, np.uint8)
        for mode in sorted({mode for of_size in modes.values() for mode in np.unique(of_size).tolist()}):
            chosen = {size: of_size == mode for size, of_size in modes.items()}
            kinds += self._mapped(end, chosen) > 0
        return np.flatnonzero(kinds > 1).astype(np.uint64)

    def _mapped(self, end: Pfn, chosen: dict[int, NDArray[np.bool_]]) -> NDArray[np.uint32]:
        """For each PFN below `end` how many of the chosen rows map it; `chosen` by page size."""
        page_size = self.kernel.space.format.page_size
        edges = np.zeros(end + 1, np.int64)
        for size, rows in self._by_size.items():
            first = (rows["pa"][chosen[size]] // np.uint64(page_size)).astype(np.int64)
            inside = first < end
            np.add.at(edges, first[inside], 1)
            np.add.at(edges, np.minimum(first[inside] + size // page_size, end), -1)
        return np.cumsum(edges[:-1]).astype(np.uint32)

    def _modes(self, size: int, entries: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """The index of each leaf entry's cache mode in _cache_modes; equal modes have one index."""
        level = next(level for level in self.kernel.space.format.levels if level.span == size)
        types = np.zeros(len(entries), np.uint8)
        for shape in level.shapes:
            if shape.leaf:
                mask, value = shape.test
                chosen = (entries & np.uint64(mask)) == np.uint64(value)
                for place, bit in enumerate(shape.memory_type):
                    types[chosen] |= ((entries[chosen] >> np.uint64(bit) & np.uint64(1)) << place).astype(
                        np.uint8
                    )
        first_of = np.array([self._cache_modes.index(name) for name in self._cache_modes], np.uint8)
        return first_of[types]

    @cached_property
    def _cache_modes(self) -> tuple[str, ...]:
        return cache_modes(self.kernel)

    def _alias(self, row: np.void, region: int, count: int = 1, stride: int = 0) -> Alias:
        owner, entry = int(row["owner"]), int(row["entry"])
        level = next(level for level in self.kernel.space.format.levels if level.span == row["size"])
        shape = level.shape(entry)
        memory_type = field(shape.memory_type, entry) if shape else None
        return Alias(
            task=None if owner == KERNEL else self.owners[owner],
            region="user" if owner != KERNEL else self._regions[region].name if region >= 0 else "unknown",
            va=VirtAddr(int(row["va"])),
            entry=entry,
            size=int(row["size"]),
            rights=int(row["rights"]),
            memory_type=memory_type,
            flags=shape.names(entry) if shape else (),
            cache_mode="" if memory_type is None else self._cache_modes[memory_type],
            count=count,
            stride=stride,
        )


def cache_modes(kernel: Kernel) -> tuple[str, ...]:
    """What each index into the PAT stands for: `WB`, `WT`, `WC`, `UC-`, `UC` or `WP`.

    Linux keeps it as it has set up IA32_PAT (__pte2cachemode_tbl, arch/x86/mm/init.c); without it, `PAT 3`.
    """
    unnamed = tuple(f"PAT {index}" for index in range(_CACHE_MODES))
    if not kernel.symbols.has("__pte2cachemode_tbl") or not kernel.types.has("page_cache_mode"):
        return unnamed
    prefix = "_PAGE_CACHE_MODE_"
    names = {
        value: name.removeprefix(prefix).replace("_MINUS", "-")
        for name, value in kernel.types.enum("page_cache_mode").items()
    }
    table = kernel.space.read(kernel.symbol("__pte2cachemode_tbl"), _CACHE_MODES)
    return tuple(names.get(mode, unnamed[index]) for index, mode in enumerate(table))


def _runs(vas: NDArray[np.uint64], alike: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs at even distances, and of the single rows between them.

    `alike` says of each row but the last whether the next one differs from it in its address alone.
    """
    steps = np.diff(vas)
    even = alike[1:] & alike[:-1] & (steps[1:] == steps[:-1])  # rows i, i+1 and i+2
    edges = np.flatnonzero(np.diff(np.concatenate(([False], even, [False])))).tolist()
    at = 0
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        start, past = max(first, at), end + 2  # two runs may meet in a row: it is the first one's
        if past - start >= _EVEN:
            yield from ((row, 1) for row in range(at, start))
            yield start, past - start
            at = past
    yield from ((row, 1) for row in range(at, len(vas)))


def _rows(mappings: NDArray[np.void], owner: int, address: int | None) -> NDArray[np.void]:
    """The mappings as ROWs: all, or those whose pages hold a physical address."""
    if address is not None:
        mappings = mappings[np.uint64(address) - mappings["pa"] < mappings["size"]]
    rows = np.empty(len(mappings), ROW)
    for name in MAPPING.names or ():
        rows[name] = mappings[name]
    rows["owner"] = owner
    return rows
