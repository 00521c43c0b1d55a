"""Frozen snapshots of a guest: all that the views draw, read on the poller's thread and never after."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.errors import NoSuchFrame
from inspector.kernel.owners import Owner
from inspector.tui.density import FrameCounts, Resident
from inspector.tui.dma import BufferKey, Devices
from inspector.tui.places import Place
from inspector.units import Pfn, PhysAddr, VirtAddr

if TYPE_CHECKING:
    from inspector.arch import Walk
    from inspector.guest import Cpu, GuestInfo
    from inspector.kernel.memcg import MemoryGroup
    from inspector.kernel.pages import Page
    from inspector.kernel.slabs import SlabCache
    from inspector.kernel.swap import SwapArea
    from inspector.kernel.vmalloc import VmallocArea
    from inspector.kernel.vmas import Vma
    from inspector.kernel.zones import Zone
    from inspector.labs import Lab
    from inspector.labs.story import Event
    from inspector.linux import FreeCounts
    from inspector.machine import Completed, RunState
    from inspector.snapshots import FrameDiff
    from inspector.trace import Allocation, Fault
    from inspector.tui.tracing import Target, Traceable, Tracing, Watched


@dataclass(frozen=True, slots=True)
class CpuRow:
    """A CPU and the symbol at its RIP (`name+0x1a`), or the bare address."""

    cpu: Cpu
    at: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The guest at a glance. `usage` counts frames by FrameState."""

    info: GuestInfo
    accel_reason: str
    cpus: tuple[CpuRow, ...]
    zones: tuple[Zone, ...]
    free: tuple[FreeCounts, ...]
    usage: NDArray[np.int64]
    page_size: int


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as the list shows it; sizes in bytes, 0 for a kernel thread."""

    pid: int
    tgid: int
    ppid: int
    name: str
    state: str
    uid: int
    cpu: int
    threads: int
    kernel_thread: bool
    rss: int
    vsz: int
    page_tables: int


@dataclass(frozen=True, slots=True)
class VmaRow:
    """A VMA, and how many of its bytes are mapped: at all, and by large pages.

    `pss` shares each page out among all that map it, and `swap` is what lies in swap, as in smaps.
    """

    vma: Vma
    resident: int
    large: int
    pss: int
    swap: int


@dataclass(frozen=True, slots=True)
class Space:
    """A task's address space. `root` is the physical address of its topmost table."""

    task: TaskRow
    vmas: tuple[VmaRow, ...]
    resident: Resident
    root: PhysAddr
    paging: str
    page_size: int


@dataclass(frozen=True, slots=True)
class WalkView:
    """A walk, whose page tables it took (`init (1)`, `the kernel`, `CPU 0`), and what lies at the address.

    Where the entry that faults is not empty, `holds` says what Linux keeps in it, and `hidden` is the frame
    that it names: a PROT_NONE page's, one that is being moved... `swapped` tells that it is in a swap area.
    """

    walk: Walk
    whose: str
    root_kind: str
    pid: int | None
    symbol: str | None
    vma: Vma | None
    hidden: Pfn | None = None
    holds: str = ""
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Frames:
    """The owner of every frame from PFN 0 on: `counts.states` are Owners, `details` index `labels`.

    `changes` are those since a mark; None where there is none.
    """

    counts: FrameCounts
    details: NDArray[np.uint32]
    labels: tuple[str, ...]
    zones: tuple[Zone, ...]
    page_size: int
    changes: FrameDiff | None = None

    def since(self, mark: Frames) -> Frames:
        """The same, with what changed hands since an earlier moment."""
        from inspector.snapshots import Held, compare

        before, now = (Held(each.counts.states, each.details, each.labels) for each in (mark, self))
        return replace(self, changes=compare(before, now))

    def label(self, pfn: Pfn) -> str:
        """Which one of its owner's objects the frame belongs to; empty where that is not known."""
        return self.labels[int(self.details[pfn])]

    def of(self, pfn: Pfn) -> tuple[Owner, str]:
        """A frame's owner, and which one. Raises NoSuchFrame."""
        if not pfn < len(self.counts):
            raise NoSuchFrame(f"PFN {pfn:#x} is past the last frame")
        return Owner(int(self.counts.states[pfn])), self.label(pfn)

    def match(self, owner: int, label: str | None) -> NDArray[np.bool_]:
        """Which frames are an owner's, or one of its objects'."""
        found: NDArray[np.bool_] = self.counts.states == owner
        if label is not None:
            index = self.labels.index(label) if label in self.labels else -1
            found &= self.details == index
        return found


