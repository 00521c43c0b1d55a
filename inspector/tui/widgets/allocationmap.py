"""All of memory, and in it the frames that a trace saw: they light up when they are taken, and go out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from inspector.trace import Allocation
from inspector.trace.ledger import FREED, Holdings
from inspector.tui import palette
from inspector.tui.tracing import Watched
from inspector.tui.widgets.drawing import Picture, heading
from inspector.units import format_size

_GUTTER = 9
_STEP = 8  # cells of a row are a multiple of it, so that rows begin at round PFNs
_DIMMEST = 0.45  # brightness of a cell in which one of many frames is held
_ZONES = ("#1a212b", "#222c3a")  # the ground: a zone, and the next
_NOTE = 32  # cells that the heading takes before the legend
_MAX_ORDER = 20


@dataclass(frozen=True, slots=True)
class MapData:
    """What the trace saw, where memory lies, and the record under the cursor."""

    holdings: Holdings
    watched: Watched
    record: Allocation | None

    @property
    def end(self) -> int:
        """One past the last frame of any zone."""
        return max((int(zone.end_pfn) for zone in self.watched.zones), default=1)

    @property
    def block(self) -> tuple[int, int]:
        """The pageblock that the record's first frame is in: its first frame, and one past its last."""
        order = self.watched.block_order
        number = self.record.pfn >> order if self.record else 0
        return number << order, number + 1 << order

    def frames(self, first: int, end: int, size: int) -> NDArray[np.uint8]:
        """What is known of each frame (see Holdings) from `first` to `end`, in an array of that size."""
        found = np.zeros(size, np.uint8)
        known = self.holdings.frames[first : min(end, first + size)]
        found[: known.size] = known
        return found


class AllocationMap(Picture[MapData]):
    """Dark is what the trace saw nothing of. It fills the height that it is given."""

    def __init__(self) -> None:
        super().__init__(id="allocation-map")

    def picture(self, data: MapData, width: int) -> Text:
        """As many cells as there is room for."""
        return map_text(data, width, max(3, self.content_size.height))


def kind_color(record: Allocation) -> str:
    """By what it was asked for; that of what is gone where it was freed."""
    return _color(FREED if record.migratetype is None else 1 + record.migratetype)


