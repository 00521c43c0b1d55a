"""PCI devices and their buffers as a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from inspector.cli import output
from inspector.cli.output import guest_text, heading
from inspector.kernel.devices import PciDevice, mask_text
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.swiotlb import SLOT
from inspector.units import format_size

if TYPE_CHECKING:
    from inspector.cli.devices import Devices

_MOST_BUFFERS = 50  # lines for a person, of one device


def draw(found: Devices) -> None:
    """Print devices, swiotlb and buffers for a person."""
    parts: list[RenderableType] = [heading("PCI devices")]
    for device in found.devices:
        parts += _device(device)
        parts += _buffers([each for each in found.buffers if each.device == device.address])
    parts += [heading("Swiotlb", "where data for memory that a device does not reach is copied")]
    parts += [Text(_swiotlb(found))]
    known = {device.address for device in found.devices}
    if others := [each for each in found.buffers if each.device not in known]:
        parts += [heading("Buffers of other devices, or of one that is not known")]
        parts += _buffers(others)
    output.show(*parts)


def _device(device: PciDevice) -> Iterator[RenderableType]:
    name = Text.assemble((device.address, "bold"), f"  {device.vendor:04x}:{device.device:04x}  ")
    name.append(device.class_name)
    if device.driver is not None:
        module = "" if device.module in (None, device.driver) else f" of module {device.module}"
        name.append_text(guest_text(f", driver {device.driver}{module}", "green"))
    yield name
    table = output.plain_table("", "")
    table.show_header = False
    table.columns[1].no_wrap = False
    for key, value in _facts(device):
        table.add_row(Text(f"  {key}", "dim"), guest_text(value))
    yield table


def _facts(device: PciDevice) -> Iterator[tuple[str, str]]:
    yield "DMA", _dma(device)
    state = f"enabled {device.enabled} times" if device.enabled > 1 else "enabled"
    parts = [f"{device.interrupts} {device.irq}"] if device.irq else ["no interrupt"]
    parts += [state if device.enabled else "not enabled"]
    parts += ["bus master"] if device.bus_master else ["no bus master: it does no DMA now"]
    parts += [] if device.bridge_to is None else [f"bridge to bus {device.bridge_to:#04x}"]
    yield "IRQ", ", ".join(parts)
    for bar in device.bars:
        yield bar.name, str(bar)
    for pool in device.pools:
        yield "pool", f"{pool.name}: {pool.used} of {pool.blocks} blocks of {pool.size} bytes in use"
    if device.managed:
        names = [each.release.removesuffix("_release") for each in device.managed]
        yield "managed", f"{len(names)}: {', '.join(dict.fromkeys(names))}"


def _dma(device: PciDevice) -> str:
    """What memory a device reaches, and how."""
    if device.reach is None:
        return "none: it has no mask"
    parts = [mask_text(device.reach)]
    same = device.coherent_dma_mask == device.dma_mask
    parts += ["coherent too" if same else f"coherent {mask_text(device.coherent_dma_mask)}"]
    how = {"direct": "direct", "iommu": "by an IOMMU"}
    parts += [how.get(device.dma_ops, f"by {device.dma_ops}")]
    if device.max_segment_size is not None:
        parts += [f"segments to {format_size(device.max_segment_size)}"]
    return "; ".join(parts)


def _buffers(buffers: list[DmaBuffer]) -> Iterator[RenderableType]:
    if not buffers:
        return
    right = ("Bus", "Physical", "Size")
    table: Table = output.plain_table("  Buffer", "Bus", "Physical", "Size", "Known from", "Now", right=right)
    for each in buffers[:_MOST_BUFFERS]:
        table.add_row(
            guest_text(f"  {each.kind} {each.label}".rstrip()),
            "-" if each.bus is None else f"{each.bus:#x}",
            "-" if each.phys is None else f"{each.phys:#x}" + ("+" if len(each.extents) > 1 else ""),
            format_size(each.size),
            guest_text(each.source),
            each.transfer or "",
        )
    yield table
    if len(buffers) > _MOST_BUFFERS:
        yield Text(f"  and {len(buffers) - _MOST_BUFFERS} more, which --json has", "dim")


def _swiotlb(found: Devices) -> str:
    if found.swiotlb is None:
        return "none: what a device does not reach is refused"
    buffer = found.swiotlb.buffer
    used = "an unknown number" if buffer.used is None else str(buffer.used)
    forced = ", for every mapping (swiotlb=force)" if found.swiotlb.forced else ""
    return (
        f"{format_size(buffer.end - buffer.start)} at {buffer.start:#x}: {used} of {buffer.slots} slots of "
        f"{format_size(SLOT)} in use{forced}"
    )