@dataclass(frozen=True, slots=True)
class AliasRow:
    """A virtual address of a frame: a task's (`who` is its name) or the kernel's (`who` is the region).

    `rights` are as in `rwx`; `size` is the page's that maps it, in bytes; `count` tells how many such
    addresses there are from `va` on, at even distances.
    """

    who: str
    pid: int | None
    va: VirtAddr
    rights: str
    size: int
    cache_mode: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class PageView:
    """A frame: its struct page, read and raw, its first bytes, and owners from PFN `around_first` on.

    `owner` and `label` say whose it is, `owned` how many frames that object has; `charge` is the memory
    cgroup that pays for it, empty for none. `objects` are those of the slab that the frame is in, as
    slab_objects.OBJECT; none where it is in none.
    """

    page: Page
    owner: Owner
    label: str
    owned: int
    charge: str
    objects: NDArray[np.void]
    raw: bytes
    contents: bytes
    aliases: tuple[AliasRow, ...]
    direct_map: VirtAddr
    zone: Zone | None
    around_first: Pfn
    around: NDArray[np.uint8]
    page_size: int


@dataclass(frozen=True, slots=True)
class SlabRow:
    """A slab cache, and how many of its objects the kernel holds: those that wait on CPUs are left out.

    `held` is None while that cannot be told.
    """

    cache: SlabCache
    held: int | None


@dataclass(frozen=True, slots=True)
class Slabs:
    """Every slab cache. `page_size` in bytes."""

    caches: tuple[SlabRow, ...]
    page_size: int


@dataclass(frozen=True, slots=True)
class VmallocRow:
    """A vmalloc area, and the frame that its first page is in; None where nothing is mapped there."""

    area: VmallocArea
    pfn: Pfn | None


@dataclass(frozen=True, slots=True)
class SwapRow:
    """What a task has of one kind of entry that is not present (`use`: `swap`, `migration read`...).

    `pages` in `count` entries; `va` is the lowest address, `offsets` the lowest and highest slot (or None),
    `pfn` the frame that the first entry names.
    """

    pid: int
    name: str
    use: str
    type: int | None
    count: int
    pages: int
    va: VirtAddr
    offsets: tuple[int, int] | None
    pfn: Pfn | None


@dataclass(frozen=True, slots=True)
class Swap:
    """Swap areas, what tasks have there and elsewhere than in memory, and frames of the swap cache."""

    areas: tuple[SwapArea, ...]
    rows: tuple[SwapRow, ...]
    cached: int
    page_size: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The lines of /proc/meminfo, in KiB but for counts of huge pages, and the memory cgroups."""

    lines: tuple[tuple[str, int], ...]
    groups: tuple[MemoryGroup, ...]
    page_size: int


class Source(Protocol):
    """What the UI asks of a guest. All but symbol() and complete() may take long: poller's thread only."""

    def state(self) -> RunState:
        """Running or stopped, and why."""

    def pause(self) -> None:
        """Stop the guest's CPUs."""

    def resume(self) -> None:
        """Let the guest run."""

    def info(self) -> GuestInfo:
        """What guest this is."""

    def overview(self) -> Overview:
        """The guest at a glance."""

    def tasks(self, threads: bool) -> tuple[TaskRow, ...]:
        """Every process, or every thread."""

    def space(self, pid: int) -> Space:
        """A task's address space. Raises NoSuchTask."""

    def walk(self, place: Place) -> WalkView:
        """An address followed; without one the RIP of CPU 0 from its CR3. Raises NoSuchTask, UsageError."""

    def frames(self) -> Frames:
        """All of memory, by owner."""

    def page(self, pfn: Pfn) -> PageView:
        """One frame. Raises NoSuchFrame."""

    def slabs(self) -> Slabs:
        """Every slab cache."""

    def vmalloc(self) -> tuple[VmallocRow, ...]:
        """Every vmalloc area, by address."""

    def swap(self) -> Swap:
        """Swap areas, and what is swapped out."""

    def memory(self) -> Memory:
        """Counters of all memory."""

    def devices(self, chosen: BufferKey | None) -> Devices:
        """PCI devices and their buffers; frames and first bytes of the one chosen."""

    def traceable(self, pid: int) -> Traceable:
        """A task to trace, or one that is gone."""

    def trace_faults(self, target: Target) -> Tracing[Fault]:
        """Page faults of a process, or of a command that is started for it: on a thread of its own.

        Raises SymbolsError, UsageError.
        """

    def watched(self, pid: int, pfn: Pfn | None) -> Watched:
        """What a trace of allocations may be about, and where frames lie. Raises CorruptGuest."""

    def trace_allocations(self, target: Target) -> Tracing[Allocation]:
        """Pages that tasks allocate and free: on a thread of its own.

        Raises SymbolsError, NoSuchFrame, UsageError.
        """

    def labs(self) -> tuple[Lab, ...]:
        """The labs that there are."""

    def tell(self, name: str) -> Generator[Event, str | None, None]:
        """Play a lab: each event as it happens; on a thread of its own. Raises UsageError, MachineError."""

    def console(self, lines: int) -> str:
        """The console's last lines."""

    def run(self, command: str) -> Completed:
        """Run a command in the guest."""

    def symbol(self, name: str) -> VirtAddr:
        """The address of a symbol. Raises NoSuchSymbol."""

    def complete(self, prefix: str, limit: int) -> list[str]:
        """Symbols that begin so."""

    def on_death(self, listener: Callable[[str], None]) -> None:
        """Call `listener(why)`, on any thread, when the guest is gone."""
