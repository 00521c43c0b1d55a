"""The screen of devices: what they reach, their buffers, and what changes under one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from inspector.kernel.owners import Owner
from inspector.kernel.swiotlb import BounceBuffer
from inspector.tui import palette
from inspector.tui.places import Place, ViewName
from inspector.tui.views.devices import DevicesView
from inspector.tui.widgets.hexdump import Hexdump
from inspector.tui.widgets.reach import Reach
from inspector.units import MIB, Pfn, PhysAddr, VirtAddr

Play = Callable[..., None]

_PAGE = 4096


@pytest.fixture(params=[(80, 24), (120, 40)], ids=str)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The smallest terminal, and a large one."""
    found: tuple[int, int] = request.param
    return found


def test_devices_and_their_reach(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Any) -> None:
        await screen.press("D")
        text = await screen.shows(
            "2 PCI devices, 1 driven", "0000:00:00.0", "host bridge", "unclassified", "2 known buffers"
        )
        # The cursor is on the device that has something to show: half of 16 MiB is within its mask.
        assert "Reach of 0000:00:01.0" in text
        assert "23 bits, to 8 MiB" in text
        assert "memory 0xfea00000 to 0xfeafffff, 1 MiB" in text
        assert "Normal to 16 MiB" in text
        assert "buffer 2" in text
        await screen.press("up")
        await screen.shows("Reach of 0000:00:00.0", "no book that can be read")

    play(script, size)


def test_from_a_device_to_its_buffers_and_on(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("buffer 2")
        await screen.press("enter")
        await screen.shows("2 under pages buffer 1", "0xe00", "unmarked", "Unmovable", "edu was here")
        await screen.press("down")
        await screen.shows("2 under pages buffer 2", "0xd01")
        for key, place in (
            ("enter", Place(ViewName.PAGE, pfn=Pfn(0xD00))),
            ("m", Place(ViewName.FRAMES, pfn=Pfn(0xD00))),
            ("w", Place(ViewName.WALK, va=VirtAddr(0xFFFF888000000000 + 0xD00 * _PAGE))),
            ("a", Place(ViewName.SPACE, pid=42)),
        ):
            await screen.press(key)
            await screen.until(lambda place=place: screen.app.place == place)
            await screen.press("escape")
            await screen.shows("2 under pages buffer 2")
        await screen.press("left", "up")
        await screen.shows("no book that can be read")

    play(script, size)


def test_a_buffer_that_moves(play: Play, source: Any, size: tuple[int, int]) -> None:
    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("buffer 2")
        await screen.press("enter")
        await screen.shows("0xe00")
        moved = replace(source.buffers[0], extents=((PhysAddr(0xE10 * _PAGE), 6144),))
        source.buffers = [moved, source.buffers[1]]
        await screen.shows("moved from 0xe00", "moved from 0xe01", "0xe10000")
        await screen.press("k")
        await screen.until(lambda: "moved" not in screen.text())
        source.buffer_owner = Owner.FREE
        await screen.shows("free was unmarked")

    play(script, size)


def test_a_transfer_under_way(play: Play, source: Any, size: tuple[int, int]) -> None:
    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("buffer 2", "7 transfers")
        await screen.press("enter")
        await screen.shows("edu was here")
        first, second = (replace(each, transfers=8) for each in source.buffers)
        source.buffers = [replace(first, transfer="to RAM"), second]
        source.buffer_bytes = b"edu was THERE" + bytes(51)
        await screen.shows("a transfer to RAM is under way", "edu was THERE", "8 transfers")
        dump = screen.app.query_one("#buffer-bytes", Hexdump)
        lit = [
            dump.draw(76).plain[span.start : span.end]
            for span in dump.draw(76).spans
            if str(span.style).endswith(f"on {palette.WARN}")
        ]
        assert lit == [f"{byte:02x}" for byte in b"THERE"]

    play(script, size)


def test_another_buffers_bytes_are_no_change(play: Play, source: Any) -> None:
    async def script(screen: Any) -> None:
        await screen.press("D", "enter")
        await screen.shows("under pages buffer 1")
        source.buffer_bytes = b"something else"
        await screen.press("down")
        await screen.shows("under pages buffer 2", "something else")
        assert not screen.app.query_one("#buffer-bytes", Hexdump)._lit

    play(script)


def test_buffers_of_nobody(play: Play, source: Any, size: tuple[int, int]) -> None:
    """Coherent memory that is vmapped: the kernel does not keep for which device."""
    source.buffers = [
        replace(source.buffers[0], device=None, source="vmap area", label="", bus=None, pid=None)
    ]

    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("unknown", "no known device", "6 KiB")
        await screen.press("enter", "enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.PAGE, pfn=Pfn(0xE00)))

    play(script, size)


def test_nothing_there(play: Play, source: Any, size: tuple[int, int]) -> None:
    source.pci, source.buffers = [], []

    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("this guest has no PCI device", "0 known buffers")
        await screen.press("enter", "enter", "m", "w", "a", "k", "left", "enter")
        assert screen.app.place.view is ViewName.DEVICES

    play(script, size)


def test_a_filter_is_of_the_list_that_has_the_focus(play: Play) -> None:
    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("buffer 2")
        await screen.press("enter", "f")
        await screen.type("0xd00")
        await screen.until(lambda: "0xe00000" not in screen.text())
        await screen.shows("0000:00:00.0", "0xd00000")
        await screen.press("enter", "left", "f")
        await screen.type("bridge")
        await screen.until(lambda: "0000:00:01.0" not in screen.text())

    play(script)


def test_a_device_by_its_address(play: Play) -> None:
    async def script(screen: Any) -> None:
        await screen.app.go(Place(ViewName.DEVICES, label="0000:00:00.0"))
        await screen.shows("Reach of 0000:00:00.0")

    play(script)


def drawing(play: Play, then: Callable[[Reach], None]) -> None:
    """The drawing of the reach, once it shows the second device."""

    async def script(screen: Any) -> None:
        await screen.press("D")
        await screen.shows("Reach of 0000:00:01.0", "buffer 2")
        then(screen.app.query_one(DevicesView).query_one(Reach))

    play(script)


def test_marks_stand_where_buffers_lie(play: Play, source: Any) -> None:
    """16 MiB on 74 cells: PFN 0xe00 of 0x1000 is in the 64th cell, 0xd00 in the 60th, swiotlb in 37 to 55."""
    source.swiotlb = BounceBuffer(PhysAddr(8 * MIB), PhysAddr(12 * MIB), 2048, 3)

    def check(reach: Reach) -> None:
        line = reach.draw(84).plain.splitlines()[3].removeprefix("buffers   ")
        assert [at for at, cell in enumerate(line) if cell == "▲"] == [60, 64]
        assert [at for at, cell in enumerate(line) if cell == "▒"] == list(range(37, 56))

    drawing(play, check)


def test_a_mask_ends_where_it_ends(play: Play) -> None:
    def check(reach: Reach) -> None:
        zones, mask = (line[10:] for line in reach.draw(84).plain.splitlines()[1:3])
        assert mask == "█" * 37 + " 23 bits, to 8 MiB".ljust(37)
        assert zones.index(" Normal to 16 MiB") == 18  # the first 1024 of 4096 pages are zone DMA's

    drawing(play, check)
