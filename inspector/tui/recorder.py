"""One thread that follows a trace, so that the screen never waits for what happens next in the guest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from textual.message import Message

from inspector.errors import InspectorError
from inspector.tui.tracing import Target, Tracing

MOST = 5000
"""Records that are kept: the newest."""

_WAIT = 0.2  # seconds between looks whether the trace is to end
_SHOW = 0.1  # seconds between news while records rush by
_JOIN = 5.0

Record = TypeVar("Record")
Tally = TypeVar("Tally")
_In = TypeVar("_In", contravariant=True)
_Out = TypeVar("_Out", covariant=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """How a trace goes. `state`: none, starting, running, holding (the guest stands at a record), ended.

    `pid` is the traced process, 0 until a command has one; `total` counts records, `others` what other tasks
    did, `lost` what has no record.
    """

    state: str = "none"
    target: Target | None = None
    pid: int = 0
    error: str = ""
    total: int = 0
    others: int = 0
    lost: int = 0

    @property
    def on(self) -> bool:
        """Whether the trace goes on."""
        return self.state in ("starting", "running", "holding")


class Book(Protocol[_In, _Out]):
    """Sums up all records of a trace, those too that are kept no longer."""

    def add(self, record: _In) -> None:
        """The next record."""

    def tally(self) -> _Out:
        """The sum so far: frozen."""


class Traced(Message):
    """There is news of the trace."""


class Turn:
    """Whose trace is on: a guest bears one at a time, so that the next one ends the one before."""

    def __init__(self) -> None:
        self._run: _Run[Any, Any] | None = None

    def take(self, run: Callable[[_Run[Any, Any] | None], _Run[Record, Tally]]) -> _Run[Record, Tally]:
        """Begin a trace, which is given the one before."""
        made = run(self._run)
        self._run = made
        return made

    def stop(self) -> None:
        """End the trace that is on; its thread follows soon."""
        if self._run:
            self._run.end()

    def close(self) -> None:
        """End the trace that is on, and wait until no breakpoint is left."""
        if self._run:
            self._run.end()
            self._run.join()


class Recorder(Generic[Record, Tally]):
    """Starts, steps and ends one trace at a time. What it gives is safe to read on any thread."""

    def __init__(
        self,
        begin: Callable[[Target], Tracing[Record]],
        book: Callable[[], Book[Record, Tally]],
        post: Callable[[Message], Any],
        turn: Turn,
    ) -> None:
        """`post` takes messages from any thread."""
        self._begin, self._book, self._post = begin, book, post
        self._turn = turn
        self._run: _Run[Record, Tally] | None = None

    @property
    def progress(self) -> Progress:
        """How the trace goes, or went."""
        return self._run.progress if self._run else Progress()

    def records(self) -> tuple[Record, ...]:
        """The newest records, in order."""
        return self._run.records() if self._run else ()

    def tally(self) -> Tally:
        """The sum of all records so far."""
        return self._run.tally() if self._run else self._book().tally()

    def start(self, target: Target) -> None:
        """Trace a target; another trace on the guest ends first."""
        self._run = self._turn.take(
            lambda before: _Run(self._begin, self._book(), self._post, target, before)
        )

    def step(self) -> None:
        """Go on to the next record, and stay there."""
        if self._run:
            self._run.step()

    def let_run(self, running: bool) -> None:
        """Do not stay at each record; or stay at the next."""
        if self._run:
            self._run.let_run(running)

    def stop(self) -> None:
        """End the trace; the thread follows soon."""
        if self._run:
            self._run.end()

    def forget(self) -> None:
        """End the trace and drop what it recorded."""
        self.stop()
        self._run = None


class _Run(Generic[Record, Tally]):
    """One trace, from its begin to its end."""

    def __init__(
        self,
        begin: Callable[[Target], Tracing[Record]],
        book: Book[Record, Tally],
        post: Callable[[Message], Any],
        target: Target,
        before: _Run[Any, Any] | None,
    ) -> None:
        self._begin, self._book, self._post = begin, book, post
        self._target = target
        self._before = before
        self._records: deque[Record] = deque(maxlen=MOST)
        self._total = 0
        self._lock = threading.Condition()
        self._wanted = 1  # the first record is asked for: there is something to look at
        self._running = False
        self._ending = False
        self.progress = self._told = Progress("starting", target, target.pid)
        self._told_at = 0.0
        self._thread = threading.Thread(target=self._follow, name="kmi-recorder", daemon=True)
        self._thread.start()

    def records(self) -> tuple[Record, ...]:
        with self._lock:
            return tuple(self._records)

    def tally(self) -> Tally:
        with self._lock:
            return self._book.tally()

    def step(self) -> None:
        with self._lock:
            self._running, self._wanted = False, 1
            self._lock.notify()

    def let_run(self, running: bool) -> None:
        with self._lock:
            self._running = running
            self._lock.notify()

    def end(self) -> None:
        with self._lock:
            self._ending = True
            self._lock.notify()

    def join(self) -> None:
        self._thread.join(_JOIN)

    def _follow(self) -> None:
        error = ""
        try:
            if self._before:
                self._before.end()
                self._before.join()
                self._before = None
            if not self._ending:
                self._trace()
        except InspectorError as failure:
            error = str(failure)
        except Exception as failure:
            error = f"internal error: {type(failure).__name__}: {failure}"
        self._tell(replace(self.progress, state="ended", error=error), now=True)

    def _trace(self) -> None:
        with self._begin(self._target) as trace:
            while not self._ending:
                if not self._asked():
                    self._tell(self._state(trace, "holding"))
                    with self._lock:
                        if not (self._ending or self._running or self._wanted):
                            self._lock.wait(_WAIT)
                    continue
                record = trace.next(_WAIT)
                if record is None and not trace.on:
                    record = trace.next(0)  # one that came between the two looks
                    if record is None:
                        break
                self._take(record, trace)
        self._tell(self._state(trace, "ended"), now=True)

    def _asked(self) -> bool:
        with self._lock:
            return self._running or self._wanted > 0

    def _take(self, record: Record | None, trace: Tracing[Record]) -> None:
        if record is not None:
            with self._lock:
                self._records.append(record)
                self._book.add(record)
                self._total += 1
                self._wanted = 0
        self._tell(self._state(trace, "running" if self._asked() else "holding"), now=not self._running)

    def _state(self, trace: Tracing[Record], state: str) -> Progress:
        return Progress(
            state=state,
            target=self._target,
            pid=trace.pid,
            total=self._total,
            others=trace.others,
            lost=trace.lost,
        )

    def _tell(self, progress: Progress, now: bool = False) -> None:
        self.progress = progress
        soon = now or time.monotonic() - self._told_at > _SHOW or progress.state == "holding"
        if soon and progress != self._told:
            self._told, self._told_at = progress, time.monotonic()
            self._post(Traced())
