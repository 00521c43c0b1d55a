"""A trace: on and off, the loop of stops, and the records that come out. What is traced is a subclass's."""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

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
from inspector.trace.reading import Reader
from inspector.units import VirtAddr

_WAIT = 0.2  # seconds between looks whether the task lives and the trace goes on
_START = 30.0  # seconds for a command to get ready
_FOR_EVER = 1e9
_PLAIN = re.compile(r"[\w./+][\w./+-]*")  # a program's name in which a shell reads nothing else
_LONGEST_INSTRUCTION = 15  # SDM vol. 2, 2.3.11

Record = TypeVar("Record")


class Traceable(Protocol):
    """What a trace needs of a machine."""

    def stop_loop(self) -> StopLoop:
        """Breakpoints for a loop of many short stops."""

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Run a /bin/sh command in the guest."""

    def spawn(self, command: str) -> int:
        """Leave a command running in the guest."""


class Trace(ABC, Generic[Record]):
    """Records of what tasks do, as they do it: a context manager, and an iterator.

    `target` is a PID, or a program with its arguments, which is started for it; None: all tasks. `limit` ends
    the trace after so many records. With `children` what the process forks is traced too; with `step` the
    guest stands still at each record until the next is asked for. The guest stops for some milliseconds at
    each event that is looked at, whichever task's it is.
    """

    def __init__(
        self,
        kernel: Kernel,
        machine: Traceable,
        target: int | str | None,
        *,
        limit: int | None,
        children: bool,
        step: bool,
    ) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"no trace of {limit} records: give a limit of 1 or more")
        self._reader = Reader(kernel)
        self._machine = machine
        self._target = target
        self._limit, self._children, self._step = limit, children, step
        self._code: dict[int, bytes] = {}
        self._followed: Followed | None = None
        self._queue: SimpleQueue[tuple[Record] | Exception | None] = SimpleQueue()
        self._asked = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._unreadable = 0
        self.pid = target if isinstance(target, int) else 0
        """The process that is traced; of a command known once the trace is on."""
        self.recorded = 0
        """Records so far."""
        self.stops = 0
        """Stops of the guest so far."""

    # what a subclass is

    @abstractmethod
    def _points(self) -> Iterable[VirtAddr]:
        """Where to stop from the beginning on."""

    @abstractmethod
    def _prepare(self, followed: Followed | None, command: bool) -> None:
        """The guest stands still and is about to be traced; a command's task is a shell yet."""

    @abstractmethod
    def _at_hit(self, hit: Hit) -> tuple[Sequence[Record], VirtAddr | None]:
        """What a stop tells: records that it completes, and where to stop from now on too."""

    # on and off

    def __enter__(self) -> Self:
        """Begin. Raises NoSuchTask, UsageError (a kernel thread), GdbError, MachineError, GuestDied."""
        command = isinstance(self._target, str)
        if command:
            self._check_program(str(self._target))
            self.pid = self._machine.spawn(f"kill -STOP $$; exec {self._target}")
            self._await_stopped()
        try:
            self._begin(command)
            if command and self._step:
                # It may be held at its first record before the guest's agent has answered us.
                threading.Thread(target=self._wake, args=(_FOR_EVER,), name="kmi-wake", daemon=True).start()
            elif command:
                self._wake(_START)
        except BaseException:
            self.close()
            if command:
                with suppress(InspectorError):
                    self._machine.run(f"kill -KILL {self.pid}")
            raise
        return self

    def _wake(self, timeout: float) -> None:
        """Let the command go on."""
        with suppress(InspectorError) if self._step else nullcontext():
            self._machine.run(f"kill -CONT {self.pid}", timeout).check()

    def _check_program(self, command: str) -> None:
        """Raises UsageError where the guest has no such program: the trace were one of a shell's end."""
        program = (command.split(maxsplit=1) or [""])[0]
        if _PLAIN.fullmatch(program) and self._machine.run(f"command -v {program}").returncode:
            raise UsageError(f"the guest has no program {program}")

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
            if self._target is not None:
                self._followed = Followed(self._reader, self.pid, self._children)
            self._prepare(self._followed, command)
            for address in self._points():
                self._arm(loop, address)
            self._thread = threading.Thread(target=self._run, args=(loop,), name="kmi-trace", daemon=True)
        except BaseException:
            loop.close()
            raise
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the trace: no breakpoint stays. Idempotent; what was recorded can still be iterated over."""
        self._ending.set()
        self._asked.set()
        if self._thread:
            self._thread.join()

    @property
    def on(self) -> bool:
        """Whether the trace goes on."""
        return self._thread is not None and self._thread.is_alive()

    def __iter__(self) -> Iterator[Record]:
        """The records, as they come; ends with the task, the limit or the trace. Raises GuestDied."""
        while (record := self.next()) is not None:
            yield record

    def next(self, timeout: float | None = None) -> Record | None:
        """The next record; None at the trace's end, or after `timeout` seconds. Raises GuestDied."""
        if self._queue.empty():
            self._asked.set()
        try:
            item = self._queue.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(item, tuple):
            return item[0]
        self._queue.put(item)  # the end stays the end
        if item is not None:
            raise item
        return None

    # the loop

    def _run(self, loop: StopLoop) -> None:
        end: Exception | None = None
        looked = time.monotonic()
        try:
            while self._go(loop):
                hit = loop.wait(_WAIT)
                while hit is None and not self._ending.is_set():
                    self._look()
                    hit = loop.wait(_WAIT)
                if hit is None:
                    break
                self.stops += 1
                self._reader.fresh()
                if time.monotonic() - looked > _WAIT:
                    looked = time.monotonic()
                    self._look()
                self._at_stop(loop, hit)
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

    def _look(self) -> None:
        self._reader.fresh()
        if self._followed and not self._followed.alive():
            self._ending.set()

    def _arm(self, loop: StopLoop, address: VirtAddr) -> None:
        """Insert a breakpoint; under KVM it hides the code there."""
        if address not in self._code:
            self._code[address] = self._reader.kernel.space.read(address, _LONGEST_INSTRUCTION)
            loop.insert(address)

    def _at_stop(self, loop: StopLoop, hit: Hit) -> None:
        try:
            records, further = self._at_hit(hit)
            if further is not None:
                self._arm(loop, further)
        except (OutsideRam, PageFault, SymbolsError, KernelError):  # what is corrupt must not end the trace
            self._unreadable += 1
            return
        for record in records:
            self.recorded += 1
            self._asked.clear()
            self._queue.put((record,))
            if self._limit is not None and self.recorded >= self._limit:
                self._ending.set()
                return
            if self._step:
                self._asked.wait()
