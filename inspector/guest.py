"""The guest: the one place that puts machine, memory, names and Linux's objects together."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector import images, machine, symbols
from inspector.arch import AddressSpace, Walk, paging_of
from inspector.errors import UsageError
from inspector.kernel import buddy, cpus, frames, pages, tasks, zones
from inspector.kernel.memmap import MemMap
from inspector.machine import Completed, CpuRegisters, Machine, MachineConfig, RunState
from inspector.memory import MappedRam, RamBlock
from inspector.progress import SILENT, Reporter
from inspector.symbols import Kernel, Symbol
from inspector.units import Pfn, PhysAddr, VirtAddr, parse_size, printable

DEFAULT_KERNEL = "debian-6.1"
DEFAULT_MEMORY = "512M"

P = ParamSpec("P")
R = TypeVar("R")


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
    """What guest this is; `memory` and `kaslr_offset` in bytes, `attach_seconds` the time to find names and types."""

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


def _stopped(method: Callable[Concatenate[Guest, P], R]) -> Callable[Concatenate[Guest, P], R]:
    """Hold the guest still while a compound answer is read, unless it was asked to be read live."""

    @functools.wraps(method)
    def wrapper(self: Guest, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.live:
            self.kernel.space.flush()
            return method(self, *args, **kwargs)
        with self.paused():
            return method(self, *args, **kwargs)

    return wrapper


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
        self._resume = False
        blocks = tuple(RamBlock(PhysAddr(start), size, offset) for start, size, offset in machine.blocks)
        self.memory = MappedRam.from_fd(machine.ram_fd, blocks)
        try:
            with self.paused(flush=False):
                started = time.perf_counter()
                self.kernel: Kernel = symbols.attach(
                    self.memory, machine.registers()[0], cache=images.cache_dir(), vmlinux=vmlinux
                )
                self._attach_seconds = time.perf_counter() - started
        except BaseException:
            self.memory.close()
            raise

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
    def paused(self, *, flush: bool = True) -> Iterator[None]:
        """The guest stands still inside. Nests; a guest that was stopped before stays so after."""
        with self._lock:
            if not self._depth:
                self._resume = self.machine.running
                if self._resume:
                    self.machine.pause()
                if flush:
                    self.kernel.space.flush()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._resume and self.machine.alive:
                    self.machine.resume()

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Run a shell command in the guest; `timeout` in seconds. Raises CommandTimeout, GuestDied."""
        return self.machine.run(command, timeout)

    def spawn(self, command: str) -> int:
        """Start a command that stays; gives its PID."""
        return self.machine.spawn(command)

    # Names

    @_stopped
    def info(self) -> GuestInfo:
        """What guest this is."""
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
        """The address of a kernel symbol. Raises NoSuchSymbol."""
        return self.kernel.symbol(name)

    def symbol_at(self, address: VirtAddr) -> tuple[Symbol, int] | None:
        """The symbol that an address lies in and the offset into it in bytes; None where none is near."""
        return self.kernel.symbols.lookup(address)

    # Bytes

    def read_phys(self, address: PhysAddr, size: int) -> bytes:
        """Bytes at a guest-physical address. Raises OutsideRam."""
        return self.memory.read(address, size)

    def read_virt(self, address: VirtAddr, size: int, task: tasks.Task | None = None) -> bytes:
        """Bytes at a virtual address of a task, or of the kernel. Raises PageFault, OutsideRam."""
        with self.paused():
            return (task.space if task else self.kernel.space).read(address, size)

    # Page tables

    @_stopped
    def cpus(self) -> list[Cpu]:
        """Every CPU with its registers, page table root and current task."""
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

    @_stopped
    def space(self, *, cpu: int | None = None, root: PhysAddr | None = None) -> AddressSpace:
        """The address space that a CPU's CR3 names, or any root; the kernel's own where neither is given."""
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
        """Follow an address from a CPU's CR3, from any root, or from the kernel's own; task.walk() for a task's."""
        with self.paused():
            return self.space(cpu=cpu, root=root).walk(va)

    @staticmethod
    def _paging(registers: CpuRegisters) -> tuple[symbols.PagingFormat, PhysAddr]:
        return paging_of(registers.cr0, registers.cr3, registers.cr4, registers.efer)

    # Linux

    @_stopped
    def tasks(self, threads: bool = False) -> list[tasks.Task]:
        """Every process by PID, kernel threads too; with `threads` every thread."""
        return tasks.tasks(self.kernel, threads)

    @_stopped
    def task(self, pid: int) -> tasks.Task:
        """The process or thread with that PID. Raises NoSuchTask."""
        return tasks.task(self.kernel, pid)

    @_stopped
    def zones(self) -> list[zones.Zone]:
        """Every zone of every node: sizes, watermarks, free counts, in pages."""
        return zones.zones(self.kernel)

    @_stopped
    def buddy(self) -> list[FreeCounts]:
        """Free blocks by migratetype and order, for each zone that has memory."""
        names = buddy.migratetypes(self.kernel)
        blocks = buddy.free_blocks(self.kernel, MemMap(self.kernel))
        return [
            FreeCounts(zone.node, zone.name, names, buddy.counts(blocks, zone, len(names)))
            for zone in zones.zones(self.kernel)
            if zone.populated
        ]

    @_stopped
    def page(self, pfn: Pfn) -> pages.Page:
        """All that a frame's struct page says. Raises NoSuchFrame."""
        return pages.page(self.kernel, pfn)

    @_stopped
    def frames(self) -> NDArray[np.void]:
        """A row a PFN for all of memory, as kernel.frames.FRAME."""
        return frames.frames(self.kernel)


def boot(
    kernel: str | Path = DEFAULT_KERNEL,
    memory: str | int = DEFAULT_MEMORY,
    cpus: int = 1,
    *,
    initrd: Path | None = None,
    name: str | None = None,
    cmdline: str = "",
    accel: str = "auto",
    la57: bool = False,
    vmlinux: Path | None = None,
    reporter: Reporter = SILENT,
) -> Guest:
    """Boot a guest and attach to it. `kernel` is a name of `kmi kernels` or a bzImage or vmlinux.

    The first time fetches the kernel and builds the guest image into the cache. Raises UsageError, ImageError,
    BootError, SymbolsError; leaves nothing behind when it does.
    """
    config = configure(
        kernel, memory, cpus, initrd=initrd, name=name, cmdline=cmdline, accel=accel, la57=la57, reporter=reporter
    )
    started = machine.start(config, reporter)
    try:
        with reporter.task("Reading the kernel's names and types"):
            return Guest(started, vmlinux=vmlinux)
    except BaseException:
        started.close()
        raise


def attach(name: str, *, vmlinux: Path | None = None) -> Guest:
    """Attach to a guest that another process holds open (`kmi boot --name NAME`). Raises MachineError."""
    connected = machine.connect(name)
    try:
        return Guest(connected, vmlinux=vmlinux)
    except BaseException:
        connected.close()
        raise
