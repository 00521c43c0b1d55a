"""A hand-made guest for the screens, and the means to read a screen as a person does."""

from __future__ import annotations

import asyncio
import html
import re
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pytest
from textual.pilot import Pilot

from inspector.arch import MAPPING, X86_64_4LEVEL, walk
from inspector.errors import GuestDied, NoSuchFrame, NoSuchSymbol, NoSuchTask
from inspector.guest import Cpu, GuestInfo
from inspector.kernel.devices import Bar, PciDevice
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.memcg import ChargeKind, MemoryGroup
from inspector.kernel.owners import Owner
from inspector.kernel.pages import Page
from inspector.kernel.slab_objects import OBJECT, ObjectState
from inspector.kernel.slabs import SlabCache
from inspector.kernel.swap import SwapArea
from inspector.kernel.swiotlb import BounceBuffer
from inspector.kernel.vmalloc import BUSY, UNPURGED, VmallocArea
from inspector.kernel.vmas import Vma
from inspector.kernel.zones import Watermarks, Zone
from inspector.labs import Lab
from inspector.labs.story import (
    Check,
    Ending,
    EntryShown,
    Event,
    Exhibit,
    FrameShown,
    Look,
    Question,
    Seen,
    Step,
)
from inspector.labs.story import Frame as LabFrame
from inspector.linux import FreeCounts
from inspector.machine import Completed, CpuRegisters, RunState
from inspector.memory import MappedRam, RamBlock
from inspector.trace import Allocation, ErrorCode, Fault, FaultKind, FrameState, StackFrame
from inspector.trace.kinds import Entry, Evidence
from inspector.tui.app import InspectorApp
from inspector.tui.density import FrameCounts, Resident
from inspector.tui.dma import BufferKey, ChosenBuffer, Devices, FrameRow, buffer_key
from inspector.tui.places import Place
from inspector.tui.source import (
    AliasRow,
    CpuRow,
    Frames,
    Memory,
    Overview,
    PageView,
    SlabRow,
    Slabs,
    Source,
    Space,
    Swap,
    SwapRow,
    TaskRow,
    VmallocRow,
    VmaRow,
    WalkView,
)
from inspector.tui.tracing import Target, Traceable, Watched
from inspector.units import MIB, BusAddr, Pfn, PhysAddr, VirtAddr

Record = TypeVar("Record")

_PATIENCE = 60.0  # seconds; a bound for what must come, not a claim about how fast it comes
PAGE = 4096
USAGE = np.array([0, 256, 3310, 0, 12, 0, 512, 1, 5])
"""Frames by FrameState: what the overview shows of states()."""
CHECK = Check("The frame", True, "PFN 0x5", "PFN 0x5", "the page tables")
ROOT = PhysAddr(0x1000)
VA = VirtAddr(0x7F0000403123)
"""Mapped by hand: PGD 254, PUD 0, PMD 2, PTE 3, offset 0x123, to physical 0x5123."""
_MASK = (1 << 23) - 1  # half of all memory
SYMBOLS = {"init_task": 0xFFFFFFFF81234000, "init_mm": 0xFFFFFFFF81235000, "jiffies": 0xFFFFFFFF81236000}

INFO = GuestInfo(
    name="lab",
    release="6.1.0-test",
    build_id="abcdef0123456789",
    accel="TCG",
    memory=16 * MIB,
    cpus=1,
    paging="x86-64 4-level",
    kaslr_offset=0x2A00000,
    page_table_isolation=False,
    profile="cold",
    attach_seconds=0.1,
)


def task(pid: int, name: str, **changes: Any) -> TaskRow:
    """A task like any other."""
    row = TaskRow(pid, pid, 0, name, "S", 0, 0, 1, False, 8 * MIB, 32 * MIB, 64 << 10)
    return replace(row, **changes)


def vma(start: int, end: int, flags: int, name: str) -> Vma:
    """A VMA without a file."""
    return Vma(VirtAddr(start), VirtAddr(end), flags, 0, (0, 0), 0, name, VirtAddr(0xFFFF888000001000))


def zone(name: str, index: int, start: int, pages: int, free: int) -> Zone:
    """A zone whose watermarks are 10, 20 and 30 pages."""
    return Zone(
        node=0, index=index, name=name, start_pfn=Pfn(start), spanned=pages, present=pages, managed=pages,
        free=free, watermarks=Watermarks(10, 20, 30, 0), lowmem_reserve=(), free_by_order=(), per_cpu=(),
        address=VirtAddr(0xFFFF888000002000),
    )  # fmt: skip


