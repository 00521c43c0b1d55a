"""Links, the way back, `/`, run control, dialogs, and what must not go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from textual.events import Key

from inspector.kernel.owners import Owner
from inspector.machine import RunState
from inspector.tui.actions import TAB_KEYS
from inspector.tui.places import Place, ViewName
from inspector.tui.views.base import View
from inspector.tui.widgets.framemap import FrameMap
from inspector.units import Pfn, VirtAddr

if TYPE_CHECKING:
    from tests.tui.conftest import FakeSource, Screen

Play = Callable[..., None]


def test_enter_follows_and_escape_comes_back(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("2")
        await screen.shows("worker")
        await screen.press("enter")  # the first by resident size
        await screen.shows("worker PID 42")
        await screen.press("down", "enter")
        # The first resident page of the heap, not its first page.
        await screen.shows("0x7f0000403000", "physical 0x5000")
        await screen.press("up", "up", "enter")
        await screen.shows("PFN 0x3 ")  # the PUD entry leads to the PMD table at 0x3000
        await screen.press("escape")
        text = await screen.shows("PUD entry")
        assert "PTE entry" not in text
        await screen.press("escape")
        await screen.shows("256 pages")  # the cursor is on the heap again
        await screen.press("escape")
        await screen.shows("2 processes")
        await screen.press("escape")
        await screen.shows("no KVM here")
        await screen.press("escape")
        assert screen.app.place == Place(ViewName.OVERVIEW)

    play(script)


def test_a_view_is_made_when_it_is_first_shown(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("no KVM here")
        assert [view.NAME for view in screen.app.query(View)] == [ViewName.OVERVIEW]
        await screen.press("2", "1")
        assert [view.NAME for view in screen.app.query(View)] == [ViewName.OVERVIEW, ViewName.TASKS]
        await screen.press("2")
        await screen.shows("2 processes")
        assert len(screen.app.query(View)) == 2

    play(script)


def test_keys_wait_for_the_views_that_those_before_them_open(play: Play) -> None:
    async def script(screen: Screen) -> None:
        for key in "234":
            screen.app.post_message(Key(key, key))
        await screen.until(lambda: screen.app.place.view is ViewName.WALK)
        for before in (ViewName.SPACE, ViewName.TASKS, ViewName.OVERVIEW):
            await screen.press("escape")
            assert screen.app.place.view is before

    play(script)


def test_overview_leads_to_task_and_zone(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        await screen.press("enter")
        await screen.shows("worker PID 42")
        await screen.press("escape", "down", "down", "enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.FRAMES, pfn=Pfn(1024)))

    play(script)


@pytest.mark.parametrize(
    ("typed", "hint", "place"),
    [
        ("42", "the address space of PID 42", Place(ViewName.SPACE, pid=42)),
        ("pfn 0x777", "page frame 0x777", Place(ViewName.PAGE, pfn=Pfn(0x777))),
        ("42:0x400000", "walk 0x400000 in PID 42", Place(ViewName.WALK, pid=42, va=VirtAddr(0x400000))),
        (
            "jiffies",
            "walk jiffies = 0xffffffff81236000",
            Place(ViewName.WALK, va=VirtAddr(0xFFFFFFFF81236000), symbol="jiffies"),
        ),
    ],
)
def test_go_to(play: Play, typed: str, hint: str, place: Place) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("/")
        await screen.type(typed)
        await screen.shows(hint)
        await screen.press("enter")
        await screen.until(lambda: screen.app.place == place)
        await screen.press("escape")
        assert screen.app.place == Place(ViewName.OVERVIEW)

    play(script)


def test_go_to_says_what_is_wrong_and_completes(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("/")
        await screen.shows("the address space of the task with that PID")
        await screen.type("nosuch")
        await screen.press("enter")
        await screen.shows("the kernel has no symbol 'nosuch'")
        await screen.press(*["backspace"] * 6)
        await screen.type("in")
        await screen.shows("init_mm", "init_task")
        await screen.press("tab")
        await screen.shows("init_")
        await screen.type("t")
        await screen.press("tab")
        await screen.shows("walk init_task = 0xffffffff81234000")
        await screen.press("escape")
        assert screen.app.place == Place(ViewName.OVERVIEW)

    play(script, (80, 24))


def test_go_to_on_the_map_moves_its_cursor(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("4096 frames")
        await screen.press("/")
        await screen.type("pfn 0x900")
        await screen.press("enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.FRAMES, pfn=Pfn(0x900)))
        await screen.press("enter")
        await screen.shows("struct page", "anonymous")

    play(script)


def test_a_place_that_is_not_there(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(0x99999)))
        await screen.shows("PFN 0x99999 has no struct page")
        await screen.app.go(Place(ViewName.SPACE, pid=7))
        await screen.shows("no task has PID 7")

    play(script)


def test_space_pauses_and_resumes(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("RUNNING", "Linux 6.1.0-test")
        await screen.press("space")
        await screen.shows("PAUSED", "by user")
        reads = len(source.asked)
        await screen.until(lambda: len(source.asked) > reads or "stopped" in screen.text())
        await screen.press("space")
        await screen.shows("RUNNING")

    play(script, (80, 24))


def test_a_saved_image_says_so(play: Play, source: FakeSource) -> None:
    """And the space key that it cannot run; nobody asks the source to."""
    source.run_state = RunState("saved", "saved image")

    async def script(screen: Screen) -> None:
        text = await screen.shows("SAVED IMAGE", "Linux 6.1.0-test", "read in")
        assert "PAUSED" not in text
        await screen.press("space")
        await screen.shows("a saved image does not run", "SAVED IMAGE")
        await screen.press("2")
        text = await screen.shows("worker")
        assert "does not run" not in text
        assert source.run_state.kind == "saved"

    play(script, (80, 24))


def test_help_lists_every_key(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5", "?")
        await screen.shows("Keys: Frames", "Zoom in", "+ =", "Everywhere", "Pause or resume the guest")
        await screen.press("escape")
        await screen.until(lambda: "Everywhere" not in screen.text())
        assert screen.app.place.view is ViewName.FRAMES

    play(script, (80, 36))


def test_command_palette_has_the_actions(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("4096 frames")
        await screen.press("ctrl+p")
        await screen.type("letters")
        await screen.shows("Letters, or colours alone")
        await screen.press("enter")
        await screen.shows("aaaaaaaa")

    play(script)


def test_a_click_on_a_tab(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        column = screen.text().splitlines()[1].index("Frames")
        await screen.pilot.click("#tabs", offset=(column, 0))
        await screen.shows("4096 frames")

    play(script)


def test_hostile_names_show_literally(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("2")
        await screen.shows("[red]x[/red]")
        await screen.press("enter")
        await screen.shows("[red]x[/red] PID 66", "[link=evil]", r"\x1b[2J")
        assert "\x1b" not in screen.text()
        await screen.press("c")
        await screen.shows("[bold]login")

    source.rows = [replace(source.rows[0], pid=66, name="[red]x[/red]")]
    names = "/tmp/[link=evil]", "/tmp/\x1b[2J"
    source.areas = [replace(area, name=name) for area, name in zip(source.areas, names, strict=False)]
    source.console_text = "[bold]login"
    play(script)


def test_slow_reads_do_not_block_keys(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        source.gate.clear()
        await screen.press("2")
        await screen.shows("reading…")
        await screen.press("?")
        await screen.shows("Keys: Tasks")
        await screen.press("escape", "5", "6", "3")
        await screen.until(lambda: screen.app.place.view is ViewName.SPACE)
        before = len(source.asked)
        source.gate.set()
        await screen.shows("init PID 1")
        # What was asked for in between and is not looked at any more was not read.
        assert not {"frames", "page 0x0"} & set(source.asked[before - 1 :])

    play(script)


def test_quitting_does_not_wait_for_a_slow_read(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        source.gate.clear()
        await screen.press("2", "q")
        source.gate.set()
        await screen.until(lambda: not screen.app.is_running)

    play(script)


def test_a_dying_guest_is_told(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        source.console_text = "Kernel panic - not syncing"
        source.die()
        await screen.shows(
            "The guest is gone", "killed by signal 9", "Kernel panic - not syncing", "q to quit"
        )
        await screen.press("escape")
        await screen.shows("worker (42)", "DEAD")
        await screen.press("2", "5", "space")
        await screen.shows("the guest is gone: what is shown was read before; q quits")
        await screen.press("q")
        await screen.until(lambda: not screen.app.is_running)

    play(script, (80, 24))


def test_a_read_that_finds_the_guest_gone(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        source.dead = True
        await screen.press("2")
        await screen.shows("The guest is gone", "killed by signal 9")
        await screen.press("q")
        await screen.until(lambda: not screen.app.is_running)

    play(script)


def test_resizing(play: Play) -> None:
    async def script(screen: Screen) -> None:
        for view in ViewName:
            await screen.press(TAB_KEYS[view])
            await screen.until(lambda: screen.app.view.data is not None)
            for width, height in ((200, 60), (80, 24), (40, 10)):
                await screen.pilot.resize_terminal(width, height)
                await screen.pilot.pause()
                lines = screen.text().splitlines()
                assert len(lines) <= height
                assert max(map(len, lines)) <= width
                assert f"{TAB_KEYS[view]} {view.title()}" in lines[1]
                await screen.until(lambda: "⏎" in screen.text().splitlines()[-1])
                _assert_apart(screen)

    play(script)


def _assert_apart(screen: Screen) -> None:
    """No two parts of the screen cover each other, and none leaves it."""
    whole = screen.app.screen.region
    parts = [screen.app._status, screen.app._tabs, screen.app._switcher]
    for part in parts:
        assert whole.contains_region(part.region), part
    for one, other in pairwise(parts):
        assert not one.region.overlaps(other.region), (one, other)


def test_sixteen_gibibytes_of_frames(play: Play, source: FakeSource) -> None:
    random = np.random.default_rng(5)
    source.frame_states = random.integers(1, len(Owner), 4 << 20).astype(np.uint8)
    source.frame_states[0x100000:0x140000] = Owner.NO_PAGE
    source.frame_details = np.zeros(4 << 20, np.uint32)

    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("4194304 frames", "hole", "1 GiB")
        await screen.press("end")
        frame_map = screen.app.view.query_one(FrameMap)
        counts = frame_map.cell_counts(frame_map.pfn)
        part = source.frame_states[frame_map.pfn : frame_map.pfn + (1 << frame_map.shift)]
        assert counts.tolist() == np.bincount(part, minlength=len(Owner)).tolist()
        frame_map.zoom(20)
        await screen.shows("a cell is 1 frame", f"PFN {frame_map.pfn:#x}")
        await screen.press("home")
        await screen.shows("PFN 0x0 ")

    play(script, (200, 60))
