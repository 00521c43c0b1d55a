"""Page faults of a task, one by one as they happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType

from inspector.trace import Fault, FaultKind
from inspector.trace import telling as tell
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source
from inspector.tui.svg import save
from inspector.tui.tracing import Target, Traceable
from inspector.tui.views.base import Go
from inspector.tui.views.trace import TraceView
from inspector.tui.widgets.fault import FaultPicture, FaultStrip, fault_text, kind_color
from inspector.tui.widgets.table import Column, VirtualTable

COLUMNS: tuple[Column[Fault], ...] = (
    Column("#", lambda row: str(row.number), lambda row: row.number, 5, True),
    Column("kind", tell.kind_name, lambda row: row.kind.name, 14, color=lambda row: kind_color(row.kind)),
    Column("address", lambda row: f"{row.address:#x}", lambda row: row.address, 14, True),
    Column("access", lambda row: f"{tell.access(row)} {tell.mode(row)}", tell.access, 8),
    Column("frame", tell.frames, lambda row: row.frame or 0, 17),
    Column("VM_FAULT_", tell.returned, tell.returned, 10, rank=3),
    Column("in", tell.area, tell.area, 20, rank=2),
    Column("PID", lambda row: str(row.pid), lambda row: row.pid, 7, True, rank=4),
    Column("by", lambda row: row.place, lambda row: row.place, 0, least=18),
)


@dataclass(frozen=True, slots=True)
class FaultSums:
    """How many faults of each kind, the commonest first, and what maj_flt went up by."""

    counts: tuple[tuple[FaultKind, int], ...]
    major: int


class FaultBook:
    """Counts faults."""

    def __init__(self) -> None:
        self._counts: Counter[FaultKind] = Counter()
        self._major = 0

    def add(self, record: Fault) -> None:
        """One more."""
        self._counts[record.kind] += 1
        self._major += record.major

    def tally(self) -> FaultSums:
        """So far."""
        return FaultSums(tuple(self._counts.most_common()), self._major)


class FaultsView(TraceView[Traceable, Fault, FaultSums]):
    """The list as it grows, the VMA as it fills, and the fault under the cursor entry by entry."""

    NAME = ViewName.FAULTS
    NOUN = "page fault"
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.FAULTS])

    def compose(self) -> ComposeResult:
        """Summary, strip, table, the fault, inputs."""
        yield self.summary()
        yield FaultStrip()
        yield VirtualTable(COLUMNS, lambda row: row.number, _search, id="fault-table")
        yield FaultPicture()
        yield self.filter_input()
        yield self.target_input()

    def request(self, place: Place) -> Callable[[Source], Traceable]:
        """How much of the task's address space is there."""
        pid = self.pid
        return lambda source: source.traceable(pid)

    def _meant(self, place: Place) -> Target:
        return Target(1 if place.pid is None else place.pid)

    def _draw(self) -> None:
        fault = self.table.row
        here = self.data is not None and fault is not None and self.data.pid == fault.tgid
        self.query_one(FaultStrip).show(
            fault, self._records, self.data.resident if self.data and here else None
        )
        self.query_one(FaultPicture).show(fault)

    def _whose(self) -> Text:
        return self._task_name(self._recorder.progress.target or self._target)

    def _sums(self, total: int) -> Text:
        sums = self._recorder.tally()
        text = Text(f"{total}", f"bold {palette.FOREGROUND}", end="")
        text.append(f" fault{'s' if total != 1 else ''}, {sums.major} major", palette.DIM)
        for kind, count in sums.counts:
            text.append(f"  {kind.name.lower()} ", kind_color(kind)).append(str(count), palette.FOREGROUND)
        return text

    # What keys do

    def action_open(self) -> None:
        """The frame that came in, or is mapped there."""
        fault = self.table.row
        if fault is not None and fault.after.pfn is not None:
            self.post_message(Go(Place(ViewName.PAGE, pfn=fault.after.pfn)))

    def action_walk(self) -> None:
        """The address as it is now."""
        fault = self.table.row
        if fault is not None:
            self.post_message(Go(Place(ViewName.WALK, pid=fault.tgid, va=fault.address)))

    def _save(self, record: Fault) -> list[str]:
        name = f"fault {record.number} of PID {record.pid}"
        stem = f"fault-{record.pid}-{record.number}"
        return save(stem, tell.fault_data(record), lambda width: fault_text(record, width), name, Path())


def _search(row: Fault) -> str:
    return f"{tell.kind_name(row)} {row.address:#x} {tell.mode(row)} {row.place} {tell.area(row)}"
