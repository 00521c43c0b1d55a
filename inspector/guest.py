"""The guest: the one place that puts machine, memory, names and Linux's objects together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from inspector import images, symbols
from inspector.arch import AddressSpace, PagingFormat, Walk, paging_of
from inspector.errors import MachineError, UsageError
from inspector.kernel import (
    buddy,
    cpus,
    ksyms,
    memcg,
    meminfo,
    modules,
    owners,
    pages,
    resources,
    slab_objects,
    slabs,
    swap,
    tasks,
    vmalloc,
    zones,
)
from inspector.kernel.memcg import MemoryGroup
from inspector.kernel.memmap import MemMap
from inspector.kernel.modules import Module
from inspector.kernel.owners import Owners
from inspector.kernel.pages import Page
from inspector.kernel.resources import Resource
from inspector.kernel.rmap import Alias, ReverseMap
from inspector.kernel.slab_objects import SlabObject
from inspector.kernel.slabs import SlabCache
from inspector.kernel.swap import SwapArea
from inspector.kernel.tasks import Task
from inspector.kernel.vmalloc import VmallocArea
from inspector.kernel.zones import Zone
from inspector.machine import Completed, CpuRegisters, Machine, RunState
from inspector.memory import MappedRam, RamBlock
from inspector.symbols import Kernel, Symbol
from inspector.units import Pfn, PhysAddr, VirtAddr, printable


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU: its registers, whose page tables its CR3 names, and the task that it runs."""

    number: int
    registers: CpuRegisters
    root: PhysAddr
    root_kind: str
    pid: int
    comm: str


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What guest this is; `memory` and `kaslr_offset` in bytes, `attach_seconds` to find names and types."""

    name: str
    release: str
    build_id: str
    accel: str
    memory: int
    cpus: int
    paging: str
    kaslr_offset: int
    page_table_isolation: bool
    profile: str
    attach_seconds: float


@dataclass(frozen=True, slots=True)
class FreeCounts:
    """One zone's free blocks: `counts[migratetype, order]`, as in /proc/pagetypeinfo."""

    node: int
    zone: str
    migratetypes: tuple[str, ...]
    counts: NDArray[np.int64]


