"""A map of all physical memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.widgets import Static

from inspector.kernel.frames import FrameState
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Frames, Source
from inspector.tui.views.base import Go, View
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.tui.widgets.framemap import FrameMap
from inspector.units import Pfn, format_size


class Legend(Drawing):
    """The states with their colours, letters, counts and bytes: a column, or a few lines."""

    def __init__(self) -> None:
        super().__init__(id="legend")
        self._frames: Frames | None = None

    def show(self, frames: Frames | None) -> None:
        """A snapshot."""
        self._frames = frames
        self.redraw()

    def draw(self, width: int) -> Text:
        """As many columns as fit."""
        text = Text()
        if self._frames is None:
            return text
        totals = self._frames.counts.totals()
        columns = max(1, width // 26)
        full = columns == 1
        if full:
            heading(text, "Legend", width)
        states = [state for state in FrameState if totals[state]]
        for index, state in enumerate(states):
            look, count = palette.STATES[state], int(totals[state])
            entry = Text()
            entry.append(f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}")
            entry.append(f" {look.name:<12}")
            entry.append(f"{format_size(count * self._frames.page_size):>9}")
            if full:
                entry.append(f"{count:>8}", palette.DIM)
            last = index % columns == columns - 1 or index == len(states) - 1
            entry.truncate(width // columns, pad=not last)
            text.append_text(entry)
            if index < len(states) - 1 and last:
                text.append("\n")
        return text


class UnderCursor(Drawing):
    """Which frames the cursor is on, where they lie, and what they are."""

    def __init__(self) -> None:
        super().__init__(id="under-cursor")
        self._frames: Frames | None = None
        self._map: FrameMap | None = None

    def show(self, frames: Frames | None, frame_map: FrameMap) -> None:
        """A snapshot, and the map with the cursor."""
        self._frames, self._map = frames, frame_map
        self.redraw()

    def draw(self, width: int) -> Text:
        """Lines for a narrow column, or the same run together."""
        text = Text()
        if self._frames is None or self._map is None:
            return text
        pfn, count = self._map.pfn, 1 << self._map.shift
        size = self._frames.page_size
        counts = self._map.cell_counts(pfn)
        zones = [
            zone.name for zone in self._frames.zones if zone.start_pfn < pfn + count and pfn < zone.end_pfn
        ]
        parts = [
            _state(state, int(counts[state]) if count > 1 else None)
            for state in sorted(FrameState, key=lambda state: -int(counts[state]))
            if counts[state]
        ]
        last = f"-{pfn + count - 1:#x}" if count > 1 else ""
        lines = [
            Text.assemble(("PFN ", palette.DIM), (f"{pfn:#x}{last}", f"bold {palette.ACCENT}")),
            Text.assemble(("at ", palette.DIM), f"{pfn * size:#x}"),
            Text.assemble(("zone ", palette.DIM), " ".join(zones) or "none"),
        ]
        if width > 60:
            text = Text("  ").join([*lines, *parts])
            text.truncate(width, overflow="ellipsis")
            return text
        heading(text, "Under the cursor", width)
        text.append_text(Text("\n").join(lines))
        for part in parts:
            part.truncate(width, overflow="ellipsis")
            text.append("\n").append_text(part)
        return text


def _state(state: int, count: int | None) -> Text:
    look = palette.STATES[state]
    name = f" {look.name}" + ("" if count is None else f" {count}")
    return Text.assemble((f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}"), name)


class FramesView(View[Frames]):
    """The map, what is under its cursor, and the legend."""

    NAME = ViewName.FRAMES
    EVERY = 2.0
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.FRAMES])

    def compose(self) -> ComposeResult:
        """Side by side where there is room."""
        yield Static(id="frames-summary", classes="summary", markup=False)
        with Container(id="frames-body"):
            yield FrameMap()
            with Vertical(id="frames-side"):
                yield UnderCursor()
                yield Legend()

    def request(self, place: Place) -> Callable[[Source], Frames]:
        """All frames."""
        return lambda source: source.frames()

    def enter(self, place: Place) -> None:
        """The map is the same wherever the cursor is to go: what there is stays."""
        data = self.data
        super().enter(place)
        self.data = data
        if place.pfn is not None:
            self._map.go(place.pfn)

    def show(self, data: Frames) -> None:
        """All parts."""
        first = self.data is None
        super().show(data)
        self._map.set_frames(data)
        if first and self.place.pfn is not None:
            self._map.go(self.place.pfn)
        self._draw()

    @property
    def _map(self) -> FrameMap:
        return self.query_one(FrameMap)

    def _draw(self) -> None:
        self.query_one(UnderCursor).show(self.data, self._map)
        self.query_one(Legend).show(self.data)
        if self.data is None:
            return
        frames, each = len(self.data.counts), 1 << self._map.shift
        size = self.data.page_size
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{frames} frames", f"bold {palette.FOREGROUND}")
        text.append(", all shown" if self._map.fitted else ", 0 shows all", palette.DIM)
        text.append("; a cell is ", palette.DIM)
        cell = f"{each} frame{'s' if each > 1 else ''}, {format_size(each * size)}"
        text.append(cell, f"bold {palette.FOREGROUND}")
        text.append(", coloured by what most of it is" if each > 1 else "", palette.DIM)
        self.query_one("#frames-summary", Static).update(text)

    def on_frame_map_moved(self) -> None:
        """What is under the cursor has changed."""
        self._draw()

    def on_frame_map_chosen(self) -> None:
        """A click on the cell under the cursor."""
        self.action_open()

    def focus_first(self) -> None:
        """The map."""
        self._map.focus()

    def memento(self) -> Any:
        """Cursor and zoom."""
        return self._map.pfn, None if self._map.fitted else self._map.shift

    def restore(self, memento: Any) -> None:
        """Back there."""
        pfn, shift = memento
        self._map.set_shift(shift)
        self._map.go(pfn)

    def action_open(self) -> None:
        """The first frame of the cell's commonest state."""
        if self.data is None:
            return
        pfn, state = self._map.pfn, self._map.majority(self._map.pfn)
        states = self.data.counts.states[pfn : pfn + (1 << self._map.shift)]
        found = int((states == state).argmax()) if states.size else 0
        self.post_message(Go(Place(ViewName.PAGE, pfn=Pfn(pfn + found))))

    def action_zoom(self, steps: int) -> None:
        """Zoom."""
        self._map.zoom(steps)

    def action_fit(self) -> None:
        """All memory."""
        self._map.set_shift(None)

    def action_next_state(self, step: int) -> None:
        """The next run of the state under the cursor."""
        self._map.next_run(step)

    def action_glyphs(self) -> None:
        """Letters or half blocks."""
        self._map.letters()
        self._draw()
