"""The guest at a glance: what it is, what runs, where its memory is and how much is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical

from inspector.guest import GuestInfo
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import CpuRow, Overview, Source
from inspector.tui.views.base import Go, View
from inspector.tui.widgets.bars import FreeLists, Usage, ZoneBars
from inspector.tui.widgets.drawing import Body, Drawing, Edge, heading
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import Pfn, format_size


class Facts(Drawing):
    """What guest this is."""

    def __init__(self) -> None:
        super().__init__(id="facts")
        self._info: GuestInfo | None = None
        self._why = ""

    def set_info(self, info: GuestInfo, why: str) -> None:
        """`why` tells why KVM or TCG was taken."""
        self._info, self._why = info, why
        self.redraw()

    def draw(self, width: int) -> Text:
        """As many lines as it takes."""
        text = Text()
        info = self._info
        if info is None:
            heading(text, "Guest", width, "reading…")
            return text
        heading(text, "Guest", width, info.name)
        items = (
            ("Linux", info.release),
            ("build id", info.build_id[:12]),
            ("paging", info.paging),
            ("KASLR", f"+{info.kaslr_offset:#x}"),
            ("KPTI", "on" if info.page_table_isolation else "off"),
            ("CPUs", str(info.cpus)),
            ("memory", format_size(info.memory)),
            *zip((info.accel, ""), self._why.split("; ", 1), strict=False),
        )
        used = 0
        for name, value in items:
            item = Text.assemble(
                (f" {name} " if name else " ", palette.DIM), (f"{value} ", f"bold {palette.FOREGROUND}")
            )
            if used and used + item.cell_len > width:
                text.append("\n")
                used = 0
            item.truncate(width, overflow="ellipsis")
            text.append_text(item)
            used += item.cell_len
        return text


_CPU_COLUMNS: tuple[Column[CpuRow], ...] = (
    Column("CPU", lambda row: str(row.cpu.number), lambda row: row.cpu.number, 3, right=True),
    Column("runs", lambda row: f"{row.cpu.comm} ({row.cpu.pid})", lambda row: row.cpu.comm, 20),
    Column(
        "ring", lambda row: "halt" if row.cpu.registers.halted else str(row.cpu.registers.cpl),
        lambda row: row.cpu.registers.cpl, 4, right=True, rank=2,
    ),
    Column("at RIP", lambda row: row.at, lambda row: row.at, 0),
    Column(
        "CR3 root", lambda row: f"{row.cpu.root:#x}", lambda row: row.cpu.root, 12, right=True, rank=1
    ),
    Column("maps", lambda row: row.cpu.root_kind, lambda row: row.cpu.root_kind, 15, rank=3),
)  # fmt: skip


class OverviewView(View[Overview]):
    """The first screen."""

    NAME = ViewName.OVERVIEW
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.OVERVIEW])

    def compose(self) -> ComposeResult:
        """Facts and use on top; below, side by side where there is room, CPUs with zones and free lists."""
        with Body():
            yield self._part(Facts())
            yield self._part(Usage())
            with Vertical(id="columns"):
                with Vertical(id="left"):
                    yield self._part(
                        VirtualTable(_CPU_COLUMNS, lambda row: row.cpu.number, lambda row: row.at, id="cpus")
                    )
                    yield self._part(ZoneBars())
                with Vertical(id="right"):
                    yield self._part(FreeLists())

    @staticmethod
    def _part(widget: Drawing | VirtualTable[CpuRow]) -> Drawing | VirtualTable[CpuRow]:
        widget.add_class("part")
        return widget

    def request(self, place: Place) -> Callable[[Source], Overview]:
        """All of it."""
        return lambda source: source.overview()

    def show(self, data: Overview) -> None:
        """Hand each part its share."""
        super().show(data)
        self.query_one(Facts).set_info(data.info, data.accel_reason)
        self._cpus.set_rows(data.cpus)
        self.query_one(ZoneBars).set_zones(data.zones, data.page_size)
        self.query_one(Usage).set_counts(data.usage, data.page_size)
        self.query_one(FreeLists).set_free(data.free, data.page_size)

    @property
    def _cpus(self) -> VirtualTable[CpuRow]:
        return self.query_one("#cpus", VirtualTable)

    def focus_first(self) -> None:
        """The CPUs; Tab goes on to the zones."""
        if not self.query_one(ZoneBars).has_focus:
            self._cpus.focus()

    def on_edge(self, message: Edge) -> None:
        """The arrow keys go from part to part."""
        parts = [self._cpus, self.query_one(ZoneBars), self.query_one(FreeLists)]
        at = next((index for index, part in enumerate(parts) if part.has_focus), 0)
        parts[max(0, min(at + message.step, len(parts) - 1))].focus()

    def on_virtual_table_chosen(self) -> None:
        """A click on the CPU under the cursor."""
        self.action_open()

    def action_open(self) -> None:
        """A CPU leads to its task's address space, an idle one to its RIP; a zone to its first frame."""
        zones = self.query_one(ZoneBars)
        if zones.has_focus and zones.zone:
            self.post_message(Go(Place(ViewName.FRAMES, pfn=Pfn(zones.zone.start_pfn))))
        elif self._cpus.row:
            cpu = self._cpus.row.cpu
            place = Place(ViewName.SPACE, pid=cpu.pid) if cpu.pid else Place(ViewName.WALK, cpu=cpu.number)
            self.post_message(Go(place))
