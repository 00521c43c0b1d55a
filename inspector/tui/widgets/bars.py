"""Bars: shares of a whole, a zone against its watermarks, free lists as a heat table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual.binding import Binding, BindingType

from inspector.kernel.frames import FrameState
from inspector.kernel.zones import Zone
from inspector.linux import FreeCounts
from inspector.tui import palette
from inspector.tui.widgets.drawing import Drawing, Edge, heading
from inspector.units import format_size

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int) -> str:
    """A bar that fills `share` of `width` cells, to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def portions(counts: Sequence[int], width: int) -> list[int]:
    """Cells for each count: proportional, `width` in all, and one at least for each that is not zero."""
    total = sum(counts)
    if not total:
        return [0] * len(counts)
    exact = np.array(counts, np.float64) / total * width
    cells = np.where(np.array(counts) > 0, np.maximum(1, np.floor(exact)), 0).astype(np.int64)
    while cells.sum() < width:
        cells[np.argmax(exact - cells)] += 1
    while cells.sum() > width and cells.max() > 1:
        cells[np.argmax(np.where(cells > 1, cells - exact, -np.inf))] -= 1
    return [int(cell) for cell in cells]


class Usage(Drawing):
    """All frames by state: one stacked bar and its legend."""

    def __init__(self) -> None:
        super().__init__(id="usage")
        self._counts: NDArray[np.int64] | None = None
        self._page_size = 0

    def set_counts(self, counts: NDArray[np.int64], page_size: int) -> None:
        """Frames by FrameState."""
        self._counts, self._page_size = counts, page_size
        self.redraw()

    def draw(self, width: int) -> Text:
        """The bar, and under it what its parts are."""
        text = Text()
        if self._counts is None:
            heading(text, "Memory", width)
            return text
        states = [state for state in FrameState if state != FrameState.HOLE and self._counts[state]]
        counts = [int(self._counts[state]) for state in states]
        total = sum(counts)
        heading(
            text,
            "Memory",
            width,
            f"{total} frames, {format_size(total * self._page_size)}, by what they are for",
        )
        for state, cells in zip(states, portions(counts, width), strict=True):
            look = palette.STATES[state]
            text.append(look.glyph * cells, f"{palette.BACKGROUND} on {look.color}")
        text.append("\n")
        columns = max(1, width // 38) if width < 110 else max(1, width // 36)
        each = width // columns
        for index, (state, count) in enumerate(zip(states, counts, strict=True)):
            look = palette.STATES[state]
            entry = Text()
            entry.append(f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}")
            entry.append(f" {look.name:<13}{format_size(count * self._page_size):>10}")
            entry.append(f"{count / total:>6.1%}", palette.DIM)
            last = index % columns == columns - 1 or index == len(states) - 1
            entry.truncate(each, pad=not last)
            text.append_text(entry)
            if last and index < len(states) - 1:
                text.append("\n")
        return text


class ZoneBars(Drawing, can_focus=True):
    """Every zone: how much is free, and that against the watermarks on a scale of their own."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="zones")
        self._zones: tuple[Zone, ...] = ()
        self._page_size = 0
        self._cursor = 0

    @property
    def zone(self) -> Zone | None:
        """The zone under the cursor."""
        return self._zones[self._cursor] if self._zones else None

    def set_zones(self, zones: tuple[Zone, ...], page_size: int) -> None:
        """Populated zones."""
        self._zones, self._page_size = zones, page_size
        self._cursor = min(self._cursor, max(0, len(zones) - 1))
        self.redraw()

    def action_move(self, step: int) -> None:
        """Move the cursor; past the first or last zone the focus goes on."""
        if not 0 <= self._cursor + step < len(self._zones):
            self.post_message(Edge(step))
        self._cursor = max(0, min(self._cursor + step, len(self._zones) - 1))
        self.refresh()

    def watch_has_focus(self, value: bool) -> None:
        """The cursor shows with the focus."""
        super().watch_has_focus(value)
        self.refresh()

    def draw(self, width: int) -> Text:
        """A zone's free share; free on the scale of the watermarks; where it is narrow their sizes below."""
        text = Text()
        heading(text, "Zones", width, "free of managed, and against the watermarks")
        for index, zone in enumerate(self._zones):
            here = index == self._cursor and self.has_focus
            ground = f" on {palette.CURSOR_ROW}" if here else ""
            text.append("▶" if here else " ", palette.WARN)
            text.append(f"{zone.name:<8}", f"bold {palette.FOREGROUND}{ground}")
            self._fill(text, zone, width - 9)
            text.append("\n" + " " * 9)
            self._marks(text, zone, width - 9)
            if index < len(self._zones) - 1:
                text.append("\n")
        return text

    def _fill(self, text: Text, zone: Zone, width: int) -> None:
        share = zone.free / zone.managed if zone.managed else 0.0
        label = f" {self._bytes(zone.free):>9} of {self._bytes(zone.managed):>9} {share:>4.0%}"
        text.append(bar(share, max(4, width - len(label))), f"{self._color(zone)} on {palette.PANEL}")
        text.append(label)

    def _marks(self, text: Text, zone: Zone, width: int) -> None:
        marks = zone.watermarks
        label = f" min {self._bytes(marks.min)} low {self._bytes(marks.low)} high {self._bytes(marks.high)}"
        below = len(label) > width - 24
        room = max(4, width if below else width - len(label))
        scale = max(marks.high * 2, 1)
        cells = ["─"] * room
        for name, pages in (("m", marks.min), ("l", marks.low), ("h", marks.high)):
            cells[min(room - 1, pages * room // scale)] = name
        cells[min(room - 1, zone.free * room // scale)] = "▶" if zone.free > scale else "◆"
        for cell in cells:
            color = palette.FAINT if cell == "─" else palette.WARN if cell in "mlh" else self._color(zone)
            text.append(cell, color)
        text.append(("\n" + " " * 8 if below else "") + label, palette.DIM)

    def _color(self, zone: Zone) -> str:
        marks = zone.watermarks
        return (
            palette.BAD if zone.free < marks.min else palette.WARN if zone.free < marks.low else palette.GOOD
        )

    def _bytes(self, pages: int) -> str:
        return format_size(pages * self._page_size)


class FreeLists(Drawing, can_focus=True):
    """Free blocks by order and migratetype, shaded by how much memory they hold."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("up", "leave", "Up", show=False)]

    def __init__(self) -> None:
        super().__init__(id="free")
        self._free: tuple[FreeCounts, ...] = ()
        self._page_size = 0

    def action_leave(self) -> None:
        """The focus goes back: it comes here so that a small screen scrolls down."""
        self.post_message(Edge(-1))

    def set_free(self, free: tuple[FreeCounts, ...], page_size: int) -> None:
        """One table a zone."""
        self._free, self._page_size = free, page_size
        self.redraw()

    def draw(self, width: int) -> Text:
        """A row a migratetype that has free blocks, a column an order, and the row's sum in bytes."""
        text = Text()
        heading(text, "Free lists", width, "blocks by order; shade: memory in them")
        for number, free in enumerate(self._free):
            self._zone(text, free, width)
            if number < len(self._free) - 1:
                text.append("\n")
        return text

    def _zone(self, text: Text, free: FreeCounts, width: int) -> None:
        orders = free.counts.shape[1]
        name_width, sum_width = 13, 10
        if name_width + 4 * orders + sum_width > width:
            sum_width = 0  # the counts matter more
        cell = max(4, min(8, (width - name_width - sum_width) // orders))
        text.append(f"{free.zone:<{name_width}}", f"bold {palette.FOREGROUND}")
        for order in range(orders):
            text.append(f"{order:>{cell - 1}} ", palette.DIM)
        text.append(f"{'in all':>{sum_width}}" if sum_width else "", palette.DIM)
        sizes = free.counts * (self._page_size << np.arange(orders))
        most = max(int(sizes.max()), 1)
        for index, name in enumerate(free.migratetypes):
            if not free.counts[index].any():
                continue
            text.append(f"\n {name:<{name_width - 1}}")
            for order in range(orders):
                count, size = int(free.counts[index, order]), int(sizes[index, order])
                shade = 0.15 + 0.85 * (size / most) ** 0.5 if count else 0.0
                color = palette.blend("#1d8f72", palette.BACKGROUND, shade)
                number = _short(count, cell - 1) if count else "·"
                text.append(
                    f"{number:>{cell - 1}}", f"{palette.FOREGROUND if count else palette.FAINT} on {color}"
                )
                text.append(" ")
            if sum_width:
                text.append(f"{format_size(int(sizes[index].sum())):>{sum_width}}")


def _short(count: int, width: int) -> str:
    """A count in `width` cells, thousands as k where it must be."""
    return str(count) if len(str(count)) <= width else f"{count // 1000}k"
