"""Many short stops of a guest that otherwise runs: breakpoints, and what is done at each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from inspector.errors import GdbError, MachineError
from inspector.machine.rsp import Rsp, stop_cpu
from inspector.units import VirtAddr


@dataclass(frozen=True, slots=True)
class Hit:
    """A CPU that stopped at a breakpoint, before the instruction there; all CPUs stand still until `go`."""

    cpu: int
    registers: dict[str, int]
    """By gdb's names: rax..r15, rip, eflags, fs_base, gs_base, k_gs_base, cr0, cr2, cr3, cr4, ..."""

    @property
    def address(self) -> VirtAddr:
        """Where it stopped."""
        return VirtAddr(self.registers["rip"])


class StopLoop(Protocol):
    """Breakpoints for one thread that waits for stops; made by a machine's `stop_loop`, at a stop.

    To others the guest counts as running, stops or not; `pause` and `hold` keep `go` waiting. Breakpoints are
    gone with `close`, and with this process.
    """

    def insert(self, address: VirtAddr) -> None:
        """Break before the instruction at `address` executes. At a stop only. Raises GdbError."""

    def remove(self, address: VirtAddr) -> None:
        """Take a breakpoint out. At a stop only. Raises GdbError."""

    def wait(self, timeout: float) -> Hit | None:
        """The next stop at a breakpoint; None after `timeout` seconds. Raises GuestDied."""

    def set_register(self, name: str, value: int) -> None:
        """Write a register of the CPU that stopped. Raises GdbError."""

    def write(self, address: VirtAddr, data: bytes) -> None:
        """Write guest memory as the CPU that stopped sees it. Raises GdbError."""

    def step(self) -> None:
        """Let the CPU that stopped execute the instruction there, breakpoint or not. Raises GdbError."""

    def go(self, timeout: float) -> bool:
        """Let the guest run; False where somebody else still holds it after `timeout` s. Raises GuestDied."""

    def close(self) -> None:
        """Take all breakpoints out and let the guest run on (unless it is paused). Idempotent."""


class Gate(Protocol):
    """The run control's side of a loop of stops."""

    def loop_stopped(self) -> None:
        """A breakpoint stopped the guest."""

    def loop_goes(self, go: Callable[[], None], timeout: float) -> bool:
        """Call `go` once nobody else wants the guest stopped; False where somebody does for `timeout` s."""

    def loop_ends(self, clear: Callable[[], None]) -> None:
        """Stop the guest, call `clear`, and let it run on as it should."""


class LocalStopLoop:
    """A StopLoop on QEMU's gdbstub, over a connection of its own."""

    def __init__(self, rsp: Rsp, gate: Gate) -> None:
        self._rsp = rsp
        self._gate = gate
        self._breakpoints: set[VirtAddr] = set()
        self._cpu = 0
        self._closed = False
        self.on_close: Callable[[], None] | None = None

    def insert(self, address: VirtAddr) -> None:
        """See StopLoop."""
        if address not in self._breakpoints:
            self._rsp.insert(address)
            self._breakpoints.add(address)

    def remove(self, address: VirtAddr) -> None:
        """See StopLoop."""
        if address in self._breakpoints:
            self._rsp.remove(address)
            self._breakpoints.discard(address)

    def wait(self, timeout: float) -> Hit | None:
        """See StopLoop. What stops the guest otherwise (a pause) is not told."""
        packet = self._rsp.receive(timeout)
        cpu = stop_cpu(packet) if packet else None
        if cpu is None:
            return None
        self._gate.loop_stopped()
        self._cpu = cpu
        return Hit(cpu, self._rsp.registers())

    def set_register(self, name: str, value: int) -> None:
        """See StopLoop."""
        self._rsp.set_register(name, value)

    def write(self, address: VirtAddr, data: bytes) -> None:
        """See StopLoop."""
        self._rsp.write(address, data)

    def step(self) -> None:
        """See StopLoop."""
        address = VirtAddr(self._rsp.registers()["rip"])
        armed = address in self._breakpoints
        if armed:  # KVM would stop at it again
            self._rsp.remove(address)
        self._rsp.step(self._cpu)
        if armed:
            self._rsp.insert(address)

    def go(self, timeout: float) -> bool:
        """See StopLoop."""
        return self._gate.loop_goes(self._rsp.go, timeout)

    def close(self) -> None:
        """See StopLoop. The thread that waits for stops has ended, or is this one."""
        if not self._closed:
            self._closed = True
            try:
                self._gate.loop_ends(self._clear)
            finally:
                if self.on_close:
                    self.on_close()

    def abandon(self) -> None:
        """QEMU is gone: nothing is to be taken out."""
        self._closed = True
        self._rsp.close()

    def _clear(self) -> None:
        try:
            for address in self._breakpoints:
                with suppress(GdbError):
                    self._rsp.remove(address)
        except MachineError:  # QEMU is gone, and they with it
            pass
        finally:
            self._rsp.close()
