"""Pictures of all free frames, to look back at when it is known which was taken; and a witness of them."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import LabFailed, NoSuchTask
from inspector.guest import Guest
from inspector.kernel import buddy, frames
from inspector.kernel.frames import Frames, FrameState
from inspector.kernel.memmap import MemMap
from inspector.kernel.zones import Zone, zones
from inspector.units import Pfn

BUDDYINFO, ZONEINFO = "/proc/buddyinfo", "/proc/zoneinfo"

_ORDERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PER_CPU, _OURS, _OTHERS, _FOLLOWED = "c", "#", "x", "@"
_READY = "witness-ready"
_PATIENCE = 30.0  # seconds until the witness sleeps
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Block:
    """2**`order` frames from `start` on, which is a multiple of their number."""

    start: Pfn
    order: int

    @property
    def pfns(self) -> range:
        """Its frames."""
        return range(self.start, self.start + (1 << self.order))


@dataclass(frozen=True, slots=True)
class FreeLists:
    """What each frame was at one moment, and the zones' counts. Of the `blocks` on the buddy lists `marked`
    many have their order in the first struct page's `private`.
    """

    frames: Frames
    zones: tuple[Zone, ...]
    blocks: NDArray[np.void]
    marked: int

    @classmethod
    def read(cls, guest: Guest) -> FreeLists:
        """From mem_map, the buddy lists and the CPUs' lists, while the guest stands still."""
        kernel = guest.kernel
        with guest.paused():
            memmap = MemMap(kernel)
            blocks = buddy.free_blocks(kernel, memmap)
            private = memmap.addresses(blocks["pfn"]) + np.uint64(kernel.types.offsetof("page", "private"))
            orders, _ = kernel.space.gather(private, np.dtype(np.uint64))
            populated = tuple(zone for zone in zones(kernel) if zone.populated)
            return cls(
                frames.frames(kernel, memmap), populated, blocks, int((orders == blocks["order"]).sum())
            )

    def count(self, state: FrameState) -> int:
        """How many frames are in that state."""
        return int((self.frames.state == state).sum())

    @property
    def settled(self) -> bool:
        """Whether the CPUs' lists are as long as their counts: a CPU may stop between link and count."""
        return self.count(FrameState.PER_CPU) == sum(zone.per_cpu_free for zone in self.zones)

    def by_order(self, zone: Zone) -> tuple[int, ...]:
        """How many free blocks of each order a zone has."""
        chosen = (self.blocks["zone"] == zone.index) & (self.blocks["node"] == zone.node)
        orders = self.blocks["order"][chosen]
        return tuple(np.bincount(orders, minlength=len(zone.free_by_order)).tolist())

    @property
    def largest(self) -> int:
        """The order of the largest block that there can be (C: MAX_PAGE_ORDER)."""
        return max(len(zone.free_by_order) for zone in self.zones) - 1

    def state(self, pfn: Pfn) -> FrameState:
        """What a frame was; beyond the last, none."""
        if pfn >= len(self.frames.state):
            return FrameState.HOLE
        return FrameState(int(self.frames.state[pfn]))

    def block(self, pfn: Pfn) -> Block | None:
        """The free block that a frame lay in; None where it was in none."""
        if self.state(pfn) is not FrameState.FREE:
            return None
        order = int(self.frames.order[pfn])
        return Block(Pfn(pfn & -(1 << order)), order)

    def order(self, pfn: Pfn) -> int:
        """The order of the free block that a frame lay in; -1 where it was in none."""
        block = self.block(pfn)
        return block.order if block else -1

    def letters(self, block: Block, ours: Collection[int], followed: Pfn) -> str:
        """The frames of a block as BlockShown has them; `ours` are the program's."""
        return "".join(_FOLLOWED if pfn == followed else self._letter(Pfn(pfn), ours) for pfn in block.pfns)

    def _letter(self, pfn: Pfn, ours: Collection[int]) -> str:
        state = self.state(pfn)
        if state is FrameState.FREE:
            return _ORDERS[int(self.frames.order[pfn])]
        if state is FrameState.PER_CPU:
            return _PER_CPU
        return _OURS if pfn in ours else _OTHERS


@dataclass(frozen=True, slots=True)
class Said:
    """What the guest's own files say of each zone, by name: free blocks by order, pages on CPUs' lists."""

    orders: dict[str, tuple[int, ...]]
    on_lists: dict[str, int]


def witnessed(guest: Guest) -> tuple[FreeLists, Said]:
    """The free lists, read between two readings by the guest of its own files that agree.

    Raises LabFailed where its files never rest.
    """
    for _ in range(_TRIES):
        pid = guest.spawn(f"exec /labs/witness 1 {BUDDYINFO} {ZONEINFO}")
        lists = _between_readings(guest, pid)
        log = guest.run(f"cat /tmp/spawn-{pid}.log; rm /tmp/spawn-{pid}.log").stdout
        if lists and (said := _said(log, 0)) == _said(log, 1):
            return lists, said
    raise LabFailed(f"{BUDDYINFO} is never the same twice: is something busy in this guest?")


def _between_readings(guest: Guest, pid: int) -> FreeLists | None:
    """While the witness sleeps. Only the host waits: whatever runs in the guest takes pages."""
    lists, deadline = None, time.monotonic() + _PATIENCE
    with suppress(NoSuchTask):
        while time.monotonic() < deadline:
            with guest.paused():
                if guest.task(pid).comm == _READY and (lists is None or not lists.settled):
                    lists = FreeLists.read(guest)
            time.sleep(0.05)
    return lists


def _said(log: str, reading: int) -> Said:
    files = {name: text for name, number, text in _files(log) if int(number) == reading}
    orders = {
        zone: tuple(map(int, counts.split()))
        for zone, counts in re.findall(r"^Node \d+, zone +(\w+) ([ \d]+)$", files[BUDDYINFO], re.MULTILINE)
    }
    on_lists: dict[str, int] = {}
    for part in re.split(r"^Node \d+, zone ", files[ZONEINFO], flags=re.MULTILINE)[1:]:
        counts = re.findall(r"^ +count: +(\d+)$", part, re.MULTILINE)
        on_lists[part.split()[0]] = sum(map(int, counts))
    return Said(orders, on_lists)


def _files(log: str) -> Iterator[tuple[str, str, str]]:
    parts = re.split(r"^(/proc/\w+) ([01]) \d+\n", log, flags=re.MULTILINE)[1:]
    return zip(parts[::3], parts[1::3], parts[2::3], strict=True)
