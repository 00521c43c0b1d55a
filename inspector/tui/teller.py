"""One thread that plays a lab, so that the screen never waits for what happens in the guest."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

from textual.message import Message

from inspector.errors import InspectorError
from inspector.labs.story import Ending, Event, Question
from inspector.tui.source import Source

_JOIN = 10.0  # seconds: what a lab prepared in the guest is undone


class Told(Message):
    """The lab got on."""


class _End:
    """No more is wanted."""


class Teller:
    """Plays one lab at a time, event by event. What it gives is safe to read on any thread."""

    def __init__(self, source: Source, post: Callable[[Message], Any]) -> None:
        """`post` takes messages from any thread."""
        self._source = source
        self._post = post
        self._play: _Play | None = None

    @property
    def events(self) -> tuple[Event, ...]:
        """What was told so far."""
        return self._play.events if self._play else ()

    @property
    def answers(self) -> tuple[str, ...]:
        """What was answered to each question so far."""
        return self._play.answers if self._play else ()

    @property
    def error(self) -> str:
        """Why the lab could not be played, or not to its end; empty where it could."""
        return self._play.error if self._play else ""

    @property
    def busy(self) -> bool:
        """Whether the guest is at work, and the next event still to come."""
        return self._play is not None and self._play.busy

    @property
    def on(self) -> bool:
        """Whether there is more to come."""
        return self._play is not None and not self._play.over

    @property
    def question(self) -> Question | None:
        """What the reader is asked now."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Question) and not self.busy else None

    def begin(self, name: str) -> None:
        """Play a lab up to its first event; another one ends."""
        before, self._play = self._play, None
        if before:
            before.end()
        self._play = _Play(self._source, self._post, name, before)

    def go(self, answer: str | None = None) -> None:
        """On to the next event; a question wants an answer."""
        if self._play and not self._play.busy and not self._play.over:
            self._play.go(answer)

    def stop(self) -> None:
        """End the lab; what it prepared in the guest is undone soon."""
        if self._play:
            self._play.end()

    def close(self) -> None:
        """End the lab, and wait until the guest is as it was."""
        if self._play:
            self._play.end()
            self._play.join()


class _Play:
    """One lab, from its begin to its end."""

    def __init__(
        self, source: Source, post: Callable[[Message], Any], name: str, before: _Play | None
    ) -> None:
        self._source, self._post, self._name = source, post, name
        self._before = before
        self._inbox: queue.SimpleQueue[str | _End | None] = queue.SimpleQueue()
        self.events: tuple[Event, ...] = ()
        self.answers: tuple[str, ...] = ()
        self.error = ""
        self.busy = True
        self.over = False
        self._thread = threading.Thread(target=self._run, name="kmi-teller", daemon=True)
        self._thread.start()

    def go(self, answer: str | None) -> None:
        self.busy = True
        if answer is not None:
            self.answers = (*self.answers, answer)
        self._inbox.put(answer)

    def end(self) -> None:
        self._inbox.put(_End())

    def join(self) -> None:
        self._thread.join(_JOIN)

    def _run(self) -> None:
        try:
            if self._before:
                self._before.join()
                self._before = None
            self._tell()
        except InspectorError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"internal error: {type(error).__name__}: {error}"
        self.busy, self.over = False, True
        self._post(Told())

    def _tell(self) -> None:
        with closing(self._source.tell(self._name)) as story:
            answer: str | _End | None = None
            while not isinstance(answer, _End):
                try:
                    event = story.send(answer)
                except StopIteration:
                    return
                self._add(event)
                if isinstance(event, Ending):
                    return
                answer = self._inbox.get()

    def _add(self, event: Event) -> None:
        self.events = (*self.events, event)
        self.busy = False
        self._post(Told())
