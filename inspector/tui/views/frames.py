"""A map of all physical memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.widgets import Static

from inspector.kernel.owners import Owner
from inspector.snapshots import FrameDiff
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Frames, Source
from inspector.tui.views.base import Go, Reread, View
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.tui.widgets.framemap import FrameMap
from inspector.units import Pfn, format_size

_NAMED = 8  # objects named under the cursor
_CHANGED, _CHANGED_LINES = 14, 4  # owners in a column; lines where there is none
_WERE = 3  # owners named that frames under the cursor had before


class Legend(Drawing):
    """The owners with their colours, letters, counts and bytes: a column, or a few lines."""

    def __init__(self) -> None:
        super().__init__(id="legend")
        self._frames: Frames | None = None

    def show(self, frames: Frames | None) -> None:
        """A snapshot."""
        self._frames = frames
        self.redraw()

    def draw(self, width: int) -> Text:
        """As many columns as fit, and what nothing tells the owner of."""
        text = Text()
        if self._frames is None:
            return text
        totals = self._frames.counts.totals()
        columns = max(1, width // 26)
        full = columns == 1
        if full:
            heading(text, "Owners", width)
        for index, owner in enumerate(owner for owner in Owner if totals[owner]):
            look, count = palette.OWNERS[owner], int(totals[owner])
            if index:
                text.append("" if index % columns else "\n")
            entry = Text()
            entry.append(f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}")
            entry.append(f" {look.name:<12}")
            entry.append(f"{format_size(count * self._frames.page_size):>9}")
            if full:
                entry.append(f"{count:>8}", palette.DIM)
            entry.truncate(width // columns, pad=index % columns < columns - 1)
            text.append_text(entry)
        text.append("\n").append_text(_remainder(totals, width))
        return text


def _remainder(totals: NDArray[np.int64], width: int) -> Text:
    """How much of what is in use nobody is known to own."""
    idle = (Owner.NO_PAGE, Owner.FREE, Owner.PER_CPU_FREE)
    used = int(totals.sum() - totals[list(idle)].sum())
    lost = int(totals[Owner.UNMARKED])
    said = f"unattributed {lost / max(used, 1):.1%} of {used} in use"
    text = Text(said if len(said) <= width else f"unattributed {lost / max(used, 1):.1%}", palette.DIM)
    if width > 60:
        text.append(f": {lost} frames carry no mark of their owner", palette.DIM)
    text.truncate(width, overflow="ellipsis")
    return text


class UnderCursor(Drawing):
    """Which frames the cursor is on, where they lie, and whose they are."""

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
        zones = [
            zone.name for zone in self._frames.zones if zone.start_pfn < pfn + count and pfn < zone.end_pfn
        ]
        parts = [*_owners_before(self._frames.changes, pfn, count), *_owners(self._frames, pfn, count)]
        last = f"-{pfn + count - 1:#x}" if count > 1 else ""
        lines = [
            Text.assemble(("PFN ", palette.DIM), (f"{pfn:#x}{last}", f"bold {palette.ACCENT}")),
            Text.assemble(("at ", palette.DIM), f"{pfn * size:#x}"),
            Text.assemble(("zone ", palette.DIM), " ".join(zones) or "none"),
        ]
        if width > 60:
            text = Text("  ").join([lines[0], *parts, *lines[1:]])
            text.truncate(width, overflow="ellipsis")
            return text
        heading(text, "Under the cursor", width)
        text.append_text(Text("\n").join(lines))
        for part in parts:
            part.truncate(width, overflow="ellipsis")
            text.append("\n").append_text(part)
        return text


class Changed(Drawing):
    """Who gained and lost frames since the mark, most first: a column, or a few lines."""

    def __init__(self) -> None:
        super().__init__(id="changed")
        self.changes: FrameDiff | None = None

    def show(self, changes: FrameDiff | None) -> None:
        """What changed."""
        self.changes = changes
        self.redraw()

    def draw(self, width: int) -> Text:
        """As many columns as fit."""
        text = Text()
        if self.changes is None:
            return text
        columns = max(1, width // 33)
        if columns == 1:
            heading(text, "Changed hands", width, "frames")
        balances = sorted(self.changes.balances, key=lambda each: (-abs(each.net), -each.gained))
        room = _CHANGED if columns == 1 else _CHANGED_LINES * columns
        for index, each in enumerate(balances[:room]):
            look = palette.OWNERS[each.holder.owner]
            entry = Text.assemble(
                (f"{each.net:>+8} ", f"bold {palette.FOREGROUND}"),
                (f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}"),
                f" {each.holder.label or look.name}",
            )
            entry.truncate(width // columns - 1, pad=True, overflow="ellipsis")
            text.append("" if not index else " " if index % columns else "\n").append_text(entry)
        if len(balances) > room:
            text.append(f"\nand {len(balances) - room} more owners", palette.DIM)
        elif not balances:
            text.append("nothing changed hands", palette.DIM)
        return text


def _owners(frames: Frames, pfn: int, count: int) -> list[Text]:
    """Who owns these frames, object by object, those with most first."""
    keys = frames.details[pfn : pfn + count].astype(np.int64) << 8 | frames.counts.states[pfn : pfn + count]
    found, counts = np.unique(keys, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    texts = []
    for index in order[:_NAMED].tolist():
        look, label = palette.OWNERS[int(found[index]) & 0xFF], frames.labels[int(found[index]) >> 8]
        text = Text.assemble((f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}"), f" {look.name}")
        text.append(f" {label}" if label else "", f"bold {palette.FOREGROUND}")
        text.append(f" {counts[index]}" if count > 1 else "", palette.DIM)
        texts.append(text)
    if len(order) > _NAMED:
        texts.append(Text(f"and {len(order) - _NAMED} more owners", palette.DIM))
    return texts


def _owners_before(changes: FrameDiff | None, pfn: int, count: int) -> list[Text]:
    """Who had these frames, of those that changed hands, most first."""
    if changes is None:
        return []
    first, end = np.searchsorted(changes.pfns, np.array([pfn, pfn + count], np.uint64))
    found, counts = np.unique(changes.was[first:end], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_WERE].tolist()
    return [
        Text.assemble(
            ("was ", palette.DIM), f"{changes.holders[found[index]]}", (f" {counts[index]}", palette.DIM)
        )
        for index in order
    ]


class FramesView(View[Frames]):
    """The map, what is under its cursor, and the legend."""

    NAME = ViewName.FRAMES
    EVERY = 3.0
    DUTY = 10  # to tell every owner stops the guest longer than other questions do
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.FRAMES])

    def __init__(self) -> None:
        super().__init__()
        self._mark: Frames | None = None
        self._marked_at = ""

    def compose(self) -> ComposeResult:
        """Side by side where there is room."""
        yield Static(id="frames-summary", classes="summary", markup=False)
        with Container(id="frames-body"):
            yield FrameMap()
            with Vertical(id="frames-side"):
                yield Legend()
                yield Changed()
                yield UnderCursor()

    def request(self, place: Place) -> Callable[[Source], Frames]:
        """All frames, and what changed hands since the mark where that is to be shown."""
        if (mark := self._mark) is None or not place.changed:
            return lambda source: source.frames()
        return lambda source: source.frames().since(mark)

    def enter(self, place: Place) -> None:
        """The map is the same wherever the cursor is to go: what there is stays."""
        data = self.data
        super().enter(place)
        self.data = data
        self._light()
        self._arrive()

    def show(self, data: Frames) -> None:
        """All parts."""
        first = self.data is None
        super().show(data)
        self._map.set_frames(data)
        self._light()
        if first:
            self._arrive()
        self._draw()

    @property
    def _lit(self) -> NDArray[np.bool_] | None:
        """The frames that the place wants lit; None where it wants none."""
        if self.data is not None and (changes := self.changes) is not None:
            lit = np.zeros(len(self.data.counts), np.bool_)
            lit[changes.pfns[changes.pfns < lit.size].astype(np.int64)] = True
            return lit
        if self.data is None or self.place.owner is None:
            return None
        return self.data.match(self.place.owner, self.place.label)

    @property
    def changes(self) -> FrameDiff | None:
        """What changed hands since the mark, where that is shown and known."""
        return self.data.changes if self.data and self.place.changed else None

    def _light(self) -> None:
        self._map.light(self._lit)

    def _arrive(self) -> None:
        """The cursor goes to the frame that the place names, or to the first one lit."""
        lit = self._lit
        if self.place.pfn is not None:
            self._map.go(self.place.pfn)
        elif lit is not None and lit.any():
            self._map.go(int(lit.argmax()))

    @property
    def _map(self) -> FrameMap:
        return self.query_one(FrameMap)

    def _draw(self) -> None:
        self.query_one(UnderCursor).show(self.data, self._map)
        self.query_one(Legend).show(self.data)
        self.query_one(Legend).display = self.changes is None
        self.query_one(Changed).display = self.changes is not None
        self.query_one(Changed).show(self.changes)
        if self.data is None:
            return
        frames, each = len(self.data.counts), 1 << self._map.shift
        size = self.data.page_size
        text = Text(no_wrap=True, overflow="ellipsis")
        if (changes := self.changes) is not None:
            text.append(f" {len(changes.pfns)} frames changed hands", f"bold {palette.WARN}")
            text.append(f" since {self._marked_at}, {changes.net:+} in use", palette.FOREGROUND)
            text.append(f" · {'n next, ' if len(changes.pfns) else ''}d back · ", palette.DIM)
        elif self._mark is not None and self.place.owner is None:
            text.append(f"marked at {self._marked_at}", palette.FOREGROUND)
            text.append(", d shows what changed hands since · ", palette.DIM)
        elif self.place.owner is not None:
            lit = self._lit
            count, look = 0 if lit is None else int(lit.sum()), palette.OWNERS[self.place.owner]
            text.append(f" {look.glyph} {look.name} ", f"{palette.BACKGROUND} on {look.color}")
            text.append(f" {self.place.label}" if self.place.label else "", f"bold {palette.FOREGROUND}")
            text.append(f" {count} frames, {format_size(count * size)} lit", palette.FOREGROUND)
            text.append(" · n next, l other light · ", palette.DIM)
        text.append(f"{frames} frames", f"bold {palette.FOREGROUND}")
        text.append(", all shown" if self._map.fitted else ", a shows all", palette.DIM)
        text.append("; a cell is ", palette.DIM)
        cell = f"{each} frame{'s' if each > 1 else ''}, {format_size(each * size)}"
        text.append(cell, f"bold {palette.FOREGROUND}")
        text.append(", coloured by who owns most of it" if each > 1 else "", palette.DIM)
        self.query_one("#frames-summary", Static).update(text)

    def on_frame_map_moved(self) -> None:
        """Say what is under the cursor, unless the screen is being taken down."""
        if self.query(UnderCursor):
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
        """The first frame of the cell that is lit, or its commonest owner's."""
        if self.data is not None:
            self.post_message(Go(Place(ViewName.PAGE, pfn=self._chosen(self.data))))

    def _chosen(self, data: Frames) -> Pfn:
        first, each = self._map.pfn, 1 << self._map.shift
        lit = self._lit
        part = lit[first : first + each] if lit is not None else np.zeros(0, np.bool_)
        if not part.any():
            part = data.counts.states[first : first + each] == self._map.majority(first)
        return Pfn(first + (int(part.argmax()) if part.size else 0))

    def action_watch(self) -> None:
        """Who takes and frees that frame."""
        if self.data is not None:
            self.post_message(Go(Place(ViewName.ALLOCATIONS, pfn=self._chosen(self.data))))

    def action_light(self) -> None:
        """Light up the object under the cursor; again, all of its owner; again, nothing."""
        if self.data is None:
            return
        pfn = self._chosen(self.data)
        owner: int | None = int(self.data.counts.states[pfn])
        label = self.data.label(pfn) or None
        if self.place.owner == owner and self.place.label == label:
            owner, label = (owner, None) if label else (None, None)
        elif self.place.owner == owner and self.place.label is None:
            owner = label = None
        self.post_message(Go(Place(ViewName.FRAMES, pfn=pfn, owner=owner, label=label), history=False))

    def action_mark(self) -> None:
        """What is shown now is what later is compared with."""
        if self.data is not None:
            self._mark, self._marked_at = self.data, time.strftime("%H:%M:%S")
            self.post_message(Reread())
            self._draw()

    def action_changes(self) -> None:
        """Show what changed hands since the mark; again, all as before."""
        if self._mark is None:
            self.action_mark()
        pfn = self._map.pfn
        self.post_message(Go(Place(ViewName.FRAMES, pfn=pfn, changed=not self.place.changed), history=False))

    def action_zoom(self, steps: int) -> None:
        """Zoom."""
        self._map.zoom(steps)

    def action_fit(self) -> None:
        """All memory."""
        self._map.set_shift(None)

    def action_next_state(self, step: int) -> None:
        """The next run of the owner under the cursor, or of what is lit."""
        self._map.next_run(step)

    def action_glyphs(self) -> None:
        """Letters or half blocks."""
        self._map.letters()
        self._draw()
