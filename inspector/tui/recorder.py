"""One thread that follows a trace of page faults, so that the screen never waits for the next one."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from textual.message import Message

from inspector.errors import InspectorError
from inspector.trace import Fault, FaultKind
from inspector.tui.source import Source, Tracing

MOST = 5000
"""Faults that are kept: the newest."""

_WAIT = 0.2  # seconds between looks whether the trace is to end
_SHOW = 0.1  # seconds between news while faults rush by
_JOIN = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How a trace goes. `state`: none, starting, running, holding (the guest stands at a fault), ended.

    `target` is a PID or a command; `pid` the traced process, 0 until a command has one. `filtered` counts
    faults of its own that were left out, `others` those of other tasks.
    """

    state: str = "none"
    target: int | str = 0
    pid: int = 0
    error: str = ""
    counts: tuple[tuple[FaultKind, int], ...] = ()
    minor: int = 0
    major: int = 0
    others: int = 0
    lost: int = 0

    @property
    def on(self) -> bool:
        """Whether the trace goes on."""
        return self.state in ("starting", "running", "holding")

    @property
    def total(self) -> int:
        """Faults recorded."""
        return sum(count for _, count in self.counts)


class Traced(Message):
    """There is news of the trace."""


class Recorder:
    """Starts, steps and ends one trace at a time. What it gives is safe to read on any thread."""

    def __init__(self, source: Source, post: Callable[[Message], Any]) -> None:
        """`post` takes messages from any thread."""
        self._source = source
        self._post = post
        self._run: _Run | None = None

    @property
    def progress(self) -> Progress:
        """How the trace goes, or went."""
        return self._run.progress if self._run else Progress()

    def faults(self) -> tuple[Fault, ...]:
        """The newest faults, in order."""
        return self._run.faults() if self._run else ()

    def start(self, target: int | str, children: bool) -> None:
        """Trace a process by PID, or a command that is started for it; another trace ends first."""
        before = self._run
        self._run = _Run(self._source, self._post, target, children, before)

    def step(self) -> None:
        """Go on to the next fault, and stay there."""
        if self._run:
            self._run.step()

    def let_run(self, running: bool) -> None:
        """Do not stay at each fault; or stay at the next."""
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

    def close(self) -> None:
        """End the trace and wait until no breakpoint is left."""
        if self._run:
            self._run.end()
            self._run.join()


class _Run:
    """One trace, from its begin to its end."""

    def __init__(
        self,
        source: Source,
        post: Callable[[Message], Any],
        target: int | str,
        children: bool,
        before: _Run | None,
    ) -> None:
        self._source, self._post = source, post
        self._target, self._children = target, children
        self._before = before
        self._faults: deque[Fault] = deque(maxlen=MOST)
        self._lock = threading.Condition()
        self._wanted = 1  # the first fault is asked for: there is something to look at
        self._running = False
        self._ending = False
        self._told = 0.0
        self.progress = Progress("starting", target, target if isinstance(target, int) else 0)
        self._thread = threading.Thread(target=self._follow, name="kmi-recorder", daemon=True)
        self._thread.start()

    def faults(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(self._faults)

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
        with self._source.trace(self._target, self._children) as trace:
            while not self._ending:
                if not self._asked():
                    self._tell(self._state(trace, "holding"))
                    with self._lock:
                        if not (self._ending or self._running or self._wanted):
                            self._lock.wait(_WAIT)
                    continue
                fault = trace.next(_WAIT)
                if fault is None and not trace.on:
                    fault = trace.next(0)  # one that came between the two looks
                    if fault is None:
                        break
                self._take(fault, trace)
        self._tell(self._state(trace, "ended"), now=True)

    def _asked(self) -> bool:
        with self._lock:
            return self._running or self._wanted > 0

    def _take(self, fault: Fault | None, trace: Tracing) -> None:
        if fault is not None:
            with self._lock:
                self._faults.append(fault)
                self._wanted = 0
        self._tell(self._state(trace, "running" if self._asked() else "holding"), now=not self._running)

    def _state(self, trace: Tracing, state: str) -> Progress:
        counts = Counter(trace.counts)
        return Progress(
            state=state,
            target=self._target,
            pid=trace.pid,
            counts=tuple(counts.most_common()),
            minor=trace.minor,
            major=trace.major,
            others=trace.others,
            lost=trace.lost,
        )

    def _tell(self, progress: Progress, now: bool = False) -> None:
        changed = progress != self.progress
        self.progress = progress
        if changed and (now or time.monotonic() - self._told > _SHOW or progress.state == "holding"):
            self._told = time.monotonic()
            self._post(Traced())
