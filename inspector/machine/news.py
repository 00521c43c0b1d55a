"""Whom a machine tells what becomes of it: in order, on a thread that is for that alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from inspector.machine.model import DeathListener, RunState, StateListener

_Waiting = queue.SimpleQueue[Callable[[], None] | None]


class News:
    """The listeners, and what they have yet to hear. Its caller has a lock for all but `begin`."""

    def __init__(self) -> None:
        self._listeners: list[StateListener] = []
        self._mourners: list[DeathListener] = []
        self.begin()

    def begin(self) -> None:
        """Tell what comes from now on, also after a death."""
        self._waiting: _Waiting = queue.SimpleQueue()
        threading.Thread(target=_tell, args=(self._waiting,), name="kmi-state", daemon=True).start()

    def on_state(self, listener: StateListener) -> None:
        """Call `listener(state)` at every change."""
        self._listeners.append(listener)

    def on_death(self, listener: DeathListener, dead: str | None) -> None:
        """Call `listener(why)` at the death, or soon where `dead` says why it was."""
        self._mourners.append(listener)
        if dead is not None:
            threading.Thread(target=listener, args=(dead,), daemon=True).start()

    def change(self, state: RunState) -> None:
        """It stands otherwise now."""
        for listener in self._listeners:
            self._waiting.put(lambda listener=listener: listener(state))  # type: ignore[misc]

    def die(self, why: str) -> None:
        """It is gone: the last news."""
        for mourner in self._mourners:
            self._waiting.put(lambda mourner=mourner: mourner(why))  # type: ignore[misc]
        self._waiting.put(None)


def _tell(waiting: _Waiting) -> None:
    while (news := waiting.get()) is not None:
        with suppress(Exception):  # a listener's fault is not the guest's
            news()
