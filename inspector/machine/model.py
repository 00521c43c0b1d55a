"""What a machine is to the rest of the inspector, and the plain answers it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from inspector.errors import MachineError
from inspector.machine.stoploop import StopLoop
from inspector.units import VirtAddr

RamRange = tuple[int, int, int]
"""A run of guest RAM: guest-physical start, size in bytes, offset in the RAM file."""


class Segment(NamedTuple):
    """A segment register, or a descriptor table, whose selector and flags are 0 (SDM vol. 3A, 3.4)."""

    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True, slots=True)
class CpuRegisters:
    """One vCPU's registers as QEMU's `info registers` prints them (SDM vol. 1, 3.4; vol. 3, 2.5)."""

    cpu: int
    rip: VirtAddr
    rsp: VirtAddr
    rflags: int
    cr0: int
    cr2: VirtAddr
    cr3: int
    cr4: int
    efer: int
    gs_base: VirtAddr
    kernel_gs_base: VirtAddr | None
    """MSR_KERNEL_GS_BASE; None: `info registers` does not print it (gdb's `k_gs_base` does)."""
    idt_base: VirtAddr
    cpl: int
    halted: bool
    general: dict[str, int] = field(default_factory=dict)
    """rax..r15 by name; in 32-bit code only the eight low halves, under their 64-bit names."""
    segments: dict[str, Segment] = field(default_factory=dict)
    """es cs ss ds fs gs ldt tr gdt idt by name."""

    @property
    def has_control(self) -> bool:
        """Whether the control registers are known: a kernel's own crash dump does not have them."""
        return self.cr0 != 0


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran in the guest. `stdout` and `stderr` are UTF-8 with bad bytes replaced."""

    stdout_bytes: bytes
    stderr_bytes: bytes
    returncode: int
    """The exit code; 128+n where signal n killed it."""
    command: str = ""

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def check(self) -> Completed:
        """Itself. Raises MachineError, with the first line of stderr, where the exit code is not 0."""
        if self.returncode:
            said = self.stderr.strip().split("\n")[0]
            raise MachineError(
                f"in the guest, {self.command!r} exited {self.returncode}" + (f": {said}" if said else "")
            )
        return self


RunKind = Literal["running", "paused", "breakpoint", "panicked", "saved", "dead"]


@dataclass(frozen=True, slots=True)
class RunState:
    """Whether the guest's CPUs run, and why not."""

    kind: RunKind
    reason: str
    """For a person: `running`, `paused by user`, `breakpoint 1 at 0xffffffff81000000`, `dead: ...`."""
    held: bool = False
    """Stopped for a moment only, by `hold`; listeners do not hear of it."""

    @property
    def running(self) -> bool:
        """Whether the CPUs execute."""
        return self.kind == "running"


StateListener = Callable[[RunState], None]
DeathListener = Callable[[str], None]


class Machine(Protocol):
    """A guest and what can be asked of it.

    LocalMachine owns QEMU, RemoteMachine asks the kmi that does, ForeignMachine a QEMU that others started;
    StillMachine is a saved image.
    """

    @property
    def name(self) -> str:
        """What others call it by, or an empty string."""

    @property
    def accel(self) -> str:
        """KVM or TCG."""

    @property
    def accel_reason(self) -> str:
        """Why that one, for a person."""

    @property
    def memory_size(self) -> int:
        """Guest RAM in bytes."""

    @property
    def cpus(self) -> int:
        """How many vCPUs."""

    @property
    def kernel_path(self) -> Path:
        """The kernel image that was booted."""

    @property
    def folder(self) -> Path:
        """The private folder, while QEMU runs: `qmp` and `gdb` are sockets for other tools, a client each."""

    @property
    def ram_fd(self) -> int | None:
        """The file that is the guest's RAM; the machine closes it. None: a ForeignMachine may have none."""

    @property
    def blocks(self) -> list[RamRange]:
        """Where RAM lies in guest-physical space and in the file, sorted by start."""

    @property
    def running(self) -> bool:
        """Whether the guest's CPUs execute."""

    @property
    def alive(self) -> bool:
        """Whether QEMU is there."""

    def state(self) -> RunState:
        """Running or not, and why."""

    def pause(self, who: str = "user") -> None:
        """Stop the CPUs; nothing where they are stopped. Absolute: pauses do not nest. Raises GuestDied."""

    def resume(self) -> None:
        """Let the CPUs run, whoever stopped them (at the end of the last hold, if any). Raises GuestDied."""

    def hold(self, who: str = "a reading") -> None:
        """Stop the CPUs for a moment. Holds are counted, over all that share the guest. Raises GuestDied."""

    def release(self) -> None:
        """End a hold; with the last one the CPUs run again, unless they were paused. Raises GuestDied."""

    def registers(self) -> list[CpuRegisters]:
        """Every vCPU's registers."""

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Run a /bin/sh command in the guest; `timeout`: seconds of running guest. Raises CommandTimeout."""

    def spawn(self, command: str) -> int:
        """Leave a command running in the guest, detached; its PID. Output goes to /tmp/spawn-PID.log."""

    def put(self, data: bytes, path: str, mode: int = 0o755) -> None:
        """Write a file in the guest."""

    def hmp(self, command: str) -> str:
        """What QEMU's human monitor answers. Raises QmpError."""

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What QMP returns. Raises QmpError."""

    def stop_loop(self) -> StopLoop:
        """Breakpoints for a loop of many short stops. Raises GdbError, MachineError (one is on)."""

    def console_tail(self, lines: int = 40) -> str:
        """The last lines of the serial console, control characters made visible."""

    def on_state(self, listener: StateListener) -> None:
        """Call `listener(state)` at every change, on a thread of the machine's."""

    def on_death(self, listener: DeathListener) -> None:
        """Call `listener(why)` once QEMU is gone (at once where it is), on a thread of the machine's."""

    def close(self) -> None:
        """Let go: a LocalMachine's guest ends, a RemoteMachine's stays."""
