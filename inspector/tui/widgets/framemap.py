"""All of physical memory as coloured cells, two to a character, drawn line by line."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from inspector.tui import palette
from inspector.tui.density import FrameCounts
from inspector.tui.source import Frames
from inspector.units import Pfn

_GUTTER = 11
_STEP = 8  # cells of a row are a multiple of it, so that rows begin at round PFNs
_PAIR = 1 << 10  # more than there are looks of one cell
_SHARES = (0.4, 0.65, 0.999)
_PURITY = (0.16, 0.5, 0.66, 0.82, 1.0)  # how bright a cell is: unlit, or by the share of its commonest owner


class FrameMap(ScrollView, can_focus=True, inherit_bindings=False):
    """A cell for one or many frames; its colour is the commonest owner, dimmer where others share it.

    Some frames can be lit: then every cell that holds one of them stands out, and all others fade.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "cell(-1)", "Left", show=False),
        Binding("right", "cell(1)", "Right", show=False),
        Binding("up", "row(-1)", "Up", show=False),
        Binding("down", "row(1)", "Down", show=False),
        Binding("pageup", "screen(-1)", "Page up", show=False),
        Binding("pagedown", "screen(1)", "Page down", show=False),
        Binding("home", "end(-1)", "First frame", show=False),
        Binding("end", "end(1)", "Last frame", show=False),
    ]
    DEFAULT_CSS = "FrameMap { height: 1fr; width: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }"

    class Moved(Message):
        """The cursor or the zoom has changed."""

    class Chosen(Message):
        """The cell under the cursor was clicked again."""

    def __init__(self) -> None:
        super().__init__(id="frame-map")
        self._frames: Frames | None = None
        self._zones_at: dict[int, str] = {}
        self._shift: int | None = None  # None: as much as fits
        self._pfn = 0
        self._letters = False
        self._lit: tuple[NDArray[np.bool_], FrameCounts] | None = None
        self._styles: dict[int, Style] = {}

    # What it holds

    @property
    def pfn(self) -> Pfn:
        """The first frame of the cell under the cursor."""
        return Pfn(self._pfn >> self.shift << self.shift)

    @property
    def shift(self) -> int:
        """A cell is 2**shift frames."""
        return self._fitting if self._shift is None else self._shift

    @property
    def fitted(self) -> bool:
        """Whether all memory is shown."""
        return self._shift is None or self._shift >= self._fitting

    def set_frames(self, frames: Frames | None) -> None:
        """Show another snapshot; cursor and zoom stay."""
        self._frames = frames
        self._zones_at = {int(zone.start_pfn): zone.name for zone in frames.zones} if frames else {}
        self._arrange()

    def light(self, lit: NDArray[np.bool_] | None) -> None:
        """Let only these frames stand out, in their owners' colours; None for all alike."""
        if lit is None or self._frames is None:
            self._lit = None
        else:
            counts = self._frames.counts
            dark = np.where(lit, counts.states, counts.kinds).astype(np.uint8)
            self._lit = lit, FrameCounts(dark, counts.kinds + 1)
        self.refresh()

    def go(self, pfn: int) -> None:
        """Put the cursor on a frame."""
        last = len(self._frames.counts) - 1 if self._frames else pfn
        self._pfn = max(0, min(pfn, last))
        self._follow()
        self.post_message(self.Moved())
        self.refresh()

    def zoom(self, steps: int) -> None:
        """Halve the frames in a cell so many times, or double them; the cursor stays on its frame."""
        self.set_shift(max(0, min(self.shift - steps, self._fitting)))

    def set_shift(self, shift: int | None) -> None:
        """2**shift frames a cell; None shows all."""
        self._shift = shift if shift is not None and shift < self._fitting else None
        self._arrange()
        self.post_message(self.Moved())

    def letters(self) -> bool:
        """Letters, one cell to a character, or half blocks; says which it is now."""
        self._letters = not self._letters
        self._arrange()
        return self._letters

    def next_run(self, step: int) -> None:
        """The next place where the owner under the cursor, or what is lit, begins anew."""
        if self._frames is None:
            return
        same = self._lit[0] if self._lit else self._frames.counts.states == self.majority(self.pfn)
        begins = np.flatnonzero(same & ~np.concatenate(([False], same[:-1])))
        behind = self.pfn + (1 << self.shift) if step > 0 else self.pfn
        at = int(np.searchsorted(begins, behind)) - (step < 0)
        if 0 <= at < begins.size:
            self.go(int(begins[at]))

    def cell_counts(self, pfn: int) -> NDArray[np.int64]:
        """Frames by Owner in the cell that begins at a PFN."""
        assert self._frames is not None
        counts: NDArray[np.int64] = self._frames.counts.cells(pfn, 1, self.shift)[0]
        return counts

    def majority(self, pfn: int) -> int:
        """The commonest owner of the cell that begins at a PFN."""
        return int(self.cell_counts(pfn).argmax())

    # Geometry

    @property
    def _columns(self) -> int:
        return max(_STEP, (self.size.width - _GUTTER) // _STEP * _STEP)

    @property
    def _rows_per_line(self) -> int:
        return 1 if self._letters else 2

    @property
    def _fitting(self) -> int:
        """The smallest shift that shows all."""
        if self._frames is None:
            return 0
        room = max(1, self.size.height) * self._rows_per_line * self._columns
        return max(0, (max(1, -(-len(self._frames.counts) // room)) - 1).bit_length())

    def _arrange(self) -> None:
        """The scrolled height follows data, zoom and size."""
        cells = -(-len(self._frames.counts) // (1 << self.shift)) if self._frames else 0
        lines = -(-cells // (self._columns * self._rows_per_line))
        self.virtual_size = Size(self.size.width, lines)
        self._follow()
        self.refresh()

    def on_resize(self) -> None:
        """Another width is another map."""
        self._arrange()
        self.post_message(self.Moved())

    def _follow(self) -> None:
        line = (self._pfn >> self.shift) // (self._columns * self._rows_per_line)
        top, room = self.scroll_offset.y, max(1, self.size.height)
        if line < top:
            self.scroll_to(y=line, animate=False, force=True)
        elif line >= top + room:
            self.scroll_to(y=line - room + 1, animate=False, force=True)

    # Keys and mouse

    def action_cell(self, step: int) -> None:
        """One cell on."""
        self.go(self.pfn + (step << self.shift))

    def action_row(self, step: int) -> None:
        """One row on; at the edges nothing."""
        to = self.pfn + (step * self._columns << self.shift)
        if self._frames and 0 <= to < len(self._frames.counts):
            self.go(to)

    def action_screen(self, step: int) -> None:
        """One screen on."""
        rows = max(1, self.size.height - 1) * self._rows_per_line
        self.go(self.pfn + (step * rows * self._columns << self.shift))

    def action_end(self, step: int) -> None:
        """The first frame, or the last."""
        if self._frames:
            self.go(0 if step < 0 else len(self._frames.counts) - 1)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the cell clicked; the terminal does not say which half."""
        row = (self.scroll_offset.y + event.y) * self._rows_per_line
        column = event.x - _GUTTER
        if self._frames is None or not 0 <= column < self._columns:
            return
        pfn = row * self._columns + column << self.shift
        if pfn >= len(self._frames.counts):
            return
        again = pfn == self.pfn
        self.go(pfn)
        if again:
            self.post_message(self.Chosen())

    # Drawing

    def render_line(self, y: int) -> Strip:
        """One line of the map: one or two rows of cells."""
        width = self.size.width
        blank = Style.parse(f"on {palette.BACKGROUND}")
        if self._frames is None:
            return Strip.blank(width, blank)
        first = (self.scroll_offset.y + y) * self._rows_per_line * self._columns
        if first << self.shift >= len(self._frames.counts):
            return Strip.blank(width, blank)
        looks = self._looks(first, self._rows_per_line * self._columns)
        segments = [self._gutter(first), *self._cells(looks)]
        segments = self._overlay(segments, first, looks)
        return Strip(segments).adjust_cell_length(width, blank)

    def _looks(self, first: int, count: int) -> NDArray[np.int64]:
        """For each cell owner * 5 + brightness, or -1 behind the last frame."""
        assert self._frames is not None
        counts = self._frames.counts.cells(first << self.shift, count, self.shift)
        total = counts.sum(axis=1)
        state = counts.argmax(axis=1)
        share = counts.max(axis=1) / np.maximum(total, 1)
        bright = 1 + np.searchsorted(_SHARES, share, "right")
        if self._lit:
            by_owner = self._lit[1].cells(first << self.shift, count, self.shift)[:, :-1]
            lit = by_owner.sum(axis=1)
            state = np.where(lit > 0, by_owner.argmax(axis=1), state)
            share = lit / np.maximum(total, 1)
            bright = np.where(lit > 0, 2 + np.searchsorted(_SHARES[1:], share, "right"), 0)
        looks: NDArray[np.int64] = np.where(total > 0, state * len(_PURITY) + bright, -1)
        return looks

    def _gutter(self, first: int) -> Segment:
        """The PFN that the line begins with, or the zone that begins in it."""
        start = first << self.shift
        end = start + (self._rows_per_line * self._columns << self.shift)
        zones = [name for pfn, name in self._zones_at.items() if start <= pfn < end]
        if zones:
            style = Style.parse(f"bold {palette.WARN} on {palette.BACKGROUND}")
            return Segment(f"{zones[-1][: _GUTTER - 1]:>{_GUTTER - 1}} ", style)
        return Segment(f"{start:>#{_GUTTER - 1}x} ", Style.parse(f"{palette.DIM} on {palette.BACKGROUND}"))

    def _cells(self, looks: NDArray[np.int64]) -> list[Segment]:
        """Runs of equal characters."""
        keys = looks
        if not self._letters:
            keys = (looks[: self._columns] + 1) * _PAIR + looks[self._columns :] + 1
        edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), keys.size]
        return [
            Segment(self._glyph(int(keys[a])) * (b - a), self._style(int(keys[a])))
            for a, b in pairwise(edges)
        ]

    def _glyph(self, key: int) -> str:
        return "▀" if not self._letters else " " if key < 0 else palette.OWNERS[key // len(_PURITY)].glyph

    def _style(self, key: int) -> Style:
        """The style of a character, made once."""
        found = self._styles.get(key if not self._letters else ~key)
        if found is None:
            if self._letters:
                found = Style.parse(f"bold {palette.BACKGROUND} on {_color(key)}")
            else:
                found = Style.parse(f"{_color(key // _PAIR - 1)} on {_color(key % _PAIR - 1)}")
            self._styles[key if not self._letters else ~key] = found
        return found

    def _overlay(self, segments: list[Segment], first: int, looks: NDArray[np.int64]) -> list[Segment]:
        """The cursor and the zones' beginnings, put over the cells."""
        marks: dict[int, Segment] = {}
        span = self._rows_per_line * self._columns
        for pfn in self._zones_at:
            cell = (pfn >> self.shift) - first
            if 0 <= cell < span and pfn:
                under = _color(int(looks[cell]))
                marks[cell % self._columns] = Segment("▏", Style.parse(f"{palette.CURSOR} on {under}"))
        cursor = (self._pfn >> self.shift) - first
        if 0 <= cursor < span:
            marks[cursor % self._columns] = self._cursor(cursor, looks)
        if not marks:
            return segments
        strip = Strip(segments)
        parts: list[Segment] = []
        at = 0
        for column in sorted(marks):
            parts += [*strip.crop(at, _GUTTER + column), marks[column]]
            at = _GUTTER + column + 1
        return [*parts, *strip.crop(at, strip.cell_length)]

    def _cursor(self, cell: int, looks: NDArray[np.int64]) -> Segment:
        if self._letters:
            style = Style.parse(f"bold {palette.BACKGROUND} on {palette.CURSOR}")
            return Segment(self._glyph(int(looks[cell])), style)
        column = cell % self._columns
        upper = cell < self._columns
        other = _color(int(looks[column + self._columns if upper else column]))
        return Segment("▀" if upper else "▄", Style.parse(f"{palette.CURSOR} on {other}"))


def _color(look: int) -> str:
    if look < 0:
        return palette.BACKGROUND
    state, bright = divmod(look, len(_PURITY))
    return palette.blend(palette.OWNERS[state].color, palette.BACKGROUND, _PURITY[bright])
