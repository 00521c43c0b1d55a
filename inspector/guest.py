"""The guest: the one place that puts machine, memory, names and Linux's objects together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from inspector import guest_modules, images, symbols
from inspector.arch import AddressSpace, PagingFormat, Walk, paging_of
from inspector.errors import MachineError, UsageError
from inspector.kernel import (
    cpus,
)
from inspector.kernel.modules import Module
from inspector.kernel.tasks import Task
from inspector.linux import Linux
from inspector.machine import Completed, CpuRegisters, ForeignMachine, LocalMachine, Machine, RunState
from inspector.memory import JoinedRam, MappedRam, MirroredRam, RamBlock, RamPart
from inspector.progress import SILENT, Reporter
from inspector.symbols import Kernel
from inspector.units import Pfn, PhysAddr, VirtAddr, printable

# What only some ask for is imported when they do: nobody else waits for it.
if TYPE_CHECKING:
    from inspector import saving
    from inspector.snapshots import Snapshot
    from inspector.trace import AllocationTrace, FaultKind, FaultTrace


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


def _memory(machine: Machine) -> MappedRam:
    blocks = tuple(RamBlock(PhysAddr(start), size, offset) for start, size, offset in machine.blocks)
    if machine.ram_fd is not None:
        return MappedRam.from_fd(machine.ram_fd, blocks)
    assert isinstance(machine, ForeignMachine)
    if machine.ram_files:
        return JoinedRam((RamPart(*file) for file in machine.ram_files), blocks)
    assert machine.ram_source
    return MirroredRam(machine.ram_source, blocks)


class Guest(Linux):
    """A running guest that can be asked. Close it, or use it as a context manager.

    Answers that read much pause the guest for some milliseconds, so that they are whole; with `live` set they
    are read while it runs and may be torn.
    """

    def __init__(
        self, machine: Machine, *, vmlinux: Path | None = None, vmcoreinfo: bytes | None = None
    ) -> None:
        """Attach to a machine whose Linux is up; `vmcoreinfo` is what a dump has beside its memory.

        Raises SymbolsError where no kernel is found.
        """
        self.machine = machine
        self.live = False
        self._lock = threading.RLock()
        self._depth = 0
        self._holder = 0
        self.memory = _memory(machine)
        try:
            started = time.perf_counter()
            self.kernel: Kernel = self._attach(vmlinux, vmcoreinfo)
            self._attach_seconds = time.perf_counter() - started
        except BaseException:
            self.memory.close()
            raise
        self.kernel.still = self.still

    def _attach(self, vmlinux: Path | None, vmcoreinfo: bytes | None) -> Kernel:
        """Names and types, while the guest stands still."""
        self.machine.hold()
        try:
            return symbols.attach(
                self.memory,
                self.machine.registers(),
                cache=images.cache_dir(),
                vmlinux=vmlinux,
                vmcoreinfo=vmcoreinfo,
            )
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

    def mark(self) -> None:
        """Let restore() put the guest back to what it is now: with the programs and modules that are in it.

        Raises MachineError where the guest is not ours or its state cannot be kept, and as run().
        """
        self._check_runs()
        if not isinstance(self.machine, LocalMachine):
            raise MachineError("this guest is another process's: mark() it there")
        self.machine.mark()

    def restore(self) -> None:
        """Put the guest back to the state in which boot() gave it, running; also one that hung or panicked.

        What was read before stays as it was read; what is asked from now on is the new guest's. Raises
        MachineError where the guest is not ours, its state was not kept, or it is held, and GuestDied.
        """
        if not isinstance(self.machine, LocalMachine):
            raise MachineError("only who booted a guest can put it back: ask there, or boot one here")
        with self._lock:
            if self._depth:
                raise MachineError("the guest cannot be put back inside paused()")
            self.machine.restore()
            self.kernel.space.flush()

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

    def put(self, data: bytes | Path, place: str, mode: int = 0o755) -> None:
        """Write bytes, or a file of the host's, to a file in the guest. Raises as run()."""
        self._check_runs()
        self.machine.put(data.read_bytes() if isinstance(data, Path) else data, place, mode)

    def load_module(self, module: str | Path, **parameters: guest_modules.Parameter) -> Module:
        """Build a module where it is not built yet, and load it; gives where it lies.

        `module` is the name of one in qemu_images/modules/, or a folder of your own with a Kbuild. Raises
        UsageError (no such module or parameter), SetupError (it cannot be built), MachineError with the
        kernel's reason where it refuses, and as run().
        """
        self._check_runs()
        name = guest_modules.load(self.machine, self.kernel.release, module, parameters)
        return next(found for found in self.modules() if found.name == name)

    def unload_module(self, name: str) -> None:
        """Unload a module. Raises MachineError where it is in use or not loaded, and as run()."""
        self._check_runs()
        guest_modules.unload(self.machine, name)

    def _check_runs(self) -> None:
        """A guest that stands still would never answer."""
        state = self.machine.state()
        if state.kind == "saved":
            raise MachineError(f"{self.machine.name} is a saved image: it does not run")
        ours = self._depth and self._holder == threading.get_ident()
        if ours or (state.kind in ("paused", "breakpoint") and not state.held):
            reason = "inside paused()" if ours else state.reason
            raise MachineError(f"the guest stands still ({reason}): let it run before it is to run a command")

    def trace_faults(
        self,
        target: int | str,
        *,
        kinds: Iterable[FaultKind] | None = None,
        start: VirtAddr | None = None,
        end: VirtAddr | None = None,
        limit: int | None = None,
        children: bool = False,
        step: bool = False,
    ) -> FaultTrace:
        """Trace the page faults of a process, by PID, or of a program that is started for it: see FaultTrace.

        Raises SymbolsError (the kernel cannot be traced), UsageError; NoSuchTask, MachineError as it begins.
        """
        from inspector.trace import FaultTrace

        return FaultTrace(
            self.kernel,
            self.machine,
            target,
            kinds=kinds,
            start=start,
            end=end,
            limit=limit,
            children=children,
            step=step,
        )

    def trace_allocations(
        self,
        target: int | str | None = None,
        *,
        pfn: Pfn | None = None,
        limit: int | None = None,
        children: bool = False,
        step: bool = False,
    ) -> AllocationTrace:
        """Trace the pages that a process, a program that is started for it, or all tasks allocate and free.

        See AllocationTrace. Raises SymbolsError (the kernel cannot be traced), NoSuchFrame, UsageError;
        NoSuchTask, MachineError as it begins.
        """
        from inspector.trace import AllocationTrace

        return AllocationTrace(
            self.kernel, self.machine, target, pfn=pfn, limit=limit, children=children, step=step
        )

    # All of it

    def snapshot(self) -> Snapshot:
        """All of memory at one moment, as plain data: to compare, and to save. Raises CorruptGuest."""
        from inspector.snapshots import take

        return take(self)

    # A copy of all memory

    def save(
        self,
        path: Path | str,
        *,
        format: saving.Format = "elf",
        level: int = 1,
        overwrite: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        """Save all memory and the CPUs' registers, for inspector.open(), drgn and crash; it stands still.

        `elf` is a vmcore, sparse: as large as the memory, on the disk only what is not zero. `kdump` is
        packed by zlib (`level`: 1, fast, to 9) as makedumpfile does it. However it ends, there is a whole
        file or none. Raises UsageError (there is such a file, and no `overwrite`), SetupError (no room).
        """
        from inspector import saving

        saving.check(Path(path), format, level, overwrite)
        with self.paused():
            saving.save(
                self.machine,
                self.memory,
                self.kernel,
                Path(path),
                format=format,
                level=level,
                overwrite=overwrite,
                reporter=reporter,
            )

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

    def _paging(self, registers: CpuRegisters) -> tuple[PagingFormat, PhysAddr]:
        if not registers.has_control:
            return self.kernel.space.format, cpus.active_root(self.kernel, registers.cpu)
        return paging_of(registers.cr0, registers.cr3, registers.cr4, registers.efer)