class Guest:
    """A running guest that can be asked. Close it, or use it as a context manager.

    Answers that read much pause the guest for some milliseconds, so that they are whole; with `live` set they
    are read while it runs and may be torn.
    """

    def __init__(self, machine: Machine, *, vmlinux: Path | None = None) -> None:
        """Attach to a machine whose Linux is up. Raises SymbolsError where no kernel is found."""
        self.machine = machine
        self.live = False
        self._lock = threading.RLock()
        self._depth = 0
        self._holder = 0
        blocks = tuple(RamBlock(PhysAddr(start), size, offset) for start, size, offset in machine.blocks)
        self.memory = MappedRam.from_fd(machine.ram_fd, blocks)
        try:
            started = time.perf_counter()
            self.kernel: Kernel = self._attach(vmlinux)
            self._attach_seconds = time.perf_counter() - started
        except BaseException:
            self.memory.close()
            raise
        self.kernel.still = self.still

    def _attach(self, vmlinux: Path | None) -> Kernel:
        """Names and types, while the guest stands still."""
        self.machine.hold()
        try:
            registers = self.machine.registers()
            return symbols.attach(self.memory, registers, cache=images.cache_dir(), vmlinux=vmlinux)
        finally:
            if self.machine.alive:
                self.machine.release()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the guest if it is ours, let go of it otherwise. May be called twice."""
        self.memory.close()
        self.machine.close()

    # The machine

    @property
    def running(self) -> bool:
        """Whether the guest's CPUs run."""
        return self.machine.running

    def state(self) -> RunState:
        """Running or stopped, and why."""
        return self.machine.state()

    def pause(self) -> None:
        """Stop the guest's CPUs, whoever else stopped them. Raises GuestDied."""
        self.machine.pause()

    def resume(self) -> None:
        """Let the guest run, whoever stopped it. Raises GuestDied."""
        self.kernel.space.flush()
        self.machine.resume()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The guest stands still inside. Nests; a guest that was stopped before stays so after."""
        with self._lock:
            if not self._depth:
                self.machine.hold()
                self.kernel.space.flush()
            self._depth += 1
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth and self.machine.alive:
                    self.machine.release()

    def still(self) -> AbstractContextManager[None]:
        """For a compound answer: paused(), unless `live` says to read while the guest runs."""
        if not self.live:
            return self.paused()
        self.kernel.space.flush()
        return nullcontext()

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Run a shell command in the guest; `timeout` in seconds.

        Raises CommandTimeout, GuestDied, and MachineError where the guest stands still or has no agent.
        """
        self._check_runs()
        return self.machine.run(command, timeout)

    def spawn(self, command: str) -> int:
        """Start a command that stays; gives its PID. Raises as run()."""
        self._check_runs()
        return self.machine.spawn(command)

    def _check_runs(self) -> None:
        """A guest that stands still would never answer."""
        state = self.machine.state()
        ours = self._depth and self._holder == threading.get_ident()
        if ours or (state.kind in ("paused", "breakpoint") and not state.held):
            reason = "inside paused()" if ours else state.reason
            raise MachineError(f"the guest stands still ({reason}): let it run before it is to run a command")

    # Names

    def info(self) -> GuestInfo:
        """What guest this is."""
        with self.still():
            return GuestInfo(
                name=self.machine.name,
                release=printable(self.kernel.release),
                build_id=self.kernel.build_id,
                accel=self.machine.accel,
                memory=self.machine.memory_size,
                cpus=self.machine.cpus,
                paging=self.kernel.space.format.name,
                kaslr_offset=self.kernel.kaslr_offset,
                page_table_isolation=cpus.page_table_isolation(self.kernel),
                profile=self.kernel.profile,
                attach_seconds=self._attach_seconds,
            )

    def symbol(self, name: str) -> VirtAddr:
        """The address of a symbol of the kernel, or else of a loaded module. Raises NoSuchSymbol."""
        with self.still():
            return ksyms.address_of(self.kernel, name)

    def symbol_at(self, address: VirtAddr) -> tuple[Symbol, int] | None:
        """The symbol, the kernel's or a module's, that an address lies in and the offset into it in bytes.

        None where none is near.
        """
        with self.still():
            return ksyms.symbol_at(self.kernel, address)

    # Bytes

    def read_phys(self, address: PhysAddr, size: int) -> bytes:
        """Bytes at a guest-physical address. Raises OutsideRam."""
        return self.memory.read(address, size)

    def read_virt(self, address: VirtAddr, size: int, task: Task | None = None) -> bytes:
        """Bytes at a virtual address of a task, or of the kernel. Raises PageFault, OutsideRam."""
        with self.still():
            return (task.space if task else self.kernel.space).read(address, size)

    # Page tables

    def cpus(self) -> list[Cpu]:
        """Every CPU with its registers, page table root and current task."""
        with self.still():
            found = []
            for registers in self.machine.registers():
                _, root = self._paging(registers)
                current = cpus.current_task(self.kernel, registers.cpu)
                found.append(
                    Cpu(
                        number=registers.cpu,
                        registers=registers,
                        root=root,
                        root_kind=cpus.root_kind(self.kernel, root),
                        pid=current.int("pid"),
                        comm=printable(current.text("comm")),
                    )
                )
            return found

    def space(self, *, cpu: int | None = None, root: PhysAddr | None = None) -> AddressSpace:
        """The address space that a CPU's CR3 names, or any root; the kernel's own where neither is given."""
        with self.still():
            if cpu is not None and root is not None:
                raise UsageError("give a CPU or a root, not both")
            if cpu is not None:
                registers = self.machine.registers()
                if not 0 <= cpu < len(registers):
                    raise UsageError(f"no CPU {cpu}; this guest has 0 to {len(registers) - 1}")
                return AddressSpace(self.memory, *self._paging(registers[cpu]))
            if root is not None:
                return AddressSpace(self.memory, self.kernel.space.format, root)
            return self.kernel.space

    def walk(self, va: VirtAddr, *, cpu: int | None = None, root: PhysAddr | None = None) -> Walk:
        """Follow an address from a CPU's CR3, any root, or the kernel's own; task.walk() for a task's."""
        with self.still():
            return self.space(cpu=cpu, root=root).walk(va)

    @staticmethod
    def _paging(registers: CpuRegisters) -> tuple[PagingFormat, PhysAddr]:
        return paging_of(registers.cr0, registers.cr3, registers.cr4, registers.efer)

    # Linux

    def tasks(self, threads: bool = False) -> list[Task]:
        """Every process by PID, kernel threads too; with `threads` every thread."""
        with self.still():
            return tasks.tasks(self.kernel, threads)

    def task(self, pid: int) -> Task:
        """The process or thread with that PID. Raises NoSuchTask."""
        with self.still():
            return tasks.task(self.kernel, pid)

    def zones(self) -> list[Zone]:
        """Every zone of every node: sizes, watermarks, free counts, in pages."""
        with self.still():
            return zones.zones(self.kernel)

    def buddy(self) -> list[FreeCounts]:
        """Free blocks by migratetype and order, for each zone that has memory."""
        with self.still():
            names = buddy.migratetypes(self.kernel)
            blocks = buddy.free_blocks(self.kernel, MemMap(self.kernel))
            return [
                FreeCounts(zone.node, zone.name, names, buddy.counts(blocks, zone, len(names)))
                for zone in zones.zones(self.kernel)
                if zone.populated
            ]

    def page(self, pfn: Pfn, owners: Owners | None = None) -> Page:
        """All that is known of a frame: its struct page, whose it is, what is charged. Raises NoSuchFrame.

        `owners` are owners() of the same moment: worth giving where many pages are asked for.
        """
        with self.still():
            return pages.page(self.kernel, pfn, owners)

    def frames(self) -> NDArray[np.void]:
        """A row a PFN for all of memory, as kernel.owners.FRAME; owners() has the labels too."""
        return self.owners().rows

    def slabs(self) -> list[SlabCache]:
        """Every slab cache, with the counts of /proc/slabinfo. Raises CorruptGuest."""
        with self.still():
            return slabs.slabs(self.kernel)

    def slab_objects(self, cache: SlabCache | None = None) -> NDArray[np.void]:
        """Every object of a slab cache, or of all: allocated, or where it waits. Raises CorruptGuest."""
        with self.still():
            return slab_objects.objects(self.kernel, cache)

    def slab_object(self, address: VirtAddr) -> SlabObject | None:
        """The slab object that an address lies in; None where none is."""
        with self.still():
            return slab_objects.object_at(self.kernel, address)

    def vmalloc_areas(self) -> list[VmallocArea]:
        """Every area of the vmalloc region, as /proc/vmallocinfo lists them. Raises CorruptGuest."""
        with self.still():
            return vmalloc.areas(self.kernel)

    def modules(self) -> list[Module]:
        """Every loaded module and where it lies. Raises CorruptGuest."""
        with self.still():
            return modules.modules(self.kernel)

    def iomem(self) -> list[Resource]:
        """What each range of physical addresses is for, as /proc/iomem shows it. Raises CorruptGuest."""
        with self.still():
            return resources.iomem(self.kernel)

    def meminfo(self) -> dict[str, int]:
        """The numbers of /proc/meminfo, computed as the kernel does."""
        with self.still():
            return meminfo.meminfo(self.kernel)

    def memory_groups(self) -> list[MemoryGroup]:
        """Every memory cgroup, with what is charged to it. Raises CorruptGuest."""
        with self.still():
            return memcg.memory_groups(self.kernel)

    def swap_areas(self) -> list[SwapArea]:
        """Every swap area in use, as /proc/swaps lists them."""
        with self.still():
            return swap.areas(self.kernel)

    def owners(self) -> Owners:
        """Who owns each frame: a class for every PFN, and for most the very task, cache, area or module."""
        with self.still():
            return owners.owners(self.kernel)

    def reverse_map(self) -> ReverseMap:
        """Who maps each frame, from the page tables of every task and the kernel. Raises CorruptGuest."""
        with self.still():
            return ReverseMap.build(self.kernel)

    def mapped_by(self, pfn: Pfn) -> list[Alias]:
        """Every virtual address of a frame, tasks' and the kernel's; reverse_map() answers for many."""
        with self.still():
            return ReverseMap.build(self.kernel, only=pfn).of(pfn)
