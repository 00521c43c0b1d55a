"""The screen of labs: the list, a story step by step, questions, and that a lab never outlives its screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest

from inspector.errors import MachineError
from inspector.kernel.vmas import Vma
from inspector.labs.story import (
    AliasesShown,
    AliasRow,
    BlockShown,
    FaultShown,
    Number,
    NumbersShown,
    PagesShown,
    QuoteShown,
    VmaShown,
)
from inspector.tui.places import Place, ViewName
from inspector.units import Pfn, VirtAddr

if TYPE_CHECKING:
    from tests.tui.conftest import FakeSource, Screen

Play = Callable[..., None]


async def begin(screen: Screen) -> None:
    await screen.press("L")
    await screen.shows("first-touch", "What about second-sight?")
    await screen.press("enter")
    await screen.shows("1. A beginning", "expect · A frame comes.", "page[0] = 7;", "⏎ does it")


@pytest.mark.parametrize("size", [(80, 24), (200, 60)], ids=str)
def test_a_story_step_by_step(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("enter")
        text = await screen.shows("is there", "8000000000005067 P RW US A D NX → page 0x5000", "⏎ goes on")
        assert text.index("not present: empty") < text.index("▶ now 8000000000005067")
        await screen.shows(
            "PFN 0x5 anon: worker (42)", "mapcount 2 ▶ 1", "✔ The frame: PFN 0x5", "As was to be"
        )
        await screen.press("enter")
        await screen.shows("? two and two =", "what 2 + 2 gives")
        await screen.type("4")
        await screen.press("enter")
        await screen.shows("? two and two = 4", "✔ As expected.", "So it is.", "Esc leads back")
        assert not source.lab_open
        await screen.press("escape")
        line = next(line for line in (await screen.shows("✔ passed")).splitlines() if "✔ passed" in line)
        assert "first-touch" in line

    play(script, size)


def test_a_wrong_answer_fails(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("g")  # on to the question
        await screen.shows("? two and two =", "As was to be seen.")
        await screen.type("5")
        await screen.press("enter")
        await screen.shows("? two and two = 5", "✖ Not as expected.")
        await screen.press("escape")
        await screen.shows("✖ failed")

    play(script)


def test_what_is_not_as_it_was_said(play: Play, source: FakeSource) -> None:
    source.check = replace(source.check, passed=False, found="no frame", hint="is swap on?")

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("g")
        await screen.shows(
            "✖ The frame: expected PFN 0x5, found no frame", "is swap on?", "✖ Not as expected."
        )

    play(script, (120, 40))


def test_a_lab_that_cannot_be_played(play: Play, source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> NoReturn:
        raise MachineError("no agent of ours is in it to run commands or take files")

    monkeypatch.setattr(source, "tell", refuse)

    async def script(screen: Screen) -> None:
        await screen.press("L", "enter")
        text = await screen.shows("✖ This lab cannot be played here.", "no agent of ours", "Esc leads back")
        assert "Not as expected" not in text
        await screen.press("enter", "escape")
        assert "failed" not in await screen.shows("first-touch", "What about second-sight?")

    play(script)


def test_keys_do_not_wait_for_the_guest(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        source.gate.clear()
        await screen.press("enter")
        await screen.shows("at work in the guest")
        await screen.press("enter", "enter")  # nothing more is asked for meanwhile
        await screen.press("?")
        await screen.shows("Keys: Labs")
        await screen.press("escape")
        source.gate.set()
        await screen.shows("⏎ goes on")
        assert "two and two" not in screen.text()

    play(script)


def test_leaving_ends_the_lab(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        assert source.lab_open
        await screen.press("escape")
        await screen.until(lambda: not source.lab_open)
        await begin(screen)
        await screen.until(lambda: source.lab_open)
        assert source.asked.count("lab first-touch") == 2
        await screen.press("q")

    play(script)
    assert not source.lab_open


def test_a_look_at_the_frame_comes_back_to_the_story(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("enter")
        await screen.shows("⏎ goes on")
        await screen.press("p")
        await screen.until(lambda: screen.app.place == Place(ViewName.PAGE, pfn=Pfn(5)))
        assert source.lab_open
        await screen.press("escape")
        await screen.shows("1. A beginning", "⏎ goes on")
        assert source.asked.count("lab first-touch") == 1

    play(script)


def test_a_traced_guest_is_let_go(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("F", "t")
        await screen.shows("held")
        await begin(screen)
        await screen.until(lambda: source.tracing is not None and source.tracing.closed)

    play(script)


def test_every_exhibit_is_drawn(play: Play, source: FakeSource) -> None:
    area = Vma(VirtAddr(0x7F0000000000), VirtAddr(0x7F0000004000), 3, 0, (0, 0), 0, "[heap]", VirtAddr(0))
    source.exhibits = (
        NumbersShown("smaps", (Number("Rss", 1024, "KiB", 1000),)),
        AliasesShown(Pfn(0x77), (AliasRow("[red]x", VirtAddr(0x7000), 0x77067, ("P", "RW")),)),
        VmaShown(area, replace(area, end=VirtAddr(0x7F0000003000))),
        PagesShown(VirtAddr(0x7F0000000000), "##..s"),
        BlockShown("now", Pfn(0x1A00), "5" * 128 + "##c@"),
        FaultShown(source.faults[0]),
        QuoteShown("the console", ("[bold]\x1b[2J",)),
    )

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("enter")
        await screen.shows("Rss        1,024 KiB", "+24, was 1,000", "PFN 0x77 is mapped at", "[red]x 0x7000")
        await screen.shows("rw-p [heap] 12 KiB", "rw-p [heap] 16 KiB", "5 pages from 0x7f0000000000", "##..s")
        await screen.shows("page fault anonymous first touch w user", "error code W|U", "frame - → 0x5")
        await screen.shows("now, 132 frames from 0x1a00", "5" * 64 + " x2", "##c@")
        await screen.shows(r"[bold]\x1b[2J")
        assert "\x1b" not in screen.text()

    play(script, (120, 50))
