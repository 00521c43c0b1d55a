"""Many short stops of a guest that otherwise runs: breakpoints, and what is done at each.

What it rests on (QEMU softmmu/cpus.c, do_vm_stop()): a QMP `stop` of a guest that a breakpoint has stopped
changes nothing, `query-status` stays `debug`; one that falls into a step ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

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
        """As the guest goes, the CPU that stopped first executes the instruction there, breakpoint or not."""

    def go(self, timeout: float) -> bool:
        """Let the guest run; False where somebody else still holds it after `timeout` s.

        Raises GuestDied, GdbError.
        """

    def close(self) -> None:
        """Take all breakpoints out and let the guest run on (unless it is paused). Idempotent."""


class Owner(Protocol):
    """The run control's side of a loop of stops."""

    changed: threading.Condition
    """Guards the loop's state; told when that changes."""

    def monitor(self, command: str) -> Any:
        """What QMP returns. Raises MachineError."""

    def check_alive(self) -> None:
        """Raises GuestDied."""

    def loop_ends(self, clear: Callable[[], None]) -> None:
        """Stop the guest, call `clear`, and let it run on as it should."""


class LocalStopLoop:
    """A StopLoop on QEMU's gdbstub, over a connection of its own.

    It and whoever holds the guest never order QEMU about at once: while somebody holds it the loop neither
    steps nor goes, and at one of the loop's own stops a hold has nothing to order.
    """

    def __init__(self, rsp: Rsp, owner: Owner, *, held: bool) -> None:
        self._rsp = rsp
        self._owner = owner
        self._breakpoints: set[VirtAddr] = set()
        self._cpu = 0
        self._at_stop = True  # a breakpoint stopped the guest, and the loop knows
        self._step_first = False
        self._stopped = False  # by a hold, not by a breakpoint that the loop has yet to hear of
        self._closed = False
        self.held = held
        """Whether somebody else wants the guest stopped."""
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
        with self._owner.changed:
            self._at_stop = True
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
        self._step_first = True

    def go(self, timeout: float) -> bool:
        """See StopLoop."""
        with self._owner.changed:
            free = self._owner.changed.wait_for(self._is_free, timeout)
            if free:
                self._step()
                self._at_stop = False
                self._rsp.go()
            return free

    def _is_free(self) -> bool:
        self._owner.check_alive()
        return not self.held

    def _step(self) -> None:
        if not self._step_first:
            return
        self._step_first = False
        address = VirtAddr(self._rsp.registers()["rip"])
        armed = address in self._breakpoints
        if armed:  # KVM would stop at it again
            self._rsp.remove(address)
        self._rsp.step(self._cpu)
        if armed:
            self._rsp.insert(address)

    def hold(self) -> None:
        """Stop the guest for somebody else. Raises MachineError."""
        with self._owner.changed:
            self.held = True  # from here on the loop does not let the guest run
            at_stop = self._at_stop
        if not at_stop:
            self._owner.monitor("stop")
            self._stopped = self._owner.monitor("query-status")["status"] == "paused"

    def release(self) -> None:
        """Nobody else wants the guest stopped any more. Raises MachineError."""
        if self._stopped:  # its state may be another by now: `postmigrate` once it was saved
            self._stopped = False
            self._owner.monitor("cont")
        self._let_go()

    def _let_go(self) -> None:
        with self._owner.changed:
            self.held = False
            self._owner.changed.notify_all()

    def close(self) -> None:
        """See StopLoop. The thread that waits for stops has ended, or is this one."""
        if not self._closed:
            self._closed = True
            try:
                self._owner.loop_ends(self._clear)
            finally:
                if self.on_close:
                    self.on_close()

    def abandon(self) -> None:
        """QEMU is gone: nothing is to be taken out, and nobody holds the guest."""
        self._closed = True
        self._rsp.close()
        self._let_go()

    def _clear(self) -> None:
        try:
            for address in self._breakpoints:
                with suppress(GdbError):
                    self._rsp.remove(address)
        except MachineError:  # QEMU is gone, and they with it
            pass
        finally:
            self._rsp.close()