def states() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """4096 frames: 256 reserved, then free, but one of page cache at 0x777 and 512 anonymous from 0x800.

    And slabs at 0xB00 (8 of dentry, 4 of inode_cache), 3 of a vmalloc area at 0xC00, 2 unmarked at 0xD00.
    """
    frames = np.full(4096, Owner.FREE, np.uint8)
    frames[:256] = Owner.RESERVED
    frames[0x777] = Owner.PAGE_CACHE
    frames[0x800:0xA00] = Owner.ANON
    frames[0xB00:0xB0C] = Owner.SLAB
    frames[0xC00:0xC03] = Owner.VMALLOC
    frames[0xD00:0xD02] = Owner.UNMARKED
    return frames


LABELS = ("", "worker (42)", "dentry", "inode_cache", "load_module+0x10/0x20")


def details() -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Which of LABELS the frames of states() have."""
    found = np.zeros(4096, np.uint32)
    found[0x800:0xA00] = 1
    found[0xB00:0xB08] = 2
    found[0xB08:0xB0C] = 3
    found[0xC00:0xC03] = 4
    return found


def slab(pfn: int) -> np.ndarray[Any, np.dtype[np.void]]:
    """Five objects of a page: three allocated, one free, one on a CPU's list."""
    found = np.zeros(5, OBJECT)
    found["address"] = 0xFFFF888000000000 + pfn * PAGE + np.arange(5, dtype=np.uint64) * np.uint64(800)
    found["state"] = [ObjectState.ALLOCATED] * 3 + [ObjectState.FREE, ObjectState.CPU]
    return found


def cache(name: str, size: int, slabs: int, active: int, **changes: Any) -> SlabCache:
    """A cache whose slabs are of one page."""
    each = PAGE // size
    made = SlabCache(
        address=VirtAddr(0xFFFF888000005000), name=name, object_size=size - 8, size=size, align=8,
        objects_per_slab=each, order=0, aliases=0, flags=0, flag_names=("RECLAIM_ACCOUNT",), ctor=None,
        sheaf_capacity=None, slabs=slabs, objects=slabs * each, active=active,
    )  # fmt: skip
    return replace(made, **changes)


