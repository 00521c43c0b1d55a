"""PCI devices, the memory that they reach, and their buffers in it: frames and bytes, live."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.kernel.devices import PciDevice
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.dma import BufferKey, Devices, FrameRow, buffer_key
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source
from inspector.tui.views.base import Go, Reread
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.hexdump import Hexdump
from inspector.tui.widgets.reach import BufferFrames, Reach, Reached, Watched
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import Pfn, PhysAddr, format_size

_UNKNOWN = "unknown"
_REACH = 10  # cells of the bar in the list
_SHORT = 64  # bytes shown on a small screen
_LIT = 1.2  # seconds that a changed byte stays lit


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device and its buffers; `device` is None for buffers of which nobody says whose they are."""

    device: PciDevice | None
    address: str
    buffers: tuple[DmaBuffer, ...]
    share: float

    @property
    def driver(self) -> str:
        """Its driver's name; empty for none."""
        return (self.device.driver if self.device else None) or ""


@dataclass(frozen=True, slots=True)
class BufferRow:
    """A buffer, and whether its memory is another than at the last look."""

    buffer: DmaBuffer
    moved: bool


def _name(row: DeviceRow) -> str:
    return row.device.class_name if row.device else "no known device"


def _irq(row: DeviceRow) -> str:
    return f"{row.device.interrupts} {row.device.irq}" if row.device and row.device.irq else "-"


def _bits(row: DeviceRow) -> str:
    reach = row.device.reach if row.device else None
    return "-" if reach is None else str(reach.bit_length())


def _identity(row: DeviceRow) -> str:
    return f"{row.device.vendor:04x}:{row.device.device:04x}" if row.device else "-"


def _size(row: DeviceRow) -> int:
    return sum(buffer.size for buffer in row.buffers)


DEVICES: tuple[Column[DeviceRow], ...] = (
    Column("device", lambda row: row.address, lambda row: row.address, 12, color=lambda row: _color(row)),
    Column("is a", _name, _name, 0),
    Column("ID", _identity, _identity, 9, rank=4),
    Column("driver", lambda row: row.driver or "-", lambda row: row.driver, 10),
    Column("interrupt", _irq, _irq, 9, rank=3),
    Column(
        "reach",
        lambda row: bar(row.share, _REACH) if row.device else "",
        lambda row: row.share,
        _REACH,
        color=lambda row: f"{palette.GOOD if row.share == 1.0 else palette.WARN} on {palette.PANEL}",
    ),
    Column("bits", _bits, lambda row: _bits(row).rjust(2), 4, True, falls=True),
    Column("buffers", lambda row: str(len(row.buffers)), lambda row: len(row.buffers), 8, True, falls=True),
    Column("in bytes", lambda row: format_size(_size(row)), _size, 9, True, rank=2, falls=True),
)


def _color(row: DeviceRow) -> str:
    return f"bold {palette.FOREGROUND}" if row.driver or row.buffers else palette.DIM


def _hex(value: int | None) -> str:
    return "-" if value is None else f"{value:#x}"


def _state(row: BufferRow) -> str:
    return " ".join(["moved"] * row.moved + [row.buffer.transfer or ""]).strip()


BUFFERS: tuple[Column[BufferRow], ...] = (
    Column("buffer", lambda row: row.buffer.kind, lambda row: row.buffer.kind, 9),
    Column("which", lambda row: row.buffer.label, lambda row: row.buffer.label, 0, least=10),
    Column("now", _state, _state, 14, color=lambda row: palette.BAD if row.moved else palette.WARN),
    Column("bus", lambda row: _hex(row.buffer.bus), lambda row: row.buffer.bus or 0, 11, True),
    Column("physical", lambda row: _hex(row.buffer.phys), lambda row: row.buffer.phys or 0, 11, True),
    Column(
        "size", lambda row: format_size(row.buffer.size), lambda row: row.buffer.size, 9, True, falls=True
    ),
    Column("PID", lambda row: str(row.buffer.pid or "-"), lambda row: row.buffer.pid or 0, 6, True, rank=3),
    Column("known from", lambda row: row.buffer.source, lambda row: row.buffer.source, 10, rank=2),
)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen at the last look: each buffer's memory, and the frames of those that were chosen."""

    at: float
    extents: dict[BufferKey, tuple[tuple[PhysAddr, int], ...]]
    frames: dict[BufferKey, tuple[FrameRow, ...]]


