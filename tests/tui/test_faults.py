"""The screen of page faults: begin, step, run, links, files, and that a trace never outlives its screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from inspector.errors import GuestDied, NoSuchTask
from inspector.trace import FaultKind
from inspector.tui.places import Place, ViewName
from inspector.tui.recorder import MOST
from inspector.units import Pfn, VirtAddr

if TYPE_CHECKING:
    from tests.tui.conftest import FakeSource, FakeTracing, Screen

Play = Callable[..., None]


def tracing(source: FakeSource) -> FakeTracing[Any]:
    assert source.tracing is not None
    return source.tracing


def ended(source: FakeSource) -> bool:
    return source.tracing is not None and source.tracing.closed


async def begin(screen: Screen) -> None:
    """From Tasks: the first by resident size is the worker."""
    await screen.press("2")
    await screen.shows("worker")
    await screen.press("F")
    await screen.shows("worker PID 42 not traced", "t traces PID 42")
    await screen.press("t")


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=str)
def test_a_fault_drawn(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        text = await screen.shows(
            "#1 anonymous first touch", "worker (42) on CPU 0", "held", "1 fault, 0 major"
        )
        await screen.shows("0x7f0000403018 write by user code at /bin/worker+0x1234", "✖ not present")
        await screen.shows("8000000000005067", "✔ PFN 0x5 4 KiB rw- user")
        await screen.shows("free", "▶", "anonymous, refcount 2, mapcount 1", "[heap] 64 KiB")
        assert tracing(source).given == 1
        levels = [
            line for line in text.splitlines() if line.split()[:1] in (["PGD"], ["PUD"], ["PMD"], ["PTE"])
        ]
        assert [line.count("▶") for line in levels] == [1, 1, 1, 1]
        assert all(len(line) <= size[0] for line in text.splitlines())

    play(script, size)


def test_step_run_and_end(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("1 fault,")
        await screen.press("n")
        await screen.shows("#2 anonymous", "2 faults,", "held", "STOPPED", "at a page fault", "stopped ·")
        assert tracing(source).given == 2
        assert not ended(source)
        await screen.press("g")
        await screen.shows("#5 anonymous", "5 faults, 0 major", "anonymous 5", "others' 7", "ended")
        await screen.shows("RUNNING")
        await screen.until(lambda: ended(source))
        await screen.press("up", "up")
        await screen.shows("#3 anonymous")

    play(script)


def test_run_can_be_held(play: Play, source: FakeSource) -> None:
    source.trace_lasts = True

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("1 fault,")
        await screen.press("g")
        await screen.shows("5 faults", "running")
        await screen.press("t")
        await screen.shows("ended")
        await screen.until(lambda: ended(source))

    play(script)


def test_a_command(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("F", "k", "i")
        await screen.type("/labs/touch 8M")
        await screen.press("enter")
        await screen.shows("#1 anonymous", "/labs/touch 8M PID 42", "and what it forks")
        assert "trace /labs/touch 8M and children" in source.asked
        await screen.press("i")
        await screen.type("1")
        await screen.press("enter")
        await screen.shows("init PID 1", "#1 anonymous")
        assert source.asked.count("trace 1 and children") == 1
        await screen.press("i", "x", "escape", "2")  # typed, and thought better of
        await screen.shows("2 processes")

    play(script)


def test_links_come_back_to_the_trace(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("1 fault,")
        await screen.press("n")
        await screen.shows("#2 anonymous")
        await screen.press("up", "enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.PAGE, pfn=Pfn(5)))
        await screen.press("escape")
        await screen.shows("#1 anonymous", "held")
        assert not ended(source)
        await screen.press("w")
        await screen.until(
            lambda: screen.app.place == Place(ViewName.WALK, pid=42, va=VirtAddr(0x7F0000403018))
        )
        await screen.press("escape")
        await screen.shows("#1 anonymous")
        await screen.press("escape")  # closes it
        await screen.shows("2 processes")
        await screen.until(lambda: ended(source))

    play(script)


def test_quitting_ends_the_trace(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("held")
        await screen.press("q")
        await screen.until(lambda: not screen.app.is_running)

    play(script)
    assert ended(source)


def test_a_new_trace_ends_the_one_before(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("held")
        first = tracing(source)
        await screen.press("i")
        await screen.type("busybox ls")
        await screen.press("enter")
        await screen.shows("busybox ls PID 42", "#1 anonymous")
        assert first.closed
        assert first is not tracing(source)

    play(script)


def test_the_strip_fills(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("1 fault,", "a cell is 4 KiB")
        lines = screen.text().splitlines()
        at = next(index for index, line in enumerate(lines) if "a cell is 4 KiB" in line)
        await screen.shows("░              █")  # the first page came in, the last is there otherwise
        await screen.press("g")
        await screen.shows("░░░░░          █", "#5")
        assert screen.text().splitlines()[at + 2].index("▲") == lines[at + 2].index("▲") + 4

    play(script)


def test_a_fault_outside_all_vmas(play: Play, source: FakeSource) -> None:
    why = "no mapping there (SEGV_MAPERR)"
    found = replace(
        source.faults[0], kind=FaultKind.SIGSEGV, vma=None, after=source.faults[0].before, frame=None,
        reason=why, frame_before=None, frame_after=None, returned=(),
    )  # fmt: skip
    source.faults = [found]

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("#1 SIGSEGV", why, "no VMA holds 0x7f0000403018", "no frame came in", "no VMA")
        await screen.press("enter")  # leads nowhere
        await screen.shows("#1 SIGSEGV")

    play(script)


def test_what_cannot_be_traced(play: Play, source: FakeSource) -> None:
    source.trace_error = NoSuchTask("no task has PID 42")

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("ended", "no task has PID 42", "nothing was traced")
        source.trace_error = None
        await screen.press("t")
        await screen.shows("#1 anonymous")

    play(script)


def test_a_guest_that_dies_while_traced(play: Play, source: FakeSource) -> None:
    source.trace_lasts = True

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("held")

        def gone(timeout: float | None = None) -> None:
            raise GuestDied("the guest is gone: QEMU was killed by signal 9")

        tracing(source).next = gone  # type: ignore[method-assign]
        await screen.press("n")
        source.die()
        await screen.shows("The guest is gone")
        await screen.press("escape")
        await screen.shows("ended", "#1 anonymous")

    play(script)


def test_saved(play: Play, source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("#1 anonymous")
        await screen.press("e")
        await screen.shows("saved fault-42-1.json", "fault-42-1.svg")
        await screen.press("e")
        await screen.shows("saved fault-42-1.2.json")

    play(script)
    data = json.loads((tmp_path / "fault-42-1.json").read_text())
    assert (data["kind"], data["frame"], data["after"]["pfn"]) == ("anonymous", 5, 5)
    picture = tmp_path / "fault-42-1.svg"
    ElementTree.parse(picture)
    assert "8000000000005067" in picture.read_text()
    assert "https://" not in picture.read_text()


def test_a_folder_that_cannot_be_written(
    play: Play, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("#1 anonymous")
        await screen.press("e")
        await screen.shows("not saved: Permission denied")

    play(script)


def test_the_newest_are_kept(play: Play, source: FakeSource) -> None:
    source.faults = [replace(source.faults[0], number=number) for number in range(1, MOST + 101)]

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("g")
        await screen.shows(f"{MOST + 100} faults", f"the last {MOST} are listed", f"#{MOST + 100} anonymous")
        await screen.press("home")
        await screen.shows("#101 anonymous")

    play(script)


def test_hostile_names(play: Play, source: FakeSource) -> None:
    area = source.faults[0].vma
    assert area is not None
    source.faults = [replace(source.faults[0], place="[red]x+0x1", vma=replace(area, name="[bold]\x1b[2J"))]

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.shows("[red]x+0x1", r"[bold]\x1b[2J")
        assert "\x1b" not in screen.text()

    play(script)


def test_filter_leaves_the_trace_alone(play: Play, source: FakeSource) -> None:
    source.faults[1] = replace(source.faults[1], kind=FaultKind.COW_COPY)

    async def script(screen: Screen) -> None:
        await begin(screen)
        await screen.press("g")
        await screen.shows("5 faults", "ended")
        await screen.press("f")
        await screen.type("cow")
        await screen.press("enter")
        await screen.shows("#2 copy-on-write, copied")
        assert source.asked.count("trace 42") == 1

    play(script)
