"""`kmi devices`: PCI devices, what memory they reach, and what they read and write of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from inspector.cli import devices_view, output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.guest import Guest
from inspector.kernel.devices import Bar, PciDevice
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.swiotlb import Swiotlb
from inspector.units import word


@dataclass(frozen=True, slots=True)
class Devices:
    """A guest's PCI devices and their buffers, of one moment."""

    devices: list[PciDevice]
    buffers: list[DmaBuffer]
    swiotlb: Swiotlb | None
    page_size: int
    read_stopped: bool


@click.command(epilog=output.examples("kmi devices", "kmi devices --guest lab --json"))
@output.json_option
@guest_options
def devices(as_json: bool, options: GuestOptions) -> None:
    """List PCI devices: BARs, drivers, the memory that they reach by DMA, and their buffers there.

    The kernel keeps no book of mappings that need no bouncing (dma_map_single() and its kin): of those the
    list has what a driver keeps itself, where its book can be read.
    """
    with opened(options) as opening:
        found = read(opening.guest)
    if as_json:
        output.emit_json(as_data(found))
    else:
        devices_view.draw(found)


def read(guest: Guest) -> Devices:
    """Read all of it, the guest standing still."""
    with guest.paused():
        return Devices(
            devices=guest.pci_devices(),
            buffers=guest.dma_buffers(),
            swiotlb=guest.swiotlb(),
            page_size=guest.kernel.space.format.page_size,
            read_stopped=True,
        )


def as_data(found: Devices) -> dict[str, Any]:
    """All of it as JSON has it."""
    return {
        "read_stopped": found.read_stopped,
        "page_size_bytes": found.page_size,
        "devices": [_device(device) for device in found.devices],
        "buffers": [_buffer(buffer, found.page_size) for buffer in found.buffers],
        "swiotlb": _swiotlb(found.swiotlb) if found.swiotlb else None,
    }


def _device(device: PciDevice) -> dict[str, Any]:
    return {
        "address": device.address,
        "vendor": word(device.vendor),
        "device": word(device.device),
        "subsystem_vendor": word(device.subsystem_vendor),
        "subsystem_device": word(device.subsystem_device),
        "revision": device.revision,
        "class": word(device.class_code),
        "class_name": device.class_name,
        "driver": device.driver,
        "module": device.module,
        "irq": device.irq,
        "interrupts": device.interrupts,
        "enable_count": device.enabled,
        "bus_master": device.bus_master,
        "bridge_to_bus": device.bridge_to,
        "numa_node": device.numa_node,
        "bars": [_bar(bar) for bar in device.bars],
        "dma": {
            "mask": word(device.dma_mask),
            "coherent_mask": word(device.coherent_dma_mask),
            "bus_limit": word(device.bus_dma_limit),
            "ops": device.dma_ops,
            "max_segment_bytes": device.max_segment_size,
            "segment_boundary_mask": word(device.segment_boundary_mask),
            "min_align_mask": word(device.min_align_mask),
        },
        "pools": [
            {
                "name": pool.name,
                "block_bytes": pool.size,
                "blocks": pool.blocks,
                "used_blocks": pool.used,
                "allocation_bytes": pool.allocation,
                "allocations": len(pool.pages),
            }
            for pool in device.pools
        ],
        "managed": [{"release": each.release, "bytes": each.size} for each in device.managed],
    }


def _bar(bar: Bar) -> dict[str, Any]:
    return {
        "name": bar.name,
        "kind": bar.kind,
        "start": word(bar.start) if bar.assigned else None,
        "size_bytes": bar.size,
        "is_64_bit": bar.is_64,
        "prefetchable": bar.prefetch,
        "flags": word(bar.flags),
    }


def _buffer(buffer: DmaBuffer, page_size: int) -> dict[str, Any]:
    return {
        "device": buffer.device,
        "kind": buffer.kind,
        "label": buffer.label or None,
        "bus": word(buffer.bus),
        "kernel_va": word(buffer.address),
        "size_bytes": buffer.size,
        "extents": [{"phys": word(start), "size_bytes": size} for start, size in buffer.extents],
        "pfns": buffer.frames(page_size).tolist(),
        "direction": buffer.direction,
        "source": buffer.source,
        "pid": buffer.pid,
        "transfer": buffer.transfer,
        "device_transfers": buffer.transfers,
    }


def _swiotlb(found: Swiotlb) -> dict[str, Any]:
    return {
        "start": word(found.buffer.start),
        "size_bytes": found.buffer.end - found.buffer.start,
        "slots": found.buffer.slots,
        "used_slots": found.buffer.used,
        "forced": found.forced,
        "mappings": [
            {
                "start": word(each.start),
                "slots": each.slots,
                "origin": word(each.origin),
                "size_bytes": each.size,
            }
            for each in found.bounces
        ],
    }