def area(start: int, size: int, caller: str, **changes: Any) -> VmallocArea:
    """A vmalloc()ed area with a guard page."""
    made = VmallocArea(
        start=VirtAddr(start), end=VirtAddr(start + size), size=size, kind=BUSY, caller=caller,
        pages=size // PAGE - 1, phys=None, flags=("vmalloc",), pages_in_vmalloc=False,
        nodes={0: size // PAGE - 1},
    )  # fmt: skip
    return replace(made, **changes)


def pci_device(address: str, class_code: int, **changes: Any) -> PciDevice:
    """A device with a BAR that reaches 4 GiB, as none has told otherwise."""
    made = PciDevice(
        address=address, vendor=0x1234, device=0x11E8, subsystem_vendor=0, subsystem_device=0, revision=0,
        class_code=class_code, driver=None, module=None,
        bars=(Bar(0, "BAR 0", "MEM", PhysAddr(0xFEA00000), MIB, 0x40200),), irq=11, interrupts="INTx",
        enabled=1, bus_master=True, bridge_to=None, dma_mask=(1 << 32) - 1, coherent_dma_mask=(1 << 32) - 1,
        bus_dma_limit=None, dma_ops="direct", max_segment_size=65536, segment_boundary_mask=None,
        min_align_mask=None, numa_node=None, pools=(), managed=(), at=VirtAddr(0xFFFF888000007000),
    )  # fmt: skip
    return replace(made, **changes)


def dma_buffer(number: int, pfn: int, **changes: Any) -> DmaBuffer:
    """A buffer of 6 KiB in two frames, from the book of the second device's driver."""
    made = DmaBuffer(
        "0000:00:01.0", "pages", f"buffer {number}", BusAddr(pfn * PAGE),
        VirtAddr(0xFFFF888000000000 + pfn * PAGE), 6144, ((PhysAddr(pfn * PAGE), 6144),),
        "BIDIRECTIONAL", "edu", 42, None, 7,
    )  # fmt: skip
    return replace(made, **changes)


def swap_area(number: int, used: int) -> SwapArea:
    """A swap area of 1024 slots."""
    return SwapArea(
        number, f"/dev/zram{number}", "partition", 1024, used, -2, 0x13, VirtAddr(0xFFFF888000006000)
    )


def ram() -> MappedRam:
    """Four tables that map one page."""
    memory = bytearray(64 << 10)
    for address, entry in (
        (0x17F0, 0x2067), (0x2000, 0x3067), (0x3010, 0x4067), (0x4018, 0x8000000000005067)
    ):  # fmt: skip
        memory[address : address + 8] = entry.to_bytes(8, "little")
    return MappedRam(memory, [RamBlock(PhysAddr(0), len(memory), 0)])


def fault(number: int, **changes: Any) -> Fault:
    """The fault so numbered: a first write to the page so numbered of a VMA of 16; frame 5 came in."""
    address = VirtAddr((VA & ~0xFFF) + (number - 1) * PAGE + 0x18)
    after = walk(ram(), X86_64_4LEVEL, ROOT, VirtAddr(VA & ~0xFFF | 0x18))
    before = walk(
        MappedRam(bytearray(64 << 10), [RamBlock(PhysAddr(0), 64 << 10, 0)]), X86_64_4LEVEL, ROOT, address
    )
    values: dict[str, Any] = {
        "number": number, "pid": 42, "tgid": 42, "comm": "worker", "cpu": 0, "address": address,
        "error": ErrorCode.U | ErrorCode.W, "user": True, "ip": VirtAddr(0x401234),
        "place": "/bin/worker+0x1234",
        "vma": vma(VA & ~0xFFF, (VA & ~0xFFF) + 16 * PAGE, 0x3, "[heap]"),
        "before": before, "after": after, "returned": (frozenset(),), "frame": Pfn(5),
        "frame_before": FrameState(Pfn(5), "free", 0, 0),
        "frame_after": FrameState(Pfn(5), "anonymous", 2, 1),
        "kind": FaultKind.ANONYMOUS, "reason": "", "minor": 1, "major": 0,
        "evidence": Evidence(write=True, before=Entry(), after=Entry(pfn=5, size=PAGE, writable=True)),
    }  # fmt: skip
    return Fault(**(values | changes))


STACK = (
    "__alloc_pages+0x1d4", "vma_alloc_folio+0x93", "do_anonymous_page+0x5a", "handle_mm_fault+0x1ec",
    "do_user_addr_fault+0x1a1", "exc_page_fault+0x77", "asm_exc_page_fault+0x22",
)  # fmt: skip
FREEING = ("free_unref_page+0x1", "zap_pte_range+0x2", "exit_mmap+0x3", "do_exit+0x4")


def allocation(number: int, pfn: int, stack: tuple[str, ...] = STACK, **changes: Any) -> Allocation:
    """A page of the worker's memory is handed out."""
    values: dict[str, Any] = {
        "number": number, "freed": False, "pfn": Pfn(pfn), "order": 0, "gfp": 0x100CCA,
        "gfp_names": ("GFP_HIGHUSER_MOVABLE", "__GFP_ZERO"), "pid": 42, "tgid": 42, "comm": "worker",
        "cpu": 0,
        "stack": tuple(StackFrame(VirtAddr(0xFFFFFFFF81000000 + at), at_) for at, at_ in enumerate(stack)),
    }  # fmt: skip
    return Allocation(**(values | changes))


def freeing(number: int, pfn: int, **changes: Any) -> Allocation:
    """It is taken back."""
    return allocation(number, pfn, FREEING, freed=True, gfp=None, gfp_names=(), **changes)


def allocations() -> list[Allocation]:
    """A page at 0x900, a slab of 8 pages at 0xB00, 0x901 comes and goes, and 0x777 goes, held from before."""
    slab = ("alloc_pages+0x1", "allocate_slab+0x2", "kmem_cache_alloc+0x3")
    return [
        allocation(1, 0x900),
        allocation(2, 0xB00, slab, order=3, gfp=0xCC0, gfp_names=("GFP_KERNEL",)),
        allocation(3, 0x901),
        freeing(4, 0x901),
        freeing(5, 0x777),
    ]


class FakeTracing(Generic[Record]):
    """A trace of known records; with `lasts` it goes on when all of them are given. Counts what was asked."""

    def __init__(self, pid: int, records: list[Record], lasts: bool, error: Exception | None) -> None:
        self.pid = pid
        self._records = records
        self._lasts = lasts
        self._error = error
        self.given = 0
        self.closed = False
        self.others, self.lost = 7, 0

    def __enter__(self) -> Self:
        if self._error:
            raise self._error
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    @property
    def on(self) -> bool:
        return self._lasts or self.given < len(self._records)

    def next(self, timeout: float | None = None) -> Record | None:
        if self.given == len(self._records):
            time.sleep(0.01)
            return None
        self.given += 1
        return self._records[self.given - 1]


def no_story(stage: Any) -> Generator[Event, str | None, None]:
    """A lab's story that is never told: FakeSource.tell() has one of its own."""
    yield from ()


@dataclass
class FakeSource:
    """A Source whose answers are known. Tests change its parts, make it slow, and kill it."""

    rows: list[TaskRow] = field(
        default_factory=lambda: [
            task(1, "init", rss=4 * MIB),
            task(2, "kthreadd", kernel_thread=True, rss=0, vsz=0, page_tables=0),
            task(42, "worker", rss=12 * MIB, state="R", uid=1000),
        ]
    )
    areas: list[Vma] = field(
        default_factory=lambda: [
            vma(0x400000, 0x402000, 0x5, "/bin/worker"),
            vma(0x7F0000400000, 0x7F0000500000, 0x3, "[heap]"),
            vma(0x7FFD00000000, 0x7FFD00021000, 0x3, "[stack]"),
        ]
    )
    frame_states: Any = field(default_factory=states)
    frame_details: Any = field(default_factory=details)
    labels: tuple[str, ...] = LABELS
    vmap: tuple[str, int] = ("WB", 1)  # a page's cache mode and how many addresses it has there
    caches: list[SlabCache] = field(
        default_factory=lambda: [
            cache("dentry", 192, 8, 150),
            cache("inode_cache", 512, 4, 30),
            cache("never_used", 64, 0, 0),
        ]
    )
    vmalloc_areas: list[VmallocRow] = field(
        default_factory=lambda: [
            VmallocRow(area(0xFFFFC90000000000, 4 * PAGE, "load_module+0x10/0x20"), Pfn(0xC00)),
            VmallocRow(
                area(
                    0xFFFFC90000008000, 2 * PAGE, "hpet_enable+0x1/0x2", pages=0, flags=("ioremap",),
                    phys=PhysAddr(0xFED00000),
                ),
                Pfn(0xFED00),
            ),
            VmallocRow(area(0xFFFFC90000010000, 2 * PAGE, "", pages=0, kind=UNPURGED, flags=()), None),
        ]
    )  # fmt: skip
    swap_areas: tuple[SwapArea, ...] = (swap_area(0, 256),)
    swap_rows: tuple[SwapRow, ...] = (
        SwapRow(42, "worker", "swap", 0, 200, 200, VirtAddr(0x7F0000404000), (0x10, 0xD7), None),
        SwapRow(42, "worker", "PROT_NONE", None, 1, 1, VirtAddr(0x7F0000480000), None, Pfn(0x801)),
    )
    groups: tuple[MemoryGroup, ...] = ()
    pci: list[PciDevice] = field(
        default_factory=lambda: [
            pci_device("0000:00:00.0", 0x060000),
            pci_device("0000:00:01.0", 0x00FF00, driver="edu", dma_mask=_MASK, coherent_dma_mask=_MASK),
        ]
    )
    buffers: list[DmaBuffer] = field(default_factory=lambda: [dma_buffer(1, 0xE00), dma_buffer(2, 0xD00)])
    buffer_bytes: bytes = b"edu was here" + bytes(52)
    buffer_owner: Owner = Owner.UNMARKED
    swiotlb: BounceBuffer | None = None
    faults: list[Fault] = field(default_factory=lambda: [fault(number) for number in range(1, 6)])
    trace_lasts: bool = False
    trace_error: Exception | None = None
    tracing: FakeTracing[Any] | None = None
    allocations: list[Allocation] = field(default_factory=allocations)
    lab_names: tuple[str, ...] = ("first-touch", "second-sight")
    lab_open: bool = False
    check: Check = CHECK
    exhibits: tuple[Exhibit, ...] = ()
    console_text: str = "login:"
    run_state: RunState = field(default_factory=lambda: RunState("running", "running"))
    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    asked: list[str] = field(default_factory=list)
    listeners: list[Callable[[str], None]] = field(default_factory=list)
    dead: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        self.gate.wait(30)
        if self.dead:
            raise GuestDied("the guest is gone: QEMU was killed by signal 9")
        if self.error:
            raise self.error

    def state(self) -> RunState:
        return self.run_state

    def pause(self) -> None:
        self.run_state = RunState("paused", "paused by user")

    def resume(self) -> None:
        self.run_state = RunState("running", "running")

    def info(self) -> GuestInfo:
        return INFO

    def overview(self) -> Overview:
        self._ask("overview")
        registers = CpuRegisters(
            cpu=0, rip=VirtAddr(SYMBOLS["init_task"]), rsp=VirtAddr(0), rflags=0, cr0=0, cr2=VirtAddr(0),
            cr3=0, cr4=0, efer=0, gs_base=VirtAddr(0), kernel_gs_base=None, idt_base=VirtAddr(0), cpl=0,
            halted=False,
        )  # fmt: skip
        cpu = Cpu(0, registers, ROOT, "kernel and user", 42, "worker")
        counts = np.zeros((2, 11), np.int64)
        counts[1, 3] = 7
        return Overview(
            info=INFO,
            accel_reason="no KVM here",
            cpus=(CpuRow(cpu, "do_idle+0x10"),),
            zones=self._zones(),
            free=(FreeCounts(0, "Normal", ("Unmovable", "Movable"), counts),),
            usage=USAGE,
            page_size=PAGE,
        )

    def tasks(self, threads: bool) -> tuple[TaskRow, ...]:
        self._ask("threads" if threads else "tasks")
        extra = [task(43, "worker-thread", tgid=42)] if threads else []
        return (*self.rows, *extra)

    def space(self, pid: int) -> Space:
        self._ask(f"space {pid}")
        row = self._row(pid)
        mappings = np.zeros(2, MAPPING)
        mappings["va"], mappings["size"] = [0x400000, 0x7F0000403000], PAGE
        areas = [] if row.kernel_thread else self.areas
        rows = [
            VmaRow(area, PAGE if area.start in (0x400000, 0x7F0000400000) else 0, 0, 1365, 7 * MIB)
            for area in areas
        ]
        return Space(row, tuple(rows), Resident(mappings), ROOT, "x86-64 4-level", PAGE)

    def walk(self, place: Place) -> WalkView:
        self._ask(f"walk {place.va:#x}" if place.va is not None else "walk")
        if place.pid is not None:
            self._row(place.pid)
        found = walk(ram(), X86_64_4LEVEL, ROOT, VA if place.va is None else place.va)
        area = next((area for area in self.areas if area.start <= found.va < area.end), None)
        whose = f"worker ({place.pid})" if place.pid is not None else "the kernel"
        return WalkView(found, whose, "its root", place.pid, place.symbol, area if place.pid else None)

    def frames(self) -> Frames:
        self._ask("frames")
        counts = FrameCounts(self.frame_states, len(Owner))
        return Frames(counts, self.frame_details, self.labels, self._zones(), PAGE)

    def page(self, pfn: Pfn) -> PageView:
        self._ask(f"page {pfn:#x}")
        if pfn >= self.frame_states.size:
            raise NoSuchFrame(f"PFN {pfn:#x} has no struct page")
        page = Page(
            pfn=pfn, address=VirtAddr(0xFFFFEA0000000000 + pfn * 64), flags=0x14,
            flag_names=("uptodate", "lru"), refcount=3, mapcount=2, page_type=None,
            mapping=VirtAddr(0xFFFF888000003000), mapping_kind="anon", index=0x77, private=0,
            head=pfn, order=0, zone="Normal", node=0, migratetype="Movable",
            owner=Owner(int(self.frame_states[pfn])), owner_label="",
            charge=ChargeKind.USER, memory_group="/lab",
        )  # fmt: skip
        return PageView(
            page=page,
            owner=Owner(int(self.frame_states[pfn])),
            label=self.labels[int(self.frame_details[pfn])],
            owned=int((self.frame_details == self.frame_details[pfn]).sum()),
            charge="/lab, as user memory",
            objects=slab(pfn) if self.frame_states[pfn] == Owner.SLAB else np.empty(0, OBJECT),
            raw=bytes(range(64)),
            contents=b"hello, page" + bytes(21),
            aliases=(
                AliasRow("worker", 42, VirtAddr(0x7F0000403000), "rw-", PAGE, "WB"),
                AliasRow("vmalloc", None, VirtAddr(0xFFFFC90000000000), "r--", PAGE, *self.vmap),
            ),
            direct_map=VirtAddr(0xFFFF888000000000 + pfn * PAGE),
            zone=self._zones()[1],
            around_first=Pfn(0),
            around=self.frame_states[: pfn + 512],
            page_size=PAGE,
        )

    def slabs(self) -> Slabs:
        self._ask("slabs")
        rows = (SlabRow(each, max(0, each.active - 10)) for each in self.caches)
        return Slabs(tuple(rows), PAGE)

    def vmalloc(self) -> tuple[VmallocRow, ...]:
        self._ask("vmalloc")
        return tuple(self.vmalloc_areas)

    def swap(self) -> Swap:
        self._ask("swap")
        return Swap(self.swap_areas, self.swap_rows, 5, PAGE)

    def memory(self) -> Memory:
        self._ask("memory")
        lines = {"MemTotal": 16384, "MemFree": 4096, "Slab": 48, "AnonPages": 2048, "HugePages_Total": 3}
        return Memory(tuple(lines.items()), self.groups, PAGE)

    def devices(self, chosen: BufferKey | None) -> Devices:
        self._ask("devices")
        found = next((each for each in self.buffers if buffer_key(each) == chosen), None)
        looked = None
        if found:
            pfns = found.frames(PAGE).tolist()
            rows = [FrameRow(Pfn(pfn), self.buffer_owner, "", "Unmovable", 1, 0) for pfn in pfns]
            looked = ChosenBuffer(found, tuple(rows), len(rows), self.buffer_bytes)
        return Devices(
            tuple(self.pci),
            tuple(self.buffers),
            self._zones(),
            self.swiotlb,
            looked,
            PhysAddr(16 * MIB),
            PAGE,
        )

    def traceable(self, pid: int) -> Traceable:
        self._ask(f"traceable {pid}")
        mappings = np.zeros(1, MAPPING)
        mappings["va"], mappings["size"] = (VA & ~0xFFF) + 15 * PAGE, PAGE
        found = next((row for row in self.rows if row.pid == pid), None)
        return Traceable(pid, found.name if found else "", Resident(mappings) if found else None)

    def trace_faults(self, target: Target) -> FakeTracing[Fault]:
        return self._trace("trace", target, self.faults)

    def trace_allocations(self, target: Target) -> FakeTracing[Allocation]:
        frame = "" if target.pfn is None else f" of {target.pfn:#x}"
        return self._trace(f"allocations{frame}", target, self.allocations)

    def _trace(self, what: str, target: Target, records: list[Record]) -> FakeTracing[Record]:
        self.asked.append(f"{what} {target.who}{' and children' if target.children else ''}")
        pid = 0 if target.who is None else target.pid or 42
        self.tracing = made = FakeTracing(pid, records, self.trace_lasts, self.trace_error)
        return made

    def watched(self, pid: int, pfn: Pfn | None) -> Watched:
        self._ask(f"watched {pid} {pfn}")
        name = next((row.name for row in self.rows if row.pid == pid), "")
        blocks = np.array([0, 0, 0, 0, 1, 2, 1, 1], np.uint8)
        owner, label = (None, "") if pfn is None else (Owner.ANON, "worker (42)")
        kinds = ("Unmovable", "Movable", "Reclaimable")
        return Watched(pid, name, owner, label, self._zones(), blocks, 9, kinds, PAGE)

    def labs(self) -> tuple[Lab, ...]:
        return tuple(Lab(name, f"What about {name}?", "So it is.", no_story) for name in self.lab_names)

    def tell(self, name: str) -> Generator[Event, str | None, None]:
        self.asked.append(f"lab {name}")
        self.lab_open = True
        try:
            yield Step("A beginning", "Something is done.", ("page[0] = 7;",), ("A frame comes.",), 1)
            self.gate.wait(30)
            frame = LabFrame(Pfn(5), PhysAddr(0x5000), "anon: worker (42)", 1, 1, ("lru",), 0)
            now = Look("program", walk(ram(), X86_64_4LEVEL, ROOT, VA), "", frame)
            other = walk(ram(), X86_64_4LEVEL, ROOT, VirtAddr(VA + PAGE))
            before = Look("program", other, "empty, nothing is there", None)
            exhibits = (EntryShown(now, before), FrameShown("frame", frame, replace(frame, mapcount=2)))
            yield Seen((*exhibits, *self.exhibits), (self.check,), "As was to be seen.")
            if not self.check.passed:
                yield Ending(False, f"step 1: {self.check.complaint}")
                return
            answer = yield Question("two and two =", "what 2 + 2 gives", "4")
            yield Ending(answer == "4", "So it is.")
        finally:
            self.lab_open = False

    def console(self, lines: int) -> str:
        return self.console_text

    def run(self, command: str) -> Completed:
        return Completed(f"ran {command}".encode(), b"", 0, command)

    def symbol(self, name: str) -> VirtAddr:
        if name not in SYMBOLS:
            raise NoSuchSymbol(f"the kernel has no symbol {name!r}")
        return VirtAddr(SYMBOLS[name])

    def complete(self, prefix: str, limit: int) -> list[str]:
        return sorted(name for name in SYMBOLS if name.startswith(prefix))[:limit]

    def on_death(self, listener: Callable[[str], None]) -> None:
        self.listeners.append(listener)

    def die(self) -> None:
        """QEMU is gone: reads fail from now on, and whoever asked is told."""
        self.dead = True
        for listener in self.listeners:
            listener("QEMU was killed by signal 9")

    def _row(self, pid: int) -> TaskRow:
        for row in self.rows:
            if row.pid == pid:
                return row
        raise NoSuchTask(f"no task has PID {pid}")

    @staticmethod
    def _zones() -> tuple[Zone, ...]:
        return zone("DMA", 0, 0, 1024, 700), zone("Normal", 2, 1024, 3072, 15)


class Screen:
    """An app under test: keys in, text out."""

    def __init__(self, app: InspectorApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        """Press keys and let the app act on them."""
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Type text, a key a character."""
        await self.press(*(" " if c == " " else c for c in text))

    async def shows(self, *wanted: str) -> str:
        """Wait until the screen shows all of these; where it never does, fail with the screen."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            text = self.text()
            if all(each in text for each in wanted):
                return text
            await self.pilot.pause(0.02)
        missing = [each for each in wanted if each not in self.text()]
        raise AssertionError(f"the screen does not show {missing}:\n{self.text()}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that shows nowhere."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if condition():
                return
            await self.pilot.pause(0.02)
        raise AssertionError(f"it did not come to pass; the screen is:\n{self.text()}")

    def text(self) -> str:
        """The screen's characters, taken from its picture."""
        svg = self.app.export_screenshot()
        cell = 12.2  # the picture's units to a character
        lines: dict[float, list[tuple[int, str]]] = {}
        body = svg[svg.index('-matrix">') :]
        for x, y, text in re.findall(
            r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', body, re.S
        ):
            line = lines.setdefault(float(y), [])
            line.append((round(float(x) / cell), html.unescape(text).replace("\xa0", " ").rstrip("\n")))
        shown = []
        for y in sorted(lines):
            row = ""
            for column, text in sorted(lines[y]):
                row = row.ljust(column) + text
            shown.append(row)
        return "\n".join(shown)


@pytest.fixture
def source() -> FakeSource:
    """A guest of our own making."""
    return FakeSource()


@pytest.fixture
def play(source: FakeSource) -> Callable[..., None]:
    """Gives what runs a coroutine on an app over the fake guest, at a size of the terminal."""

    def run(script: Callable[[Screen], Awaitable[None]], size: tuple[int, int] = (100, 30)) -> None:
        try:
            run_script(source, script, size)
        finally:
            source.gate.set()

    return run


@pytest.fixture
def play_live() -> Callable[..., None]:
    """As play, over a source of the test's own."""
    return run_script


def run_script(
    source: Source, script: Callable[[Screen], Awaitable[None]], size: tuple[int, int] = (120, 36)
) -> None:
    """Run a coroutine on an app."""

    async def main() -> None:
        app = InspectorApp(source)
        async with app.run_test(size=size, notifications=True) as pilot:
            await script(Screen(app, pilot))

    asyncio.run(main())
