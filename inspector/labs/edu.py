"""QEMU's edu device as labs use it: buffers of each kind, by the driver's log and by its struct edu."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from inspector.errors import LabFailed
from inspector.kernel import driver_books
from inspector.kernel.devices import device_views
from inspector.labs.stage import Stage
from inspector.labs.story import Check
from inspector.units import BusAddr, Pfn, PhysAddr, VirtAddr

# qemu_images/modules/edu/edu.h
KINDS = ("pages", "kmalloc", "coherent", "pinned", "stale")
_TAKE = 1 << 30 | 16 << 16 | ord("E") << 8 | 1  # _IOW('E', 1, struct edu_wish)
SEND, RECEIVE, WRITTEN, SYNC = (ord("E") << 8 | number for number in (2, 3, 5, 6))  # _IO('E', n)

SIZE = 1024
"""Bytes of each buffer: what the actor carries in a line."""

DRIVER, DMESG, REGISTERS = "struct edu", "the driver, in dmesg", "the device's registers"
_ID = (0x1234, 0x11E8)  # QEMU docs/specs/edu.rst
_DMA_SOURCE = 0x80


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer when it was taken: `va` in the program, None for one of the driver's own."""

    kind: str
    va: VirtAddr | None
    place: PhysAddr
    bus: BusAddr

    @property
    def pfn(self) -> Pfn:
        """Its frame then."""
        return Pfn(self.place >> 12)


class Engine:
    """The device and the program's buffers, for one lab."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.actor, self.guest = stage, stage.actor, stage.guest

    def take(self, kind: str, va: VirtAddr | None = None, name: str = "") -> Buffer:
        """Have the driver take a buffer; `va` is the program's page for it."""
        name = name or kind
        self.actor.open(name, "/dev/edu")
        self.actor.ioctl(name, _TAKE, struct.pack("=IIQ", KINDS.index(kind), SIZE, va or 0))
        said = self.stage.log(rf"edu .*: buffer \d+ {kind}(?: at (0x\w+))? bus (0x\w+)$")
        if not said:
            raise LabFailed(f"the driver's log says nothing of a {kind} buffer")
        place, bus = said[-1].groups()
        return Buffer(name, va, PhysAddr(int(place or bus, 16)), BusAddr(int(bus, 16)))

    def ask(self, buffers: Iterable[Buffer], request: int) -> None:
        """SEND, RECEIVE, WRITTEN or SYNC each."""
        for buffer in buffers:
            self.actor.ioctl(buffer.kind, request)

    def fill(self, buffer: Buffer, text: bytes) -> None:
        """Bytes into the buffer, by the CPU: the program's page in place, the driver's through its file."""
        data = (text * (SIZE // len(text) + 1))[:SIZE]
        if buffer.va is None:
            self.actor.pwrite(buffer.kind, 0, data)
        else:
            self.actor.poke(buffer.va, data)

    def seen(self, buffer: Buffer, size: int) -> bytes:
        """What the CPU reads there."""
        if buffer.va is None:
            return self.actor.pread(buffer.kind, 0, size)
        return self.actor.peek(buffer.va, size)

    def registers(self) -> tuple[int, int, int]:
        """Source, target and count of the last transfer, as QEMU reads them from the device's BAR."""
        bar = next(
            device.bars[0] for device in self.guest.pci_devices() if (device.vendor, device.device) == _ID
        )
        said = self.guest.machine.hmp(f"xp /6wx {bar.start + _DMA_SOURCE:#x}")
        words = [int(word, 16) for word in re.findall(r"0x([0-9a-f]{8})\b", said)]
        if len(words) != 6:
            raise LabFailed(f"QEMU does not show the registers: {said.strip()!r}")
        return words[1] << 32 | words[0], words[3] << 32 | words[2], words[4]

    def now(self, buffer: Buffer) -> Pfn | None:
        """Where the buffer's memory lies now, by the page tables; None where it is not in memory."""
        with self.guest.paused():
            if buffer.va is not None:
                return self.stage.look(buffer.va).walk.pfn
            for entry in self.book():
                if entry.bus == buffer.bus and entry.address is not None:
                    return self.guest.kernel.space.walk(entry.address).pfn
        return None

    def book(self) -> list[driver_books.Entry]:
        """The buffers on the driver's own list."""
        with self.guest.paused():
            for view in device_views(self.guest.kernel):
                if (view.int("vendor"), view.int("device")) == _ID:
                    return driver_books.entries(view)
        raise LabFailed("the guest has no edu device")


def names(claim: str, expected: Iterable[str], found: Iterable[str], witness: str, hint: str = "") -> Check:
    """Which buffers it holds for."""
    wanted, got = _listed(expected), _listed(found)
    return Check(claim, wanted == got, wanted, got, witness, hint)


def _listed(kinds: Iterable[str]) -> str:
    found = tuple(kinds)
    return "all five" if found == KINDS else ", ".join(found) or "none"


def move_text(old: Pfn, now: Pfn | None) -> str:
    """Whether a page is where it was."""
    if now == old:
        return "stayed"
    return f"moved to {now:#x}" if now is not None else "not in memory"
