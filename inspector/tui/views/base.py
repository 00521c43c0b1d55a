"""What all views have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from textual.containers import Vertical
from textual.message import Message

from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source

Data = TypeVar("Data")


class Go(Message):
    """Go to a place; `history` is False where it replaces the one that is shown (a step, not a link)."""

    def __init__(self, place: Place, history: bool = True) -> None:
        super().__init__()
        self.place = place
        self.history = history


class Reread(Message):
    """The view wants other data for the same place."""


class NextTask(Message):
    """Go to the address space of the next task in PID order, or of the one before."""

    def __init__(self, pid: int, step: int) -> None:
        super().__init__()
        self.pid = pid
        self.step = step


class View(Vertical, Generic[Data]):
    """A screen's body: it says what it wants to know, and draws it when it comes."""

    NAME: ClassVar[ViewName]
    EVERY: ClassVar[float] = 1.0
    """Seconds between reads while the view is shown."""
    DUTY: ClassVar[int] = 4
    """Reading takes one part in so many of the time at most."""

    def __init__(self) -> None:
        super().__init__(id=self.NAME.value)
        self.place = Place(self.NAME)
        self.data: Data | None = None

    @property
    def pid(self) -> int | None:
        """The task that the view is about, or that its cursor is on."""
        return self.place.pid

    def request(self, place: Place) -> Callable[[Source], Data]:
        """The question whose answer show() gets; it runs on the poller's thread and touches no widget."""
        raise NotImplementedError

    def enter(self, place: Place) -> None:
        """The view is to show this place; data of another one is dropped."""
        if place != self.place:
            self.data = None
            self.place = place
            self.forget()

    def show(self, data: Data) -> None:
        """Draw fresh data."""
        self.data = data

    def forget(self) -> None:
        """Draw that there is no data yet."""

    def news(self) -> None:
        """What the view follows, a trace or a lab, got on."""

    def focus_first(self) -> None:
        """Give the focus to what takes the arrow keys."""

    def memento(self) -> Any:
        """What to keep for when one comes back: where the cursor is."""

    def leave(self) -> None:
        """Esc closes the view: what goes on in it ends."""

    def restore(self, memento: Any) -> None:
        """Put back what memento() gave; the data may not be there yet."""