class DevicesView(ListView[Devices, Any]):
    """Devices on top, the buffers of the one under the cursor below; then what is under that buffer."""

    NAME = ViewName.DEVICES
    EVERY = 0.25
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.DEVICES])

    def __init__(self) -> None:
        super().__init__()
        self._on_buffers = False
        self._key: BufferKey | None = None
        self._drawn: Any = None
        self._look: _Look | None = None
        self._contents: tuple[BufferKey | None, bytes] = (None, b"")
        # Held here, and not asked for by query: the focus moves while the screen is taken down, too.
        self._devices: VirtualTable[DeviceRow] = VirtualTable(
            DEVICES, lambda row: row.address, _search_device, id="device-table"
        )
        self._buffers: VirtualTable[BufferRow] = VirtualTable(
            BUFFERS, lambda row: buffer_key(row.buffer), _search_buffer, id="buffer-table"
        )
        self._reach, self._frames, self._bytes = Reach(), BufferFrames(), Hexdump("buffer-bytes")
        self._changed: dict[int, float] = {}

    def compose(self) -> ComposeResult:
        """Summary, devices, their reach, buffers, what is under one of them, filter."""
        yield Static(id="devices-summary", classes="summary", markup=False)
        yield self._devices
        yield self._reach
        yield self._buffers
        yield self._frames
        yield self._bytes
        yield self.filter_input()

    @property
    def table(self) -> VirtualTable[Any]:
        """The one that has, or last had, the focus."""
        return self._buffers if self._on_buffers else self._devices

    @property
    def pid(self) -> int | None:
        """The task that asked for the buffer under the cursor."""
        row = self._buffers.row if self._on_buffers else None
        return row.buffer.pid if row else None

    def request(self, place: Place) -> Callable[[Source], Devices]:
        """Devices and buffers, that under the cursor closely."""
        return lambda source: source.devices(self._key)

    def enter(self, place: Place) -> None:
        """The lists are the same whichever device the cursor is to go to."""
        self.place = place
        if place.label is not None:
            self._devices.want(place.label)

    def show(self, data: Devices) -> None:
        """Rows, and all that is drawn of those under the cursors."""
        first = self.data is None
        super().show(data)
        if self._look is None:
            self._take_look(data)
        self._note_changes(data)
        rows = _rows(data)
        self._devices.empty = "this guest has no PCI device"
        self._devices.set_rows(rows)
        if first and self.place.label is None:
            busiest = max(rows, key=lambda row: (len(row.buffers), bool(row.driver)), default=None)
            if busiest and (busiest.buffers or busiest.driver):
                self._devices.move_to(busiest.address)
        self._draw()
        self._summarize(data, rows)

    def forget(self) -> None:
        """Nothing to forget: every place of this view has the same data."""

    def on_virtual_table_moved(self, message: VirtualTable.Moved) -> None:
        """What is drawn follows the cursors; fresh rows under them are drawn already."""
        message.stop()
        if message.table is self._devices and self._devices.cursor_key != self._drawn:
            self._draw()
        elif message.table is self._buffers:
            self._draw_under()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The table that got the focus is the one that keys are for."""
        if event.widget in (self._devices, self._buffers):
            self._on_buffers = event.widget is self._buffers
            self.set_class(self._on_buffers, "-buffers")

    def _draw(self) -> None:
        """The buffers of the device under the cursor, and all below."""
        row = self._devices.row
        self._drawn = self._devices.cursor_key
        rows = [BufferRow(each, self._moved(each)) for each in row.buffers] if row else []
        self._buffers.empty = "no book that can be read tells of a buffer of this device"
        self._buffers.set_rows(rows)
        self._draw_under()

    def _draw_under(self) -> None:
        """What the device reaches; the buffer under the cursor, of which frames and bytes are asked for."""
        if self.data is None:
            return
        row, chosen = self._devices.row, self._buffers.row.buffer if self._buffers.row else None
        key = buffer_key(chosen) if chosen else None
        if key != self._key:
            self._key = key
            self.post_message(Reread())
        device, buffers = (row.device, row.buffers) if row else (None, ())
        self._reach.show(Reached(self.data, device, buffers, chosen))
        self._draw_chosen(self.data, key)

    def _draw_chosen(self, data: Devices, key: BufferKey | None) -> None:
        found, look = data.chosen, self._look
        if found is None or look is None or buffer_key(found.buffer) != key:
            self._frames.show(None)
            self._bytes.show("", "", b"")
            return
        before = look.frames.setdefault(key, found.frames)
        self._frames.show(Watched(found, before, time.monotonic() - look.at))
        shown = found.contents[:_SHORT] if self.screen.has_class("-short") else found.contents
        note = f"the first {len(shown)} of {format_size(found.buffer.size)}"
        if found.buffer.transfer:
            note += f"; a transfer {found.buffer.transfer} is under way"
        self._bytes.show("Bytes", note, shown, self.lit)

    @property
    def lit(self) -> frozenset[int]:
        """The bytes of the chosen buffer that have just changed."""
        now = time.monotonic()
        return frozenset(at for at, when in self._changed.items() if now - when < _LIT)

    @property
    def holds_bytes(self) -> bool:
        """Whether the chosen buffer has other bytes than zeros."""
        return any(self._contents[1])

    def _note_changes(self, data: Devices) -> None:
        """When each byte of the chosen buffer was last seen to be another than before."""
        found = data.chosen
        key = buffer_key(found.buffer) if found else None
        contents = found.contents if found else b""
        if key != self._contents[0]:
            self._changed = {}
        else:
            now = time.monotonic()
            pairs = enumerate(zip(contents, self._contents[1], strict=False))
            self._changed |= {at: now for at, (a, b) in pairs if a != b}
        self._contents = key, contents

    def _take_look(self, data: Devices) -> None:
        extents = {buffer_key(each): each.extents for each in data.buffers}
        frames = {buffer_key(data.chosen.buffer): data.chosen.frames} if data.chosen else {}
        self._look = _Look(time.monotonic(), extents, frames)

    def _moved(self, buffer: DmaBuffer) -> bool:
        """Whether a buffer that was there at the last look has other memory; new ones are looked at now."""
        if self._look is None:
            return False
        return self._look.extents.setdefault(buffer_key(buffer), buffer.extents) != buffer.extents

    def _summarize(self, data: Devices, rows: list[DeviceRow]) -> None:
        driven = sum(bool(row.driver) for row in rows)
        text = Text(no_wrap=True, overflow="ellipsis")
        parts = [
            (str(len(data.devices)), f" PCI devices, {driven} driven"),
            (str(len(data.buffers)), " known buffers"),
        ]
        if data.swiotlb:
            used = "?" if data.swiotlb.used is None else str(data.swiotlb.used)
            size = format_size(data.swiotlb.end - data.swiotlb.start)
            parts.append((used, f" of {data.swiotlb.slots} slots of swiotlb ({size}) in use"))
        done = {(each.device, each.transfers) for each in data.buffers if each.transfers is not None}
        if done:
            parts.append((str(sum(transfers for _, transfers in done)), " transfers"))
        for number, what in parts:
            text.append(" · " if text else "", palette.DIM)
            text.append(number, f"bold {palette.FOREGROUND}")
            text.append(what, palette.DIM)
        self.query_one("#devices-summary", Static).update(text)

    # Keys

    def action_open(self) -> None:
        """On to the buffers; from one of them to its first frame."""
        if not self._on_buffers:
            self._buffers.focus()
        elif (pfn := self._pfn()) is not None:
            self.post_message(Go(Place(ViewName.PAGE, pfn=pfn)))

    def action_back(self) -> None:
        """Back to the devices."""
        self._devices.focus()

    def action_map(self) -> None:
        """The buffer's first frame in the map."""
        if (pfn := self._pfn()) is not None:
            self.post_message(Go(Place(ViewName.FRAMES, pfn=pfn)))

    def action_walk(self) -> None:
        """The buffer's address in the kernel."""
        if self._buffers.row and self._buffers.row.buffer.address is not None:
            self.post_message(Go(Place(ViewName.WALK, va=self._buffers.row.buffer.address)))

    def action_space(self) -> None:
        """The task that asked for it."""
        if self._buffers.row and self._buffers.row.buffer.pid:
            self.post_message(Go(Place(ViewName.SPACE, pid=self._buffers.row.buffer.pid)))

    def action_look(self) -> None:
        """What is seen now is what later is compared with."""
        if self.data is not None:
            self._take_look(self.data)
            self._draw()

    def _pfn(self) -> Pfn | None:
        row = self._buffers.row
        if self.data is None or row is None or row.buffer.phys is None:
            return None
        return Pfn(row.buffer.phys // self.data.page_size)

    def memento(self) -> Any:
        """The rows under both cursors, and where the keys go."""
        return self._devices.cursor_key, self._buffers.cursor_key, self._on_buffers

    def restore(self, memento: Any) -> None:
        """Back on them."""
        device, buffer, self._on_buffers = memento
        self._devices.want(device)
        self._buffers.want(buffer)

    def focus_first(self) -> None:
        """Where the keys went last."""
        self.table.focus()


def _rows(data: Devices) -> list[DeviceRow]:
    """Devices by address, and behind them those of whose buffers alone one knows."""
    by_device: dict[str, list[DmaBuffer]] = {}
    for buffer in data.buffers:
        by_device.setdefault(buffer.device or _UNKNOWN, []).append(buffer)
    rows = []
    for device in data.devices:
        reach = device.reach
        share = 0.0 if reach is None else min(1.0, (reach + 1) / max(data.memory_end, 1))
        rows.append(DeviceRow(device, device.address, tuple(by_device.pop(device.address, ())), share))
    return rows + [DeviceRow(None, name, tuple(found), 0.0) for name, found in by_device.items()]


def _search_device(row: DeviceRow) -> str:
    return f"{row.address} {_name(row)} {row.driver} {_identity(row)}"


def _search_buffer(row: BufferRow) -> str:
    buffer = row.buffer
    return f"{buffer.kind} {buffer.label} {buffer.source} {_hex(buffer.bus)} {_hex(buffer.phys)}"
