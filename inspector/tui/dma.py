"""What the screen of devices draws: a frozen snapshot, as those of source.py."""

from __future__ import annotations

from dataclasses import dataclass

from inspector.kernel.devices import PciDevice
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.owners import Owner
from inspector.kernel.swiotlb import BounceBuffer
from inspector.kernel.zones import Zone
from inspector.units import Pfn, PhysAddr

BufferKey = tuple[str | None, str, str, str, int | None]
"""What tells a buffer from all others as long as it is one: wherever its memory is moved to."""


def buffer_key(buffer: DmaBuffer) -> BufferKey:
    """The buffer's key."""
    return buffer.device, buffer.source, buffer.kind, buffer.label, buffer.address or buffer.bus


@dataclass(frozen=True, slots=True)
class FrameRow:
    """A frame under a buffer, and what is known of it now; `mapcount` is None where it has a page type.

    The references to a tail page are counted on its `head`, which is None for any other.
    """

    pfn: Pfn
    owner: Owner
    label: str
    migratetype: str | None
    refcount: int
    mapcount: int | None
    head: Pfn | None = None


@dataclass(frozen=True, slots=True)
class ChosenBuffer:
    """A buffer looked at closely: its first frames of `count`, and its first bytes."""

    buffer: DmaBuffer
    frames: tuple[FrameRow, ...]
    count: int
    contents: bytes


@dataclass(frozen=True, slots=True)
class Devices:
    """PCI devices, every buffer that is known, and the zones of memory that masks are drawn over.

    `memory_end` is the end of the highest zone, in bytes.
    """

    devices: tuple[PciDevice, ...]
    buffers: tuple[DmaBuffer, ...]
    zones: tuple[Zone, ...]
    swiotlb: BounceBuffer | None
    chosen: ChosenBuffer | None
    memory_end: PhysAddr
    page_size: int
