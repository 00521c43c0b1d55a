"""One thread that reads the guest, so that the screen never waits for memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from textual.message import Message

from inspector.errors import GuestDied, InspectorError
from inspector.machine import RunState
from inspector.tui.source import Source

_JOIN = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Request:
    """What the visible view wants to know, and how often in seconds. `serial` tells answers apart.

    Reading may take one part in `duty` of the time at most: what takes long is read less often.
    """

    serial: int
    read: Callable[[Source], Any]
    every: float
    duty: int = 4


class Answer(Message):
    """What a request gave; `seconds` is how long the reading took."""

    def __init__(self, serial: int, data: Any, seconds: float) -> None:
        super().__init__()
        self.serial = serial
        self.data = data
        self.seconds = seconds


class Failed(Message):
    """A request was not answered, for a reason that fits on one line. `serial` is None for a one-off job."""

    def __init__(self, serial: int | None, error: str) -> None:
        super().__init__()
        self.serial = serial
        self.error = error


class StateChanged(Message):
    """Whether the guest runs."""

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self.state = state


class Died(Message):
    """The guest is gone; `tail` is the last that its console said."""

    def __init__(self, why: str, tail: str) -> None:
        super().__init__()
        self.why = why
        self.tail = tail


class Poller:
    """Reads what is watched, over and over, and does jobs in between, all on one thread of its own."""

    def __init__(self, source: Source, post: Callable[[Message], Any]) -> None:
        """`post` takes messages from any thread."""
        self._source = source
        self._post = post
        self._inbox: queue.SimpleQueue[Request | Callable[[Source], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kmi-poller", daemon=True)
        self._request: Request | None = None
        self._due = 0.0
        self._state: RunState | None = None
        self._fresh = False  # the watched request was answered since the guest stopped: nothing new to read
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the read that is under way."""
        self._stopped.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(_JOIN)

    def watch(self, request: Request) -> None:
        """Read this from now on, and nothing else."""
        self._inbox.put(request)

    def do(self, job: Callable[[Source], Any]) -> None:
        """Do this once, before the next read; what is watched is read again after it."""
        self._inbox.put(job)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._take_all()
            if self._stopped.is_set():
                return
            if not self._guarded(None, self._check_state):
                self._due = time.monotonic() + 1
                continue
            request = self._request
            if request and time.monotonic() >= self._due:
                if not self._fresh:
                    self._guarded(request.serial, partial(self._answer, request))
                self._due = max(self._due, time.monotonic() + request.every)

    def _take_all(self) -> None:
        """Wait until something is due or asked; only the newest of several requests counts."""
        timeout = max(0.0, self._due - time.monotonic()) if self._request else 1.0
        try:
            item = self._inbox.get(timeout=timeout)
            while True:
                if isinstance(item, Request):
                    self._request = item
                elif item is not None:
                    self._guarded(None, partial(item, self._source))
                self._due, self._fresh = 0.0, False
                item = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _check_state(self) -> None:
        state = self._source.state()
        if state != self._state:
            self._state, self._fresh = state, False
            self._post(StateChanged(state))
        if state.kind == "dead":
            raise GuestDied(state.reason)

    def _answer(self, request: Request) -> None:
        started = time.monotonic()
        data = request.read(self._source)
        seconds = time.monotonic() - started
        self._due = time.monotonic() + seconds * request.duty
        self._fresh = self._state is not None and not self._state.running
        self._post(Answer(request.serial, data, seconds))

    def _guarded(self, serial: int | None, work: Callable[[], Any]) -> bool:
        """Do the work; whatever goes wrong becomes a message, and the thread lives on."""
        try:
            work()
        except GuestDied as error:
            self._stopped.set()
            self._post(Died(str(error), self._tail()))
            return False
        except InspectorError as error:
            self._post(Failed(serial, str(error)))
            return False
        except Exception as error:
            self._post(Failed(serial, f"internal error: {type(error).__name__}: {error}"))
            return False
        return True

    def _tail(self) -> str:
        try:
            return self._source.console(12)
        except Exception:
            return ""
