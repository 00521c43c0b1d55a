"""Whether the guest runs: one state machine over QMP and gdb, so that a stop by either is seen by all.

What it rests on (QEMU gdbstub.c, softmmu/runstate.c):
- Every stop and start of the CPUs sends a QMP event STOP or RESUME, whoever caused it.
- QEMU stops the guest when gdb connects, and at any byte that gdb sends to a running guest.
- A QMP `cont` leaves gdb thinking that the guest is stopped: once attached, gdb does all starts and stops.
- gdb steps over a breakpoint as it continues: STOP events come that are no stop. With gdb attached the guest
  counts as stopped once both QMP and gdb say so.
- A loop of short stops (stoploop.py) counts as running; what others ask for holds it up at its next `go`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from inspector.errors import GdbError, GuestDied, MachineError
from inspector.machine.address import Address
from inspector.machine.gdb import Gdb, Stop
from inspector.machine.model import DeathListener, RunState, StateListener
from inspector.machine.news import News
from inspector.machine.qmp import Qmp
from inspector.machine.rsp import Rsp
from inspector.machine.stoploop import LocalStopLoop

_SETTLE = 10.0
_GDB_STOP = 3.0


class RunControl:
    """The state, and the only door to change it. Thread-safe."""

    def __init__(self, gdb_socket: Address) -> None:
        self.gdb_socket = gdb_socket
        """Where the stub listens; another folder's once the guest was put back after its death."""
        self._qmp: Qmp | None = None
        self._gdb: Gdb | None = None
        self._gdb_lost = False
        self._order = threading.RLock()  # one order at a time
        self.changed = threading.Condition()
        """Guards all below."""
        self._vm_running = False
        self._gdb_running = False
        self._resumes = 0
        self._moment = 0
        self._asked = ""
        self._holds = 0
        self._held = False  # the holds alone keep the guest stopped: the last release lets it run
        self._stop: Stop | None = None
        self._loop: LocalStopLoop | None = None
        self._panicked = False
        self.shutdown = ""
        """Why QEMU ends, as its SHUTDOWN event says (QAPI ShutdownCause): `guest-reset`, `guest-shutdown`."""
        self._dead: str | None = None
        self._told = RunState("paused", "starting")
        self._news = News()

    # what happens

    def use_qmp(self, qmp: Qmp) -> None:
        """Begin: ask how it stands."""
        self._qmp = qmp
        status = qmp.execute("query-status")
        with self.changed:
            self._vm_running = bool(status["running"])
            self._settle()

    def on_qmp_event(self, name: str, data: dict[str, Any]) -> None:
        """An event came. Called on QMP's loop thread."""
        if name in ("STOP", "RESUME") and self._loop:
            return
        with self.changed:
            if name == "STOP":
                self._vm_running = False
            elif name == "RESUME":
                self._vm_running = True
                self._resumes += 1
            elif name == "GUEST_PANICKED":
                self._panicked = True
            elif name == "SHUTDOWN":
                self.shutdown = str(data.get("reason", ""))
            else:
                return
            self._settle()

    def _on_gdb_run(self) -> None:
        with self.changed:
            self._gdb_running = True
            self._stop = None
            self._settle()

    def _on_gdb_stop(self, stop: Stop) -> None:
        with self.changed:
            self._gdb_running = False
            self._stop = stop
            self._settle()

    def _on_gdb_end(self) -> None:
        with self.changed:
            self._gdb_lost = self._gdb is not None
            self._gdb = None
            self._gdb_running = False
            self._settle()

    def died(self, why: str) -> None:
        """QEMU is gone; the first reason stands."""
        with self.changed:
            if self._dead is not None:
                return
            self._dead = why
            self._settle()
            gdb, self._gdb = self._gdb, None
            self._news.die(why)
        if gdb:
            gdb.close()

    def _settle(self) -> None:
        with self.changed:
            state = self._state()
            self._moment += state.running
            if state.running and not self._told.running:
                self._asked = ""
            if state != self._told and not state.held:
                self._told = state
                self._news.change(state)
            self.changed.notify_all()

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Inside, another QEMU takes this one's place, and use_qmp() begins anew; nobody else gives orders.

        Listeners stay, and hear nothing unless it was dead or the CPUs stand still after. Raises MachineError
        where others hold the guest and do not let go.
        """
        deadline = time.monotonic() + _SETTLE
        while True:
            with self._order:
                if not self._holds or self._dead is not None:
                    self._forget()
                    try:
                        yield
                    finally:
                        with self.changed:
                            self._held = False
                            self._settle()
                    return
            if time.monotonic() > deadline:
                raise MachineError("others hold the guest for a reading: end that first")
            time.sleep(0.005)

    def _forget(self) -> None:
        """What was so with the QEMU that goes."""
        with self.changed:
            gdb, self._gdb = self._gdb, None
            loop, self._loop = self._loop, None
            was_dead, self._dead = self._dead is not None, None
            self._qmp = self._stop = None
            self._vm_running = self._gdb_running = self._gdb_lost = self._panicked = False
            self._holds, self.shutdown = 0, ""
            self._held, self._asked = True, "being put back"  # as a hold: nobody is told
            if was_dead:
                self._news.begin()
        if gdb:
            gdb.close()
        if loop:
            loop.abandon()

    # what is asked

    def _state(self) -> RunState:
        if self._dead is not None:
            return RunState("dead", f"dead: {self._dead}")
        if self._vm_running or self._gdb_running or (self._loop and not self._loop.held):
            return RunState("running", "running")
        if self._panicked:
            return RunState("panicked", "panicked")
        if self._stop and self._stop.reason != "signal-received":
            return RunState("breakpoint", str(self._stop))
        return RunState("paused", self._asked or "paused by QEMU's monitor", self._held)

    def state(self) -> RunState:
        """How it stands now."""
        with self.changed:
            return self._state()

    def moment(self) -> int | None:
        """A number that is another one once the guest has run; None while it runs."""
        with self.changed:
            return None if self._state().running else self._moment

    def on_state(self, listener: StateListener) -> None:
        """Call `listener(state)` at every change, in order, on a thread that is for that alone."""
        with self.changed:
            self._news.on_state(listener)

    def on_death(self, listener: DeathListener) -> None:
        """Call `listener(why)` when QEMU is gone, or soon where it is."""
        with self.changed:
            self._news.on_death(listener, self._dead)

    def check_alive(self) -> None:
        """Raises GuestDied, with the reason."""
        with self.changed:
            if self._dead is not None:
                raise GuestDied(f"the guest is gone: {self._dead}")

    def _await(self, met: Callable[[], bool], timeout: float, what: str) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: met() or self._dead is not None, timeout):
                raise MachineError(f"the guest did not {what} within {timeout:g} s")
        self.check_alive()

    def pause(self, who: str = "user") -> None:
        """Stop the CPUs, and return once they are stopped. Raises GuestDied, MachineError."""
        with self._order:
            self.check_alive()
            with self.changed:
                if self._held:
                    self._held, self._asked = False, f"paused by {who}"
                    self._settle()
            self._stop_cpus(f"paused by {who}")

    def resume(self) -> None:
        """Let the CPUs run, whoever stopped them; with holds, at the last one's end. Raises like `pause`."""
        with self._order:
            self.check_alive()
            if self._holds:
                self._held = True
            else:
                self._start_cpus()

    def hold(self, who: str = "a reading") -> None:
        """Stop the CPUs for a moment; holds are counted. Raises like `pause`."""
        with self._order:
            self.check_alive()
            with self.changed:
                first = self.state().running and not self._holds
                self._held = self._held or first
            try:
                self._stop_cpus(f"held by {who}")
            except BaseException:
                self._held = self._held and not first
                raise
            self._holds += 1

    def release(self) -> None:
        """End a hold; with the last one the CPUs run again, unless they were paused. Raises like `pause`."""
        with self._order:
            self._holds = max(0, self._holds - 1)
            if self._held and not self._holds:
                with self._soon_running():
                    self.check_alive()
                    self._start_cpus()

    @contextmanager
    def _soon_running(self) -> Iterator[None]:
        """Inside, a stop is a hold to whoever asks; it ends once the CPUs run, or should."""
        with self.changed:
            self._held = True
        try:
            yield
        finally:
            with self.changed:
                self._held = False
                self._settle()

    def _stop_cpus(self, why: str) -> None:
        with self.changed:
            if not self._state().running:
                return
            self._asked = why
            gdb = self._gdb if self._gdb_running else None
        if self._loop:
            self._loop.hold()
            self._settle()
            return
        if gdb:
            # through gdb: a QMP stop could fall into a step over a breakpoint, which gdb would continue
            with suppress(GdbError, MachineError):
                gdb.interrupt()
                self._await(lambda: not self._state().running, _GDB_STOP, "stop")
        if self.state().running:
            self.monitor("stop")
            self._await(lambda: not self._state().running, _SETTLE, "stop")

    def _start_cpus(self) -> None:
        if self.state().running:
            return
        if self._loop:
            self._loop.release()
            self._settle()
            return
        if self._gdb_lost:  # its breakpoints are still in the stub: a new connection clears them
            self.gdb()
        with self.changed:
            before, gdb = self._resumes, self._gdb
        if gdb:
            gdb.continue_()
        else:
            self.monitor("cont")
        self._await(lambda: self._resumes > before, _SETTLE, "run on")
        with self.changed:
            self._asked = ""  # whoever stops it next may not say why

    def wait_stop(self, timeout: float) -> RunState | None:
        """Wait until the CPUs stop, whoever stops them; None after `timeout` seconds. Raises GuestDied."""
        with self.changed:
            self.changed.wait_for(lambda: not self._state().running, timeout)
        self.check_alive()
        state = self.state()
        return None if state.running else state

    def last_stop(self) -> Stop | None:
        """What gdb said of the stop that now is; None without gdb, or running."""
        with self.changed:
            return self._stop

    def gdb(self) -> Gdb:
        """The gdb, attached at first use; a running guest runs on. Raises SetupError, GdbError, GuestDied."""
        with self._order:
            self.check_alive()
            with self.changed:
                if self._gdb:
                    return self._gdb
                if self._loop:
                    raise GdbError("the guest is being traced: gdb can attach when the trace has ended")
            with self._stub_stops() as was_running:
                gdb = Gdb(self.gdb_socket, self._on_gdb_run, self._on_gdb_stop, self._on_gdb_end)
                with self.changed:
                    self._gdb, self._gdb_lost, self._stop = gdb, False, None
                    self._settle()
                self._await(lambda: not self._state().running, _SETTLE, "stop for gdb")
                if was_running:
                    self._start_cpus()
            return gdb

    @contextmanager
    def _stub_stops(self) -> Iterator[bool]:
        """Inside, the stub stops the guest as we connect; gives whether it ran. If that fails it runs on."""
        was_running = self.state().running
        with self._soon_running() if was_running else nullcontext():
            try:
                yield was_running
            except GdbError:
                self.check_alive()
                if was_running:
                    with suppress(MachineError):
                        self.monitor("cont")
                raise

    # a loop of short stops

    def stop_loop(self) -> LocalStopLoop:
        """Breakpoints for a loop of many short stops; it begins at a stop. A gdb that is attached has to go.

        Raises GdbError, GuestDied, and MachineError where there is such a loop.
        """
        with self._order:
            self.check_alive()
            if self._loop:
                raise MachineError("the guest is being traced already: end that trace first")
            if self._gdb:
                self._gdb.close()  # the stub serves one client
            with self._stub_stops() as was_running:
                loop = LocalStopLoop(Rsp(self.gdb_socket), self, held=not was_running)
                # the STOP event of our coming is there before this is answered
                self.monitor("query-status")
                with self.changed:
                    self._gdb_lost = self._vm_running = False
                    self._loop = loop
            return loop

    def loop_ends(self, clear: Callable[[], None]) -> None:
        """Stop the guest, call `clear`, and let it run on as it should."""
        with self._order:
            try:
                self.monitor("stop")
            except MachineError:
                clear()
                return
            clear()
            with self.changed:
                run_on = not (self._loop and self._loop.held)
            with self._soon_running() if run_on else nullcontext():
                with self.changed:
                    self._loop, self._vm_running = None, False
                if run_on:
                    self._start_cpus()
            self._settle()

    def monitor(self, command: str) -> Any:
        """What QMP returns. Raises MachineError."""
        if self._qmp is None:
            raise MachineError("the guest has not started yet")
        return self._qmp.execute(command)
