"""The tracer of page faults: on and off, the loop of stops, and the records that come out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol

from inspector.errors import (
    InspectorError,
    KernelError,
    MachineError,
    OutsideRam,
    PageFault,
    SymbolsError,
    UsageError,
)
from inspector.kernel import tasks
from inspector.machine import Completed
from inspector.machine.stoploop import Hit, StopLoop
from inspector.symbols import Kernel
from inspector.trace import stops
from inspector.trace.follow import Followed
from inspector.trace.handling import Handling
from inspector.trace.kinds import FaultKind
from inspector.trace.reading import Reader
from inspector.trace.records import Fault
from inspector.units import VirtAddr

_WAIT = 0.2  # seconds between looks whether the task lives and the trace goes on
_START = 30.0  # seconds for a command to get ready
_LONGEST_INSTRUCTION = 15  # SDM vol. 2, 2.3.11


class Traceable(Protocol):
    """What a trace needs of a machine."""

    def stop_loop(self) -> StopLoop:
        """Breakpoints for a loop of many short stops."""

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Run a /bin/sh command in the guest."""

    def spawn(self, command: str) -> int:
        """Leave a command running in the guest."""


class FaultTrace:
    """The page faults of a process, as they happen: a context manager, and an iterator.

    `target` is a PID, or a program with its arguments, which is started for it. `kinds`, and `start` and
    `end` (exclusive) of the faulting address, choose what is recorded; `limit` ends the trace after so many.
    With `children` what the process forks is traced too; with `step` the guest stands still at the end of
    each recorded fault until the next is asked for. Each page fault of any task stops the guest for some
    milliseconds; those of other tasks leave no trace.
    """

    def __init__(
        self,
        kernel: Kernel,
        machine: Traceable,
        target: int | str,
        *,
        kinds: Iterable[FaultKind] | None = None,
        start: VirtAddr | None = None,
        end: VirtAddr | None = None,
        limit: int | None = None,
        children: bool = False,
        step: bool = False,
    ) -> None:
        """Raises NoSuchSymbol and SymbolsError for a kernel that cannot be traced, UsageError."""
        if limit is not None and limit < 1:
            raise UsageError(f"no trace of {limit} faults: give a limit of 1 or more")
        self._reader = Reader(kernel)
        self._points = stops.fault_points(kernel)
        self._machine = machine
        self._target = target
        self._kinds = frozenset(kinds) if kinds is not None else None
        self._start, self._end = start or 0, end if end is not None else 1 << 64
        self._limit, self._children, self._step = limit, children, step
        self._code: dict[int, bytes] = {}
        self._followed: Followed | None = None
        self._handling: Handling | None = None
        self._queue: SimpleQueue[Fault | Exception | None] = SimpleQueue()
        self._asked = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._filtered = self._unreadable = 0
        self.pid = target if isinstance(target, int) else 0
        """The process that is traced; of a command known once the trace is on."""
        self.counts: Counter[FaultKind] = Counter()
        """How many of each kind were recorded."""
        self.minor = self.major = 0
        """What the tasks' min_flt and maj_flt went up by in all recorded faults."""
        self.stops = 0
        """Stops of the guest so far."""

    @property
    def passed(self) -> int:
        """Faults of the traced tasks that the filters left out."""
        return self._filtered + (self._handling.passed if self._handling else 0)

    @property
    def others(self) -> int:
        """Faults of other tasks that ran through."""
        return self._handling.others if self._handling else 0

    @property
    def lost(self) -> int:
        """Faults without a record: the task or the trace ended before they did, or memory was unreadable."""
        return self._unreadable + (self._handling.lost + self._handling.unfinished if self._handling else 0)

    # on and off

    def __enter__(self) -> FaultTrace:
        """Begin. Raises NoSuchTask, UsageError (a kernel thread), GdbError, MachineError, GuestDied."""
        command = isinstance(self._target, str)
        if command:
            self.pid = self._machine.spawn(f"kill -STOP $$; exec {self._target}")
            self._await_stopped()
        try:
            self._begin(command)
            if command:
                self._machine.run(f"kill -CONT {self.pid}").check()
        except BaseException:
            self.close()
            if command:
                with suppress(InspectorError):
                    self._machine.run(f"kill -KILL {self.pid}")
            raise
        return self

    def _await_stopped(self) -> None:
        """Until the shell that is to become the command has stopped itself."""
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            self._reader.fresh()
            with suppress(InspectorError):
                if tasks.task(self._reader.kernel, self.pid).state == "T":
                    return
            time.sleep(0.01)
        raise MachineError(f"in the guest, {self._target!r} did not get ready within {_START:g} s")

    def _begin(self, command: bool) -> None:
        loop = self._machine.stop_loop()
        try:
            self._reader.fresh()
            self._followed = Followed(self._reader, self.pid, self._children)
            self._handling = Handling(self._reader, self._points, self._followed, self._chosen)
            if command:  # what the shell does before its exec is not told
                self._handling.skip_mm = self._followed.mm
            for address in (self._points.entry, self._points.call, self._points.exit, *self._points.returns):
                self._arm(loop, address)
            self._thread = threading.Thread(
                target=self._run, args=(loop, self._handling, self._followed), name="kmi-faults", daemon=True
            )
        except BaseException:
            loop.close()
            raise
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the trace: no breakpoint stays. Idempotent; recorded faults can still be iterated over."""
        self._ending.set()
        self._asked.set()
        if self._thread:
            self._thread.join()

    def __iter__(self) -> Iterator[Fault]:
        """The faults, as they are done; ends with the task, the limit or the trace. Raises GuestDied."""
        while (fault := self.next()) is not None:
            yield fault

    def next(self, timeout: float | None = None) -> Fault | None:
        """The next fault; None at the trace's end, or after `timeout` seconds. Raises GuestDied."""
        if self._queue.empty():
            self._asked.set()
        try:
            item = self._queue.get(timeout=timeout)
        except Empty:
            return None
        if not isinstance(item, Fault):
            self._queue.put(item)  # the end stays the end
        if isinstance(item, Exception):
            raise item
        return item

    @property
    def on(self) -> bool:
        """Whether the trace goes on."""
        return self._thread is not None and self._thread.is_alive()

    # the loop

    def _chosen(self, address: VirtAddr) -> bool:
        return self._start <= address < self._end

    def _run(self, loop: StopLoop, handling: Handling, followed: Followed) -> None:
        end: Exception | None = None
        try:
            looked = time.monotonic()
            while self._go(loop):
                hit = loop.wait(_WAIT)
                while hit is None and not self._ending.is_set():
                    self._look(followed)
                    hit = loop.wait(_WAIT)
                if hit is None:
                    break
                self.stops += 1
                self._reader.fresh()
                if time.monotonic() - looked > _WAIT:
                    looked = time.monotonic()
                    self._look(followed)
                self._at_stop(loop, handling, hit)
                stops.pass_over(loop, hit, self._code.get(hit.address), self._reader.kernel.space.read)
        except Exception as error:
            end = None if self._ending.is_set() else error
        finally:
            try:
                loop.close()
            except InspectorError as error:
                end = end or error
            self._queue.put(end)

    def _go(self, loop: StopLoop) -> bool:
        while not self._ending.is_set():
            if loop.go(_WAIT):
                return True
        return False

    def _look(self, followed: Followed) -> None:
        self._reader.fresh()
        if not followed.alive():
            self._ending.set()

    def _arm(self, loop: StopLoop, address: VirtAddr) -> None:
        """Insert a breakpoint; under KVM it hides the code there."""
        if address not in self._code:
            self._code[address] = self._reader.kernel.space.read(address, _LONGEST_INSTRUCTION)
            loop.insert(address)

    def _at_stop(self, loop: StopLoop, handling: Handling, hit: Hit) -> None:
        try:
            fault, asker = handling.at_stop(hit)
            if asker is not None:
                self._arm(loop, asker)
        except (OutsideRam, PageFault, SymbolsError, KernelError):  # what is corrupt must not end the trace
            self._unreadable += 1
            return
        if fault:
            self._record(fault)

    def _record(self, fault: Fault) -> None:
        if self._kinds is not None and fault.kind not in self._kinds:
            self._filtered += 1
            return
        self.counts[fault.kind] += 1
        self.minor += fault.minor
        self.major += fault.major
        self._asked.clear()
        self._queue.put(fault)
        if self._limit is not None and self.counts.total() >= self._limit:
            self._ending.set()
        elif self._step:
            self._asked.wait()
