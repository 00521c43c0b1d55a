"""The lines of /proc/meminfo as bars, each with a way to what it counts; and the memory cgroups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.kernel.memcg import MemoryGroup
from inspector.kernel.owners import Owner
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Memory, Source
from inspector.tui.views.base import Go
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import KIB, format_size

_FILL = 16


@dataclass(frozen=True, slots=True)
class Line:
    """A number: `size` in bytes, None for a count; its share of all memory; what it means; where it leads."""

    name: str
    value: str
    size: int | None
    share: float
    meaning: str
    color: str
    place: Place | None


def _lit(owner: Owner) -> Place:
    return Place(ViewName.FRAMES, owner=int(owner))


_MEANINGS: dict[str, tuple[str, Owner | ViewName | None]] = {
    "MemTotal": ("all that the page allocator was given", ViewName.FRAMES),
    "MemFree": ("in free blocks and on CPUs' lists", Owner.FREE),
    "MemAvailable": ("could be had without swapping: an estimate", None),
    "Buffers": ("page cache of block devices", Owner.PAGE_CACHE),
    "Cached": ("page cache of files, shared memory included", Owner.PAGE_CACHE),
    "SwapCached": ("in memory and in a swap slot", Owner.SWAP_CACHE),
    "Active": ("used of late: the last to be reclaimed", None),
    "Inactive": ("not used of late: the first to be reclaimed", None),
    "Active(anon)": ("of that, without a file", Owner.ANON),
    "Inactive(anon)": ("of that, without a file, shared memory included", Owner.ANON),
    "Active(file)": ("of that, from files", Owner.PAGE_CACHE),
    "Inactive(file)": ("of that, from files", Owner.PAGE_CACHE),
    "Unevictable": ("locked, or else not to be reclaimed", None),
    "Mlocked": ("locked by mlock()", None),
    "SwapTotal": ("room in swap areas", ViewName.SWAP),
    "SwapFree": ("of that, not taken", ViewName.SWAP),
    "Zswap": ("memory that zswap takes, compressed", ViewName.SWAP),
    "Zswapped": ("what is in it, before compression", ViewName.SWAP),
    "Dirty": ("to be written back", Owner.PAGE_CACHE),
    "Writeback": ("being written back", Owner.PAGE_CACHE),
    "AnonPages": ("user memory without a file, mapped", Owner.ANON),
    "Mapped": ("files' pages that tasks map", Owner.PAGE_CACHE),
    "Shmem": ("shared memory and tmpfs", Owner.SHMEM),
    "KReclaimable": ("the kernel's own that it could give back", ViewName.SLABS),
    "Slab": ("in slab caches", ViewName.SLABS),
    "SReclaimable": ("of that, caches that can shrink", ViewName.SLABS),
    "SUnreclaim": ("of that, caches that cannot", ViewName.SLABS),
    "KernelStack": ("a stack for each thread", Owner.KERNEL_STACK),
    "PageTables": ("page tables of tasks", Owner.PAGE_TABLE),
    "SecPageTables": ("page tables of hypervisors and IOMMUs", None),
    "NFS_Unstable": ("no longer counted: always 0", None),
    "Bounce": ("bounce buffers of block devices", None),
    "WritebackTmp": ("FUSE's copies while they are written back", None),
    "CommitLimit": ("may be promised to tasks, where overcommitting is off", None),
    "Committed_AS": ("promised to tasks", ViewName.TASKS),
    "VmallocTotal": ("addresses that vmalloc has", ViewName.VMALLOC),
    "VmallocUsed": ("pages of vmalloc areas", ViewName.VMALLOC),
    "VmallocChunk": ("no longer counted: always 0", None),
    "Percpu": ("variables that each CPU has for itself", Owner.PERCPU),
    "HardwareCorrupted": ("taken out of use: hardware errors", None),
    "AnonHugePages": ("anonymous memory in huge pages", Owner.ANON),
    "Hugetlb": ("huge pages of all sizes set aside", Owner.HUGETLB),
    "DirectMap4k": ("of the direct map, in 4 KiB pages", None),
    "DirectMap2M": ("of the direct map, in 2 MiB pages", None),
    "DirectMap1G": ("of the direct map, in 1 GiB pages", None),
}
_BEYOND = ("VmallocTotal", "CommitLimit", "Committed_AS")  # not parts of memory
_COUNTS = ("HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp")


def lines(memory: Memory) -> list[Line]:
    """Every number of a snapshot, in the kernel's order, then the groups."""
    values = dict(memory.lines)
    total = max(values.get("MemTotal", 0) * KIB, 1)
    swap = max(values.get("SwapTotal", 0) * KIB, 1)
    found = []
    for name, value in memory.lines:
        meaning, leads = _MEANINGS.get(name, ("", None))
        place = _lit(leads) if isinstance(leads, Owner) else Place(leads) if leads else None
        color = palette.OWNERS[leads].color if isinstance(leads, Owner) else palette.ACCENT
        if name in _COUNTS:
            found.append(Line(name, str(value), None, 0.0, "huge pages", color, _lit(Owner.HUGETLB)))
            continue
        size = value * KIB
        share = 0.0 if name in _BEYOND else size / (swap if name.startswith("Swap") else total)
        found.append(Line(name, format_size(size), size, share, meaning, color, place))
    return found + [
        _group(group, memory.page_size, total) for group in memory.groups if group.usage is not None
    ]


