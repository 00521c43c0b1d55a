"""The screen of allocations: maps and sums that follow, links from frames and tasks and back, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from inspector.errors import MachineError
from inspector.trace import StackFrame
from inspector.tui.actions import VIEWS
from inspector.tui.places import Place, ViewName
from inspector.tui.views.trace import TraceView
from inspector.units import Pfn, VirtAddr

if TYPE_CHECKING:
    from tests.tui.conftest import FakeSource, FakeTracing, Screen

Play = Callable[..., None]


def tracing(source: FakeSource) -> FakeTracing[Any]:
    assert source.tracing is not None
    return source.tracing


async def begin(screen: Screen, key: str = "t") -> None:
    """From Tasks: the first by resident size is the worker."""
    await screen.press("2")
    await screen.shows("worker")
    await screen.press("A")
    await screen.shows("worker PID 42 not traced", "g traces it as it runs", "pages light up")
    await screen.press(key)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=str)
def test_an_allocation_drawn(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    source.trace_lasts = True

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("held  worker PID 42", "1 page (4 KiB) held, 1 allocated")
        assert tracing(source).given == 1
        await screen.shows("#1 allocated PFN 0x900, 1 page (4 KiB)", "by worker (42) on CPU 0")
        await screen.shows("STOPPED", "at a page allocation or free")
        await screen.shows("order 0 · zone Normal · pageblock Movable · held")
        await screen.shows("GFP_HIGHUSER_MOVABLE __GFP_ZERO", "gfp 0x100cca")
        text = await screen.shows("▶ do_anonymous_page+0x5a", "asm_exc_page_fault+0x22", "1 movable")
        assert all(len(line) <= size[0] for line in text.splitlines())
        await screen.press("n")
        text = await screen.shows(
            "#2 allocated PFN 0xb00, 8 pages (32 KiB)", "pageblock Reclaimable", "8 unmovable"
        )
        assert tracing(source).given == 2
        assert ("Who holds" in text) == (size[0] >= 110)
        await screen.press("b")
        if size[0] < 110:
            await screen.shows("Who holds", "allocate_slab", "8 of 8")
        else:
            await screen.until(lambda: "Who holds" not in screen.text())

    play(script, size)


def test_run_to_the_end(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen, "g")
        await screen.shows(
            "ended", "9 pages (36 KiB) held, 10 allocated, 2 freed (1 held from before) in 5 events"
        )
        await screen.shows("#5 freed PFN 0x777", "· held from before", "8 unmovable", "1 movable", "2 freed")
        await screen.shows("others' 7")
        await screen.until(lambda: tracing(source).closed)
        await screen.press("up")
        await screen.shows(
            "#4 freed PFN 0x901", "allocated as #3 by do_anonymous_page", "▶ zap_pte_range+0x2"
        )
        await screen.press("o")
        await screen.shows("#3 allocated PFN 0x901", "freed as #4 by zap_pte_range")
        await screen.press("home", "o")  # it has none
        await screen.shows("#1 allocated PFN 0x900")
        await screen.press("f")
        await screen.type("allocate_slab")
        await screen.press("enter")
        await screen.shows("#2 allocated PFN 0xb00")
        assert source.asked.count("allocations 42") == 1

    play(script, (140, 40))


def test_links_come_back_to_the_trace(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("held")
        await screen.press("enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.PAGE, pfn=Pfn(0x900)))
        await screen.press("escape")
        await screen.shows("#1 allocated", "held")
        await screen.press("m")
        await screen.until(lambda: screen.app.place == Place(ViewName.FRAMES, pfn=Pfn(0x900)))
        await screen.press("escape")
        await screen.shows("#1 allocated")
        assert not tracing(source).closed
        await screen.press("escape")  # closes it
        await screen.shows("2 processes")
        await screen.until(lambda: tracing(source).closed)

    play(script)


@pytest.mark.parametrize("view", [ViewName.PAGE, ViewName.FRAMES])
def test_a_frame_is_watched(play: Play, source: FakeSource, view: ViewName) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(view, pfn=Pfn(0x900)))
        await screen.until(lambda: screen.app.view.data is not None)
        if view is ViewName.FRAMES:
            for _ in range(8):
                await screen.press("plus")
        await screen.press("w")
        await screen.shows("frame 0x900 now  a  anonymous worker (42) not traced")
        await screen.press("g")
        await screen.shows("#5 freed")
        assert "allocations of 0x900 None" in source.asked
        await screen.press("escape")
        await screen.until(lambda: screen.app.place.view is view)

    play(script)


def test_a_page_has_a_link_to_it(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(0x900)))
        await screen.shows("struct page", "direct map")
        await screen.press("end")
        await screen.shows("who takes and frees this frame")
        await screen.press("enter")
        await screen.shows("frame 0x900 now  a  anonymous")

    play(script, (100, 40))


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("all", "allocations None"),
        ("pfn 0x777", "allocations of 0x777 None"),
        ("1", "allocations 1 and children"),
        ("/labs/fork 64K", "allocations /labs/fork 64K and children"),
    ],
)
def test_what_can_be_traced(play: Play, source: FakeSource, typed: str, asked: str) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("A", "k", "i")
        await screen.type(typed)
        await screen.press("enter")
        await screen.shows("#1 allocated")
        assert [each.removesuffix(" and children") for each in source.asked if "allocations" in each] == [
            asked.removesuffix(" and children")
        ]
        assert "and children" not in asked or asked in source.asked

    play(script)


def test_a_word_that_is_no_pfn(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("A", "i")
        await screen.type("pfn x")
        await screen.press("enter")
        await screen.shows("not a PFN: 'x'")
        assert source.tracing is None

    play(script)


def test_a_guest_that_cannot_be_traced(play: Play, source: FakeSource) -> None:
    source.trace_error = MachineError(
        "m.kmi is a saved image: it cannot run, so that nothing can be traced in it"
    )

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("ended", "is a saved image: it cannot run", "nothing was traced")
        source.trace_error = None
        await screen.press("t")
        await screen.shows("#1 allocated")

    play(script, (120, 30))


def test_one_trace_at_a_time(play: Play, source: FakeSource) -> None:
    """Page faults and allocations take turns; each screen keeps what it has."""
    source.trace_lasts = True

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("#1 allocated")
        first = tracing(source)
        await screen.press("F")
        await screen.shows("not traced")
        await screen.press("t")
        await screen.shows("#1 anonymous first touch", "held")
        assert first.closed
        await screen.press("A")
        await screen.shows("ended", "#1 allocated")
        assert not tracing(source).closed
        await screen.press("L")  # no lab on a guest that stands still
        await screen.until(lambda: tracing(source).closed)

    play(script)


def test_lost_and_unseen_are_said(play: Play, source: FakeSource) -> None:
    source.allocations = [source.allocations[0], *source.allocations]

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("#1 allocated")
        tracing(source).lost = 3
        await screen.press("g")
        await screen.shows("1 more unseen", "3 lost")

    play(script, (160, 40))


def test_saved(play: Play, source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(screen: Screen) -> None:
        await begin(screen, "g")
        await screen.shows("#5 freed")
        await screen.press("home", "e")
        await screen.until((tmp_path / "allocations-42.svg").exists)

    play(script)
    data = json.loads((tmp_path / "allocations-42.json").read_text())
    assert [each["pfn"] for each in data["allocations"]] == [0x900, 0xB00, 0x901, 0x901, 0x777]
    assert data["allocations"][1]["gfp_names"] == ["GFP_KERNEL"]
    assert data["summary"] == {
        "records": 5, "pages_allocated": 10, "pages_freed": 2, "pages_held": 9, "pages_held_before": 1,
        "pages_freed_unseen": 0, "other": 7, "lost": 0,
    }  # fmt: skip
    assert data["callers"][0] == {"name": "allocate_slab", "pages_allocated": 8, "pages_held": 8}
    picture = tmp_path / "allocations-42.svg"
    ElementTree.parse(picture)
    text = picture.read_text()
    assert "do_anonymous_page" in text
    assert "Pageblock" in text
    assert "https://" not in text


def test_hostile_names(play: Play, source: FakeSource) -> None:
    stack = (source.allocations[0].stack[0], StackFrame(VirtAddr(0), "[red]x\x1b[2J+0x1"))
    source.allocations = [replace(source.allocations[0], stack=stack)]

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows(r"▶ [red]x\x1b[2J+0x1")
        assert "\x1b" not in screen.text()

    play(script)


def test_both_screens_of_traces_have_the_same_keys() -> None:
    shared = {name.removeprefix("action_") for name in vars(TraceView) if name.startswith("action_")}
    for view in (ViewName.FAULTS, ViewName.ALLOCATIONS):
        assert shared <= {action.action for action in VIEWS[view]}