class BlockMap(Picture[MapData]):
    """The pageblock that the record under the cursor is in: no more than a few frames a cell."""

    def __init__(self, id: str, columns: int, lines: int, title: bool) -> None:
        """So many cells in a row, two rows in a line; with a title or without."""
        super().__init__(id=id)
        self._columns, self._lines, self._title = columns, lines, title

    def picture(self, data: MapData, width: int) -> Text:
        """Nothing where no record is under the cursor."""
        if data.record is None:
            return Text()
        columns = max(_STEP, min(self._columns, (width - _GUTTER) // _STEP * _STEP))
        return block_text(data, width, columns, self._lines, self._title)


def block_text(data: MapData, width: int, columns: int, lines: int, title: bool) -> Text:
    """Under a title, where one is wanted: which pageblock it is, and what it is kept for."""
    text, (first, end) = Text(), data.block
    each = _each(end - first, columns * lines * 2)
    if title and data.record is not None:
        kind = data.watched.kept_for(data.record.pfn)
        note = f"{kind}, {_cell(each, data.watched)}".removeprefix(", ")
        heading(text, f"Pageblock {first:#x}", width, note)
    return text.append_text(_rows(data, first, end, each, columns))


def map_text(data: MapData, width: int, lines: int) -> Text:
    """A heading, two rows of cells a line, and what the colours mean: beside the heading if that is wide."""
    text, legend = Text(), _legend(data.holdings)
    below = _NOTE + legend.cell_len > width and lines > 3
    columns = max(_STEP, (width - _GUTTER) // _STEP * _STEP)
    each = _each(data.end, (lines - 1 - below) * 2 * columns)
    note = f"{_cell(each, data.watched)}"
    if below:
        heading(text, "Memory", width, note)
    else:
        head = Text.assemble(("Memory ", f"bold {palette.ACCENT}"), (f"{note}  ", palette.DIM)).append(legend)
        head.truncate(width, overflow="ellipsis")
        text.append_text(head).append("\n")
    text.append_text(_rows(data, 0, data.end, each, columns))
    if below and legend.cell_len > width:
        legend = _legend(data.holdings, close=True)
    if below:
        legend.truncate(width, overflow="ellipsis")
        text.append("\n").append_text(legend)
    return text


def _each(frames: int, room: int) -> int:
    """How many frames a cell has to show, a power of two."""
    return 1 << max(0, (-(-frames // room) - 1).bit_length())


def _cell(each: int, watched: Watched) -> str:
    """What a cell is, in bytes."""
    return f"a cell is {format_size(each * watched.page_size)}"


def _rows(data: MapData, first: int, end: int, each: int, columns: int) -> Text:
    """The frames of a range, so many to a cell, two rows of cells a line."""
    lines = -(-(end - first) // (each * 2 * columns))
    colors = _cells(data, first, end, each, lines * 2 * columns)
    starts = range(0, len(colors), 2 * columns)
    return Text("\n").join(
        _line(data.watched, first + start * each, each, colors[start : start + 2 * columns])
        for start in starts
    )


def _cells(data: MapData, first: int, end: int, each: int, count: int) -> list[str]:
    """The colour of each cell."""
    cells = data.frames(first, end, count * each).reshape(count, each)
    colors = _ground(data.watched, first, end, each, count)
    for cell in np.flatnonzero(cells.any(axis=1)).tolist():
        held = np.bincount(cells[cell], minlength=FREED + 1)[1:FREED]
        if held.any():
            bright = _DIMMEST + (1 - _DIMMEST) * float(held.sum() / each) ** 0.4
            colors[cell] = palette.blend(_color(int(held.argmax()) + 1), palette.BACKGROUND, bright)
        else:
            colors[cell] = palette.GONE
    if (record := data.record) is not None:
        begin = max(record.pfn, first)
        past = min(record.pfn + (1 << min(record.order, _MAX_ORDER)), first + count * each)
        for cell in range((begin - first) // each, -(-(past - first) // each)):
            colors[cell] = palette.CURSOR
    return colors


def _ground(watched: Watched, first: int, end: int, each: int, count: int) -> list[str]:
    """What lies under it: zones, one told from the next."""
    colors = [palette.BACKGROUND] * count
    for index, zone in enumerate(watched.zones):
        begin = max(zone.start_pfn - first, 0) // each
        past = max(0, min(-(-(min(zone.end_pfn, end) - first) // each), count))
        colors[begin:past] = [_ZONES[index % 2]] * (past - begin)
    return colors


def _line(watched: Watched, start: int, each: int, colors: list[str]) -> Text:
    """Two rows of cells, one above the other, behind the PFN or the zone that they begin with."""
    columns = len(colors) // 2
    zones = [zone.name for zone in watched.zones if start <= zone.start_pfn < start + each * len(colors)]
    label, color = (zones[-1], palette.WARN) if zones else (f"{start:#x}", palette.DIM)
    line = Text(f"{label[: _GUTTER - 1]:>{_GUTTER - 1}} ", color)
    for (upper, lower), run in groupby(zip(colors[:columns], colors[columns:], strict=True)):
        line.append("▀" * len(list(run)), f"{upper} on {lower}")
    return line


def _legend(holdings: Holdings, close: bool = False) -> Text:
    """What the colours mean, and how many pages have each; `close` where there is little room."""
    counts = np.bincount(holdings.frames, minlength=FREED + 1)
    looks = [(kind, look.name) for kind, look in enumerate(palette.MIGRATETYPES, 1)]
    seen = [(kind, name) for kind, name in (*looks, (FREED, "freed")) if counts[kind]]
    if not seen:
        return Text("pages light up as they are taken, and go out as they are freed", palette.DIM)
    parts = [
        Text.assemble(("█" if close else "██", _color(kind)), (f" {counts[kind]} {name}", palette.DIM))
        for kind, name in seen
    ]
    text = Text(" " if close else "  ").join(parts)
    return text if close else text.append(" pages", palette.DIM)


def _color(kind: int) -> str:
    """Of a frame that Holdings.frames has this number for."""
    return palette.GONE if kind == FREED else palette.MIGRATETYPES[kind - 1 & 3].color