def _group(group: MemoryGroup, page_size: int, total: int) -> Line:
    """A memory cgroup as a line; its share is of its limit where it has one."""
    used = (group.usage or 0) * page_size
    limit = None if group.max is None else group.max * page_size
    words = ["memory cgroup", *([] if group.online else ["that is gone"])]
    for name, pages in (("max", group.max), ("high", group.high), ("swap", group.swap_usage or None)):
        words += [] if pages is None else [f"{name} {format_size(pages * page_size)}"]
    return Line(
        group.path or "/",
        format_size(used),
        used,
        used / (limit or total),
        ", ".join(words),
        palette.GOOD,
        None,
    )


COLUMNS: tuple[Column[Line], ...] = (
    Column(
        "line", lambda row: row.name, lambda row: row.name.casefold(), 17, color=lambda row: _name_color(row)
    ),
    Column("size", lambda row: row.value, lambda row: row.size or 0, 10, True, falls=True),
    Column(
        "share",
        lambda row: bar(row.share, _FILL),
        lambda row: row.share,
        _FILL,
        color=lambda row: row.color,
        falls=True,
    ),
    Column(
        "%", lambda row: f"{row.share:.1%}" if row.share else "-", lambda row: row.share, 6, True, falls=True
    ),
    Column("which is", lambda row: row.meaning, lambda row: row.meaning, 0, color=lambda row: palette.DIM),
)


def _name_color(row: Line) -> str:
    return f"bold {palette.FOREGROUND}" if row.size else palette.FAINT


class MemoryView(ListView[Memory, Line]):
    """Counters; Enter goes to what a line counts."""

    NAME = ViewName.MEMORY
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.MEMORY])

    def compose(self) -> ComposeResult:
        """Summary, table, filter."""
        yield Static(id="memory-summary", classes="summary", markup=False)
        yield VirtualTable(
            COLUMNS, lambda row: row.name, lambda row: f"{row.name} {row.meaning}", id="memory-table"
        )
        yield self.filter_input()

    def request(self, place: Place) -> Callable[[Source], Memory]:
        """All counters."""
        return lambda source: source.memory()

    def show(self, data: Memory) -> None:
        """Rows and summary."""
        super().show(data)
        self.table.set_rows(lines(data))
        text = Text(no_wrap=True, overflow="ellipsis")
        groups = sum(group.usage is not None for group in data.groups)
        text.append("/proc/meminfo", f"bold {palette.FOREGROUND}")
        text.append(" as shares of all memory, swap of all swap · ", palette.DIM)
        text.append(f"{groups}", f"bold {palette.FOREGROUND}")
        text.append(f" memory cgroup{'s' if groups != 1 else ''}", palette.DIM)
        self.query_one("#memory-summary", Static).update(text)

    def action_open(self) -> None:
        """What the line counts."""
        if self.table.row and self.table.row.place:
            self.post_message(Go(self.table.row.place))
