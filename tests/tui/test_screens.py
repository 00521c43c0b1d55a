"""Each screen shows what the guest is known to hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from inspector.errors import CorruptGuest
from inspector.tui.actions import GLOBAL, TAB_KEYS, VIEWS
from inspector.tui.places import Place, ViewName
from inspector.units import Pfn, VirtAddr

if TYPE_CHECKING:
    from tests.tui.conftest import FakeSource, Screen

Play = Callable[..., None]
SIZES = [(80, 24), (200, 60)]
ORDERS = "Normal 0 1 2 3 4 5 6 7 8 9 10"


@pytest.fixture(params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_overview(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("6.1.0-test", "abcdef012345", "+0x2a00000", "no KVM here")
        await screen.shows("worker (42)", "do_idle+0x10", "0x1000")
        # 15 of 3072 pages free: below the low watermark of 20 pages.
        await screen.shows("60 KiB of", "12 MiB", "min 40 KiB low 80 KiB high 120 KiB")
        await screen.shows("4096 frames, 16 MiB", "reserved", "anonymous", "2 MiB")
        if size[1] > 24:
            await screen.shows("Movable", "7")

    play(script, size)


@pytest.mark.parametrize("width", [80, 110, 120, 160])
def test_free_lists_show_every_order(play: Play, width: int) -> None:
    async def script(screen: Screen) -> None:
        text = await screen.shows("Free lists", "Movable")
        assert any(ORDERS in " ".join(line.split()) for line in text.splitlines())

    play(script, (width, 45))


def test_small_overview_scrolls_to_the_free_lists(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.shows("worker (42)")
        assert "Movable" not in screen.text()
        await screen.press("down", "down", "down")
        await screen.shows("Movable")

    play(script, (80, 18))


def test_tasks(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("2")
        text = await screen.shows("2 processes, 1 kernel threads", "[kthreadd]", "R running", "12 MiB")
        # By resident size, the largest first.
        assert text.index("worker") < text.index("init") < text.index("[kthreadd]")

    play(script, size)


def test_tasks_sort_by_key_and_by_click(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("2")
        await screen.shows("resident▼")
        await screen.press("s")
        await screen.shows("virtual▼")
        await screen.press("S", "r")
        text = await screen.shows("resident▲")
        assert text.index("[kthreadd]") < text.index("init") < text.index("worker")
        await screen.pilot.click("#task-table", offset=(5, 0))
        text = await screen.shows("PID▲")
        assert text.index("init") < text.index("[kthreadd]") < text.index("worker")

    play(script)


def test_tasks_filter_as_one_types(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("2")
        await screen.shows("init")
        await screen.press("f", "W", "o", "r")
        await screen.until(lambda: "init" not in screen.text())
        await screen.shows("worker")
        await screen.press("enter")  # keeps it, and gives the keys back
        await screen.press("f", "z")
        await screen.shows("no row contains 'Worz'")
        await screen.press("escape")
        await screen.shows("init", "worker")

    play(script)


def test_threads_and_kernel_threads(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("2")
        await screen.shows("kthreadd")
        await screen.press("k")
        await screen.until(lambda: "kthreadd" not in screen.text())
        await screen.press("t")
        await screen.shows("worker-thread", "3 user threads")

    play(script)


def test_space(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.SPACE, pid=42))
        await screen.shows("worker PID 42", "root 0x1000", "3 VMAs")
        await screen.shows("0x7f0000400000", "1 MiB", "rw-p", "[heap]", "r-xp", "/bin/worker", "[stack]")
        if size[0] > 80:
            await screen.shows("pss", "1.3 KiB", "swap", "7 MiB")
        await screen.shows("┊")  # holes between the VMAs
        await screen.press("down")
        await screen.shows("0x7f0000400000-0x7f0000500000", "256 pages", "READ WRITE")

    play(script, size)


def test_space_of_a_kernel_thread(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.SPACE, pid=2))
        await screen.shows("a kernel thread has no address space of its own")

    play(script)


def test_next_task_skips_kernel_threads(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("3", "]")
        await screen.shows("worker PID 42")
        await screen.press("[")
        await screen.shows("init PID 1")

    play(script)


def test_walk(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.WALK, pid=42, va=VirtAddr(0x7F0000403123)))
        await screen.shows("0x7f0000403123", "worker (42)", "[heap]")
        # The index bits, cut out by hand: PGD 254, PUD 0, PMD 2, PTE 3, offset 0x123.
        await screen.shows("0000000000000000 011111110 000000000 000000010 000000011 000100100011", "0x123")
        await screen.shows("0x17f0", "0x0000000000002067", "0x4018", "0x8000000000005067", "P RW US A D NX")
        await screen.shows("physical 0x5123", "PFN 0x5", "4 KiB page")
        text = await screen.shows("no execute: instruction fetches", "dirty: the MMU sets it")
        assert "● writable" in text
        assert "○ executable" in text

    play(script, size)


def test_walk_that_faults(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.WALK, pid=42, va=VirtAddr(0x7F0000404000)))
        await screen.shows("#PF with error code P=0: the PTE entry is not present")
        await screen.shows("the kernel would bring a page in")
        await screen.press("enter")  # leads nowhere
        assert screen.app.place.view is ViewName.WALK
        await screen.app.go(Place(ViewName.WALK, pid=42, va=VirtAddr(0x800000000000)))
        await screen.shows("#GP(0)", "no page table was read at all")

    play(script, size)


def test_walk_goes_from_page_to_page(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.WALK, pid=42, va=VirtAddr(0x7F0000403123)))
        await screen.shows("physical 0x5123")
        await screen.press("right")
        await screen.shows("0x7f0000404000", "not present")
        await screen.press("left")
        await screen.shows("physical 0x5000")

    play(script)


def test_frames(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows(
            "4096 frames", "reserved", "1 MiB", "anonymous", "2 MiB", "page cache", "4 KiB", "DMA"
        )
        await screen.app.go(Place(ViewName.FRAMES, pfn=Pfn(0x777)))
        await screen.shows("Normal")
        for _ in range(12):
            await screen.press("plus")
        await screen.shows("a cell is 1 frame, 4 KiB", "PFN 0x777", "at 0x777000", "page cache")
        await screen.press(
            "right", "n"
        )  # free from 0x778 on; the next free run begins behind the anonymous frames
        await screen.shows("PFN 0xa00")
        await screen.press("N", "N")
        await screen.shows("PFN 0x100 ")
        await screen.press("a")
        await screen.shows("all shown")

    play(script, size)


def test_frames_in_letters(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("4096 frames")
        assert "aaaaaaaa" not in screen.text()
        await screen.press("g")
        await screen.shows("RRRRRRRR", "aaaaaaaa", "········")

    play(script)


def test_page(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(0x800)))
        await screen.shows("PFN 0x800", "anonymous", "uptodate", "lru", "_refcount", "_mapcount")
        await screen.shows(
            "struct anon_vma", "0xffff888000003000", "0xffff888000800000", "0xffffea0000020000"
        )
        if size[1] > 24:
            await screen.shows("00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f", "hello, page")
        await screen.shows(
            "0x7f0000403000 rw- in worker (42)", "0xffffc90000000000 r-- in the kernel: vmalloc"
        )
        await screen.press("enter")
        await screen.until(lambda: screen.app.place.pid == 42)
        await screen.press("escape", "right")
        await screen.shows("PFN 0x801")
        await screen.press("m")
        await screen.until(lambda: screen.app.place == Place(ViewName.FRAMES, pfn=Pfn(0x801)))

    play(script, size)


def test_page_of_many_addresses_that_differ_in_cache_mode(play: Play, source: FakeSource) -> None:
    source.vmap = ("UC-", 65536)

    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(0x800)))
        await screen.shows("kernel: vmalloc, 4 KiB page, 65,536 times from there on")
        await screen.shows("UC-, WB", "its addresses differ in their cache attributes (PAT, PCD, PWT)")

    play(script, (200, 60))


def test_console_runs_a_command(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("c")
        await screen.shows("login:")
        await screen.press("enter")
        await screen.type("id")
        await screen.press("enter")
        await screen.shows("$ id", "ran id")
        await screen.press("escape", "1")
        await screen.shows("6.1.0-test")

    play(script, size)


def test_an_error_is_one_line_and_passes(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        source.error = CorruptGuest("the task list does not end")
        await screen.press("2")
        await screen.shows("the task list does not end")
        source.error = None
        await screen.press("ctrl+r")
        await screen.shows("worker")
        assert "does not end" not in screen.text()

    play(script, size)


def test_a_bug_in_a_reader_is_an_error_too(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        source.error = ZeroDivisionError("division by zero")
        await screen.press("2")
        await screen.shows("internal error: ZeroDivisionError: division by zero")

    play(script)


def test_every_screen_has_its_keys_on_it(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        for view in ViewName:
            await screen.press(TAB_KEYS[view])
            await screen.shows("? Keys", f"{TAB_KEYS[view]} {view.title()}")
            assert screen.app.place.view is view
            for action in VIEWS[view]:
                if action.label and screen.app.view.check_action(action.action.split("(")[0], ()):
                    await screen.shows(action.label)

    play(script, size)


def test_every_action_exists(play: Play) -> None:
    async def script(screen: Screen) -> None:
        for view, actions in VIEWS.items():
            for action in actions:
                name = action.action.split("(")[0]
                assert hasattr(screen.app.view_of(view), f"action_{name}"), f"{view}: {name}"
        for action in GLOBAL:
            assert hasattr(screen.app, f"action_{action.action.split('(')[0]}"), action.action

    play(script)
