"""What a device reaches of memory, drawn over the zones; and the frames under one of its buffers."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from inspector.kernel.devices import PciDevice, mask_text
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.tui import palette
from inspector.tui.dma import ChosenBuffer, Devices, FrameRow
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.drawing import Picture, heading
from inspector.units import format_size, printable

_LABEL = 10  # cells before each line's drawing
_ZONES = {"DMA": "#cc79a7", "DMA32": "#56b4e9", "Normal": "#2fbf8f", "Movable": "#e69f00"}
_OTHER_ZONE = "#b3b3b3"
_BOUNCE = "▒"
_MARKS = " ▲23456789"


@dataclass(frozen=True, slots=True)
class Reached:
    """A device before all of memory, its buffers, and the one under the cursor."""

    data: Devices
    device: PciDevice | None
    buffers: tuple[DmaBuffer, ...]
    chosen: DmaBuffer | None


class Reach(Picture[Reached]):
    """Physical memory from left to right: zones, how far the device's masks go, where its buffers lie."""

    def __init__(self) -> None:
        super().__init__(id="reach")

    def picture(self, data: Reached, width: int) -> Text:
        """A line each for zones, masks and buffers; below them what the device does."""
        text = Text()
        end = max(data.data.memory_end, 1)
        room = max(8, width - _LABEL)
        device = data.device
        zones, hidden = self._zones(data.data, end, room)
        note = "; ".join([f"of {format_size(end)}, by physical address", *hidden])
        heading(text, f"Reach of {device.address}" if device else "Memory", width, note)
        text.append_text(zones)
        if device is not None:
            self._mask(text, "mask", device.reach, end, room)
            if device.coherent_dma_mask != device.dma_mask:
                self._mask(text, "coherent", device.coherent_dma_mask, end, room)
        self._buffers(text, data, end, room)
        for line in _facts(device) if device is not None else ():
            line.truncate(width, overflow="ellipsis")
            text.append("\n").append_text(line)
        return text

    @staticmethod
    def _zones(data: Devices, end: int, room: int) -> tuple[Text, list[str]]:
        """Zones side by side, each a cell at least; and the names of those that are too narrow for them."""
        text, hidden = Text.assemble((f"{'zones':<{_LABEL}}", palette.DIM)), []
        at = 0
        for index, zone in enumerate(data.zones):
            left = len(data.zones) - 1 - index
            stop = zone.end_pfn * data.page_size * room // end if left else room
            stop = min(max(stop, at + 1), room - left)
            label = printable(f"{zone.name} to {format_size(zone.end_pfn * data.page_size)}")
            fits = len(label) + 1 <= stop - at
            hidden += [] if fits else [label]
            shown = f" {label}" if fits else ""
            color = _ZONES.get(zone.name, _OTHER_ZONE)
            text.append(shown.ljust(max(0, stop - at)), f"{palette.BACKGROUND} on {color}")
            at = max(at, stop)
        return text.append("\n"), hidden

    @staticmethod
    def _mask(text: Text, name: str, mask: int | None, end: int, room: int) -> None:
        """A bar as far as the mask goes; what it says stands in the part that is not reached, or on it."""
        text.append(f"{name:<{_LABEL}}", palette.DIM)
        if mask is None:
            text.append("none: it does no DMA\n", palette.DIM)
            return
        share = min(1.0, (mask + 1) / end)
        color = palette.GOOD if share == 1.0 else palette.WARN
        cells, said = bar(share, room), f" {mask_text(mask)}"
        full = cells.rstrip()
        if len(full) + len(said) <= room:
            text.append(full, f"{color} on {palette.PANEL}")
            text.append(said.ljust(room - len(full)), f"{palette.FOREGROUND} on {palette.PANEL}")
        else:
            text.append(said, f"bold {palette.BACKGROUND} on {color}")
            text.append(cells[len(said) :], f"{color} on {palette.PANEL}")
        text.append("\n")

    @staticmethod
    def _buffers(text: Text, data: Reached, end: int, room: int) -> None:
        """A mark where each buffer begins, a figure where several do; swiotlb's memory is hatched."""
        text.append(f"{'buffers':<{_LABEL}}", palette.DIM)
        cells, styles = [" "] * room, [palette.FAINT] * room
        if swiotlb := data.data.swiotlb:
            for at in range(swiotlb.start * room // end, min(room, -(-swiotlb.end * room // end))):
                cells[at] = _BOUNCE
        counts: dict[int, int] = {}
        for each in data.buffers:
            if each.phys is not None and each.phys < end:
                at = each.phys * room // end
                counts[at] = counts.get(at, 0) + 1
                cells[at] = _MARKS[counts[at]] if counts[at] < len(_MARKS) else "+"
                styles[at] = palette.ACCENT
        if data.chosen and data.chosen.phys is not None and data.chosen.phys < end:
            styles[data.chosen.phys * room // end] = f"bold {palette.CURSOR}"
        for cell, style in zip(cells, styles, strict=True):
            text.append(cell, f"{style} on {palette.SURFACE}")


def _facts(device: PciDevice) -> list[Text]:
    """What else there is to say of a device: how it maps, interrupts, and a line a BAR."""
    how = {"direct": "mapped directly", "iommu": "mapped by an IOMMU"}.get(device.dma_ops, device.dma_ops)
    parts = [printable(how)]
    parts += [f"segments to {format_size(device.max_segment_size)}"] if device.max_segment_size else []
    parts += [f"{device.interrupts} {device.irq}"] if device.irq else []
    parts += ["bus master" if device.bus_master else "no bus master: it does no DMA now"]
    parts += [f"{len(device.managed)} managed"] if device.managed else []
    lines = [Text.assemble((f"{'DMA':<{_LABEL}}", palette.DIM), " · ".join(parts))]
    lines += [Text.assemble((f"{each.name:<{_LABEL}}", palette.DIM), str(each)) for each in device.bars]
    return lines


@dataclass(frozen=True, slots=True)
class Watched:
    """A buffer now, and its frames as they were at the last look, so many seconds ago."""

    chosen: ChosenBuffer
    before: tuple[FrameRow, ...]
    seconds: float


class BufferFrames(Picture[Watched]):
    """The frames under a buffer: whose each is, how it is held, and whether it is another than before."""

    LINES = 4

    def __init__(self) -> None:
        super().__init__(id="buffer-frames")

    def picture(self, data: Watched, width: int) -> Text:
        """A line a frame."""
        text = Text()
        buffer, frames = data.chosen.buffer, data.chosen.frames
        what = f"{data.chosen.count} under {buffer.kind} {buffer.label}".rstrip()
        note = f"{what}; compared with {data.seconds:.0f} s ago"
        heading(text, "Frames", width, printable(note))
        if not frames:
            text.append(" where its memory lies is not known", palette.DIM)
        shown = frames if len(frames) <= self.LINES else frames[: self.LINES - 1]
        for index, frame in enumerate(shown):
            was = data.before[index] if index < len(data.before) else None
            line = _frame(frame, was)
            line.truncate(width, overflow="ellipsis")
            text.append("\n" if index else "").append_text(line)
        if (more := data.chosen.count - len(shown)) and shown:
            text.append(f"\n and {more} more", palette.DIM)
        return text


def _frame(frame: FrameRow, was: FrameRow | None) -> Text:
    """PFN, owner, what the pageblock is for, references; in front of them what has changed."""
    look = palette.OWNERS[frame.owner]
    line = Text.assemble((f" {frame.pfn:>#9x} ", f"bold {palette.FOREGROUND}"))
    if was is not None and was.pfn != frame.pfn:
        line.append(f" moved from {was.pfn:#x} ", f"bold {palette.BACKGROUND} on {palette.BAD}")
        line.append(" ")
    line.append(f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}")
    line.append(f" {look.name} {frame.label}".rstrip(), palette.FOREGROUND)
    if was is not None and was.pfn == frame.pfn and (was.owner, was.label) != (frame.owner, frame.label):
        line.append(f" was {palette.OWNERS[was.owner].name} {was.label}".rstrip(), palette.BAD)
    line.append(f" · {frame.migratetype or 'no migratetype'}", palette.DIM)
    changed = was is not None and was.refcount != frame.refcount
    line.append(" · refcount ", palette.DIM)
    line.append(str(frame.refcount), palette.WARN if changed else palette.FOREGROUND)
    line.append("" if frame.head is None else f" of its head {frame.head:#x}", palette.DIM)
    if frame.mapcount is not None:
        line.append(" · mapcount ", palette.DIM)
        line.append(str(frame.mapcount), palette.FOREGROUND)
    return line
