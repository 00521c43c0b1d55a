"""The two lines on top of every screen: what the guest does, and where one is."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from inspector.machine import RunState
from inspector.tui import palette
from inspector.tui.actions import TAB_KEYS
from inspector.tui.places import ViewName
from inspector.units import format_size

# How names are cut where all are too many: those over so many letters, to so many; and what is between.
_FITS = (
    (99, 99, "  "),
    (99, 99, " "),
    (6, 4, " "),
    (5, 3, " "),
    (3, 3, " "),
    (2, 2, " "),
    (0, 0, " "),
    (0, 0, ""),
)
_WAIT_SHOWN = 0.3  # seconds of reading until it is said

_KINDS = {
    "running": ("● RUNNING", palette.GOOD),
    "paused": ("▮▮ PAUSED", palette.WARN),
    "breakpoint": ("▮▮ STOPPED", palette.WARN),
    "panicked": ("✖ PANICKED", palette.BAD),
    "saved": ("▣ SAVED IMAGE", palette.ACCENT),
    "dead": ("✖ DEAD", palette.BAD),
}


class StatusLine(Widget):
    """Running or not and by whom, which guest, and how old the data is that the screen shows."""

    DEFAULT_CSS = "StatusLine { height: 1; background: $panel; }"

    def __init__(self) -> None:
        super().__init__(id="status")
        self.guest = ""
        self._machine_state: RunState | None = None
        self._held = ""
        self._read_at: float | None = None
        self._read_seconds = 0.0
        self._asked_at: float | None = None

    def on_mount(self) -> None:
        """The age of the data grows without news."""
        self.set_interval(0.5, self.refresh)

    def asked(self) -> None:
        """New data was asked for; what there is belongs to another view."""
        self._asked_at, self._read_at = time.monotonic(), None
        self.refresh()

    def answered(self, seconds: float) -> None:
        """Data came, after so many seconds of reading."""
        self._read_at, self._read_seconds, self._asked_at = time.monotonic(), seconds, None
        self.refresh()

    def failed(self) -> None:
        """The question has an answer, if not the one hoped for."""
        self._asked_at = None
        self.refresh()

    def set_state(self, state: RunState) -> None:
        """What the guest does now."""
        self._machine_state = state
        self.refresh()

    def set_held(self, where: str) -> None:
        """A trace holds the guest there, or no more (empty): its short stops are no news to the machine."""
        self._held = where
        self.refresh()

    @property
    def state(self) -> RunState | None:
        """What the guest does now, as far as it is known."""
        if self._held and self._machine_state and self._machine_state.running:
            return RunState("breakpoint", self._held)
        return self._machine_state

    def set_guest(self, release: str, accel: str, memory: int, cpus: int) -> None:
        """Which guest; memory in bytes."""
        self.guest = (
            f"Linux {release} · {accel} · {cpus} CPU{'s' if cpus != 1 else ''} · {format_size(memory)}"
        )
        self.refresh()

    def render(self) -> Text:
        """One line: state and guest on the left, the data's age on the right."""
        width = self.size.width
        left = Text(no_wrap=True, end="")
        if self.state:
            word, color = _KINDS[self.state.kind]
            left.append(f" {word} ", f"bold {palette.BACKGROUND} on {color}")
            who = self.state.reason.removeprefix(self.state.kind).strip()
            if self.state.kind not in ("running", "saved") and who:
                left.append(f" {who}", color)
        right = self._age()
        room = width - left.cell_len - len(right) - 3
        if room > 12:
            guest = Text(f" {self.guest}", palette.FOREGROUND, no_wrap=True, end="")
            guest.truncate(room, overflow="ellipsis")
            left.append(guest)
        left.truncate(max(1, width - len(right) - 1), overflow="ellipsis", pad=True)
        left.append(right, palette.WARN if self._waiting else palette.DIM)
        return left

    @property
    def _waiting(self) -> bool:
        return self._asked_at is not None and time.monotonic() - self._asked_at > _WAIT_SHOWN

    def _age(self) -> str:
        if self._waiting:
            return "reading… "
        if self._read_at is None:
            return ""
        if self.state and self.state.kind == "saved":
            return f"read in {_seconds(self._read_seconds)} "
        if self.state and not self.state.running:
            return f"stopped · read in {_seconds(self._read_seconds)} "
        return f"{time.monotonic() - self._read_at:.0f} s old · read in {_seconds(self._read_seconds)} "


class Tabs(Widget):
    """The views by their digits; the one shown is bright. Click to switch."""

    DEFAULT_CSS = "Tabs { height: 1; background: $surface; }"

    class Chosen(Message):
        """A view was clicked."""

        def __init__(self, view: ViewName) -> None:
            super().__init__()
            self.view = view

    def __init__(self) -> None:
        super().__init__(id="tabs")
        self.view = ViewName.OVERVIEW

    def show(self, view: ViewName) -> None:
        """Mark the view that is shown."""
        self.view = view
        self.refresh()

    def render(self) -> Text:
        """One line."""
        line = Text(no_wrap=True, end="")
        for view, key, name, gap in self._layout():
            here = view is self.view
            style = f"bold {palette.BACKGROUND} on {palette.ACCENT}" if here else palette.FOREGROUND
            line.append(key, style if here else palette.WARN)
            line.append(name, style)
            line.append(gap)
        return line

    def on_click(self, event: events.Click) -> None:
        """Find the tab under the pointer."""
        at = 0
        for view, *parts in self._layout():
            at += sum(map(len, parts))
            if event.x < at:
                self.post_message(self.Chosen(view))
                return

    def _layout(self) -> Iterator[tuple[ViewName, str, str, str]]:
        """(view, key, name, gap) of each tab: in full, closer, cut short, and at last only the key."""
        for parts in (self._tabs(*fit) for fit in _FITS):
            if sum(len(part) for _, *tab in parts for part in tab) - len(parts[-1][-1]) <= self.size.width:
                break
        yield from parts

    def _tabs(self, most: int, cut: int, gap: str) -> list[tuple[ViewName, str, str, str]]:
        """Names, but for the view that is shown, of at most so many letters; without any no room around.

        Where room is short a name that begins with its key is not told twice.
        """
        tabs = []
        for view, key in TAB_KEYS.items():
            name, around = view.title(), " " if most > 6 or view is self.view else ""
            name = name if view is self.view or len(name) <= most else name[:cut]
            if not around and name[:1].lower() == key.lower():  # the key is told by its colour
                name = name[1:]
            after = gap if not around or most > 6 else ""
            tabs.append((view, f"{around}{key}{around}", f"{name}{around}", after))
        return tabs


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
