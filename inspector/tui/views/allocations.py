"""Pages that the page allocator hands out and takes back, one by one as it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical

from inspector.trace import Allocation
from inspector.trace import telling as tell
from inspector.trace.ledger import Holdings, other_half
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source
from inspector.tui.svg import save
from inspector.tui.tracing import Target, Watched
from inspector.tui.views.base import Go
from inspector.tui.views.trace import TraceView
from inspector.tui.widgets.allocation import (
    AllocationPicture,
    Holders,
    amount,
    holders_text,
    record_text,
    size,
)
from inspector.tui.widgets.allocationmap import (
    AllocationMap,
    BlockMap,
    MapData,
    block_text,
    kind_color,
    map_text,
)
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import Pfn, parse_int

_PAGE = 4096  # bytes, until the guest has said
_CALLS = 4  # in the list
_LEAST, _MOST = 6, 16  # lines of a stack
_ELSE = 18  # lines of a small screen that are not the stack's
_BESIDE, _BELOW, _SAVED = 12, 9, 24  # callers in a column, in place of the stack, in a picture


class AllocationsView(TraceView[Watched, Allocation, Holdings]):
    """The map as it lights up, the list as it grows, the stack of the record under the cursor."""

    NAME = ViewName.ALLOCATIONS
    NOUN = "allocation or free of a page"
    EXAMPLE = "a PID, a command like /labs/touch 64K, pfn 0x1a2b, or all"
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.ALLOCATIONS])

    def compose(self) -> ComposeResult:
        """The map beside the rest where there is room, above it where not."""
        yield self.summary()
        with Container(id="allocations-body"):
            with Vertical(id="allocations-side"):
                yield AllocationMap()
                yield BlockMap("block-beside", 32, 8, title=True)
                yield Holders("holders-beside", _BESIDE)
            with Vertical(id="allocations-main"):
                yield VirtualTable(self._columns(), lambda row: row.number, _search, id="allocation-table")
                yield BlockMap("block-below", 64, 2, title=False)
                yield AllocationPicture()
                yield Holders("holders-below", _BELOW)
        yield self.filter_input()
        yield self.target_input()

    def _columns(self) -> tuple[Column[Allocation], ...]:
        def pages(row: Allocation) -> str:
            return size(row, self._page_size)

        return (
            Column("#", lambda row: str(row.number), lambda row: row.number, 5, True),
            Column("", _event, lambda row: row.freed, 7, color=kind_color),
            Column("PFN", lambda row: f"{row.pfn:#x}", lambda row: row.pfn, 9, True),
            Column("order", lambda row: str(row.order), lambda row: row.order, 5, True, rank=1, falls=True),
            Column("size", pages, lambda row: row.order, 8, True, falls=True),
            Column("zone", self._zone, self._zone, 7, rank=3),
            Column("GFP flags", _flags, _flags, 30, rank=4),
            Column("task", _task, _task, 16, rank=2),
            Column("called by", _calls, _calls, 0, least=24),
        )

    @property
    def _page_size(self) -> int:
        """In bytes."""
        return self.data.page_size if self.data else _PAGE

    @property
    def holdings(self) -> Holdings:
        """Who holds which pages, as far as the trace has seen."""
        return self._recorder.tally()

    def _zone(self, record: Allocation) -> str:
        return self.data.zone(record.pfn) if self.data else ""

    def request(self, place: Place) -> Callable[[Source], Watched]:
        """The task or the frame, and how memory lies."""
        pid, pfn = self.pid, self._target.pfn
        return lambda source: source.watched(pid, pfn)

    def _meant(self, place: Place) -> Target:
        return Target(place.pid, place.pfn)

    def _parsed(self, text: str) -> Target:
        words = text.split()
        if words == ["all"]:
            return Target(None)
        if words[0].lower() == "pfn" and len(words) == 2:
            return Target(None, Pfn(parse_int(words[1], "PFN")))
        return super()._parsed(text)

    def _invitation(self) -> str:
        return "g traces it as it runs, n event by event; each stops the guest for some ms"

    def _draw(self) -> None:
        record, holdings = self.table.row, self.holdings
        other = other_half(self._records, record) if record else None
        lines = max(_LEAST, min(_MOST, self.app.size.height - _ELSE))
        data = MapData(holdings, self.data, record) if self.data else None
        for drawing in (self.query_one(AllocationMap), *self.query(BlockMap)):
            drawing.show(data)
        self.query_one(AllocationPicture).show(record, other, self.data, lines)
        for holders in self.query(Holders):
            holders.show(holdings, self._page_size)

    def _whose(self) -> Text:
        target = self._recorder.progress.target or self._target
        if target.pfn is not None:
            text = Text.assemble(("frame ", palette.DIM), (f"{target.pfn:#x} ", f"bold {palette.ACCENT}"))
            if self.data and self.data.owner is not None:
                look = palette.OWNERS[self.data.owner]
                text.append("now ", palette.DIM).append(
                    f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}"
                )
                text.append(f" {look.name} {self.data.label}".rstrip() + " ", palette.FOREGROUND)
            return text
        if target.who is None:
            return Text("all tasks ", f"bold {palette.FOREGROUND}")
        return self._task_name(target)

    def _sums(self, total: int) -> Text:
        sums, bold = self.holdings, f"bold {palette.FOREGROUND}"
        text = Text.assemble(
            (amount(sums.held, self._page_size), f"bold {palette.GOOD}"),
            (" held, ", palette.DIM), (f"{sums.allocated}", bold), (" allocated, ", palette.DIM),
            (f"{sums.freed}", bold), (" freed", palette.DIM),
        )  # fmt: skip
        if sums.before:
            text.append(f" ({sums.before} held from before)", palette.DIM)
        if sums.unseen:
            text.append(f", {sums.unseen} more unseen", palette.WARN)
        return text.append(f" in {total} event{'s' if total != 1 else ''}", palette.DIM)

    # What keys do

    def action_open(self) -> None:
        """The first frame."""
        if record := self.table.row:
            self.post_message(Go(Place(ViewName.PAGE, pfn=record.pfn)))

    def action_map(self) -> None:
        """The first frame in the map of frames."""
        if record := self.table.row:
            self.post_message(Go(Place(ViewName.FRAMES, pfn=record.pfn)))

    def action_other(self) -> None:
        """Who freed it, or allocated it."""
        record = self.table.row
        other = other_half(self._records, record) if record else None
        if other is None or not self.table.move_to(other.number):
            self.notify("no other half of it is in the list", markup=False)

    def action_holders(self) -> None:
        """In place of the stack, or back."""
        self.toggle_class("-holders")

    def _maps(self, holdings: Holdings, record: Allocation, width: int) -> tuple[Text, ...]:
        """Both maps, for a picture that is saved."""
        if self.data is None:
            return ()
        data = MapData(holdings, self.data, record)
        return map_text(data, width, _SAVED), block_text(data, width, 64, 4, title=True)

    def _save(self, record: Allocation) -> list[str]:
        progress, holdings = self._recorder.progress, self.holdings
        name = "all" if self._target.who is None else str(progress.pid)
        name = name if self._target.pfn is None else f"pfn-{self._target.pfn:#x}"
        data = {
            "pid": progress.pid or None,
            "allocations": [tell.allocation_data(each) for each in self._records],
            "summary": {
                "records": progress.total,
                "pages_allocated": holdings.allocated,
                "pages_freed": holdings.freed,
                "pages_held": holdings.held,
                "pages_held_before": holdings.before,
                "pages_freed_unseen": holdings.unseen,
                "other": progress.others,
                "lost": progress.lost,
            },
            "callers": [
                {"name": each.name, "pages_allocated": each.allocated, "pages_held": each.held}
                for each in holdings.holders
            ],
        }

        def draw(width: int) -> Text:
            other = other_half(self._records, record)
            parts = (
                self._whose().append_text(self._sums(progress.total)),
                *self._maps(holdings, record, width),
                holders_text(holdings, self._page_size, width, _SAVED),
                record_text(record, other, self.data, width, len(record.stack)),
            )
            return Text("\n\n").join(parts)

        return save(f"allocations-{name}", data, draw, f"allocations: {self._whose().plain}", Path())


def _event(row: Allocation) -> str:
    return "○ free" if row.freed else "● alloc"


def _flags(row: Allocation) -> str:
    return " ".join(row.gfp_names)


def _task(row: Allocation) -> str:
    return f"{row.comm} ({row.pid})"


def _calls(row: Allocation) -> str:
    return " < ".join(tell.callers(row, _CALLS))


def _search(row: Allocation) -> str:
    places = " ".join(frame.place for frame in row.stack)
    return f"{_event(row)} {row.pfn:#x} order={row.order} {_flags(row)} {_task(row)} {places}"
