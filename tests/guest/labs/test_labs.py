"""Every lab passes on stock kernels, and fails with a clear line where its premise is broken."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from inspector import Guest, labs, machine
from inspector.cli import lab_view
from inspector.cli.main import main
from inspector.labs.story import Ending, Event, FrameShown, Question, Seen, Step
from inspector.machine import LocalMachine

pytestmark = pytest.mark.guest

_ALONE = (
    "mkdir -p /sys/fs/cgroup/alone && echo 1 >/sys/fs/cgroup/alone/pids.max && "
    "echo 0 >/sys/fs/cgroup/alone/cgroup.procs"
)
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_ON_TMPFS = "touch disk"
_DEAF = "printf '\\0\\0' | dd of=$d/config bs=1 seek=4 conv=notrunc"  # PCI_COMMAND: it decodes nothing
_BUSY = (  # as long as the shell is there, which becomes the program
    "{ while [ -d /proc/$$ ]; do head -c 400000 /dev/zero; sleep 0.1; done >/dev/shm/grow; "
    "rm /dev/shm/grow; } &"
)

_PAGES = Path(__file__).parents[3] / "docs" / "labs"

StageFor = Callable[[labs.Lab], Guest]

# What breaks each lab's premise, in the shell that becomes the program; and words of what it then says.
BROKEN = {
    "translate": ("ulimit -v 64", "the program is gone"),
    "demand-paging": (f"echo always >{_THP}", "transparent huge pages off"),
    "zero-page": (f"echo always >{_THP}", "transparent huge pages off"),
    "copy-on-write": (_ALONE, "fork: Resource temporarily unavailable"),
    "aliases": (_ALONE, "fork: Resource temporarily unavailable"),
    "page-cache": (_ON_TMPFS, "is the file on a disk?"),
    "swap": (":", "this guest has no swap"),
    "accessed-dirty": (_ON_TMPFS, "is the file on a disk?"),
    "protect": ("mkdir -p /sys/fs/cgroup/lab && echo 0 >/sys/fs/cgroup/lab/cgroup.procs", "has no swap"),
    "stack-growth": ("ulimit -s 256", "is the limit of the stack lower"),
    "segfault": ("echo 0 >/proc/sys/debug/exception-trace", "exception-trace is 0"),
    "huge-pages": (f"echo never >{_THP}", "always madvise [never]"),
    "page-life": (_BUSY, "is something busy in this guest?"),
    "driver-page": (":", "is the program in one of its own?"),
    "dma-buffer": (
        f"{labs.find('dma-buffer').prepare} && echo 0 >/proc/sys/vm/compact_unevictable_allowed",
        "compact_unevictable_allowed is 0",
    ),
    "bounce-buffer": (
        f"{labs.find('bounce-buffer').prepare} && echo 0 >/sys/bus/pci/drivers_autoprobe",
        "/dev/edu: No such file",
    ),
    "cached-uncached": (
        labs.find("cached-uncached").prepare.replace("echo 1 >$d/enable", _DEAF),
        "Its memory decoding may be off",
    ),
    "vast-range": ("echo 0 >/sys/kernel/debug/kprobes/enabled", "pwrite: Input/output error"),
}


def play(lab: labs.Lab, guest: Guest, prepare: str | None = None) -> list[Event]:
    """All that happens; questions get their right answers."""
    events: list[Event] = []
    answer: str | None = None
    with closing(labs.run(lab, guest, prepare)) as story:
        while True:
            try:
                events.append(story.send(answer))
            except StopIteration:
                return events
            last = events[-1]
            answer = last.answer if isinstance(last, Question) else None


def masked(line: str) -> str:
    """A line without its numbers, which are others each time, and without what aligns them."""
    line = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{12,16}\b|[\d,]+\d|\d", "N", line)
    return " ".join(line.split())


def check_page(name: str, events: list[Event]) -> None:
    """What the manual's page quotes of a lab it prints: steps line for line, and no other checks."""
    page = (_PAGES / f"{name}.md").read_text()
    blocks = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    told = [masked(check.claim) for event in events if isinstance(event, Seen) for check in event.checks]
    steps = []
    for step in (event for event in events if isinstance(event, Step)):
        console = Console(file=io.StringIO(), width=80, markup=False, highlight=False, color_system=None)
        console.print(*lab_view.event(step), sep="\n")
        assert isinstance(console.file, io.StringIO)
        steps.append([masked(line) for line in console.file.getvalue().strip().splitlines()])
    for block in blocks:
        for part in block.strip().split("\n\n"):
            lines = [masked(line) for line in part.splitlines()]
            if re.match(r"N\. ", lines[0]):
                assert lines in steps
            for line in lines:
                assert not line.startswith("✓") or any(line.startswith(f"✓ {claim}:") for claim in told), line


@pytest.mark.parametrize("name", [lab.name for lab in labs.LABS])
def test_passes(stage_for: StageFor, name: str) -> None:
    events = play(labs.find(name), stage_for(labs.find(name)))
    assert events[-1] == Ending(True, labs.find(name).answer)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.expect for step in steps), "each step says beforehand what will be seen"
    seen = [event for event in events if isinstance(event, Seen)]
    assert seen
    assert all(event.checks for event in seen)
    # Someone else than our reading of memory has a word in every lab.
    ours = {"the page tables", "struct page", "all of memory"}
    assert {check.witness for event in seen for check in event.checks} - ours
    check_page(name, events)


# What a lab on another kernel says that it lacks; the other labs pass.
LACKS = {("debian-5.10", "driver-page"): "it keeps no types of its modules"}


@pytest.fixture(scope="module", params=["debian-5.10", "debian-7.2"])
def other(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[tuple[str, Guest]]:
    """Kernels that a few labs alone are played on: those whose readers differ the most."""
    with boot_guest(request.param, "512M", 1) as guest:
        yield request.param, guest


@pytest.mark.parametrize("name", ["copy-on-write", "swap", "huge-pages", "page-life", "driver-page"])
def test_on_other_kernels(other: tuple[str, Guest], name: str) -> None:
    kernel, guest = other
    ending = play(labs.find(name), guest)[-1]
    assert isinstance(ending, Ending)
    assert ending.passed == ((kernel, name) not in LACKS), ending.words
    assert LACKS.get((kernel, name), "") in ending.words


@pytest.mark.parametrize("name", [lab.name for lab in labs.LABS])
def test_fails_without_its_premise(stage_for: StageFor, name: str) -> None:
    prepare, words = BROKEN[name]
    ending = play(labs.find(name), stage_for(labs.find(name)), prepare)[-1]
    assert isinstance(ending, Ending)
    assert not ending.passed
    assert words in ending.words


def test_a_wrong_answer_fails(stage_guest: Guest) -> None:
    """The reader has three tries at each number; the last lab by hand checks them all."""
    for wrong, passes in ((2, True), (3, False)):
        tries: dict[str, int] = {}
        answer: str | None = None
        with closing(labs.run(labs.find("translate"), stage_guest)) as story:
            event: Event = next(story)
            while not isinstance(event, Ending):
                answer = None
                if isinstance(event, Question):
                    tries[event.answer] = tries.get(event.answer, 0) + 1
                    answer = event.answer if tries[event.answer] > wrong else "nonsense"
                event = story.send(answer)
        assert event.passed == passes
        assert passes or "Your index" in event.words


def test_a_program_that_is_gone(stage_guest: Guest) -> None:
    """What happens in the guest between two steps is seen: the story is read from it, not canned."""
    with closing(labs.run(labs.find("copy-on-write"), stage_guest)) as story:
        last: Event | None = None
        for event in story:
            if isinstance(event, Step) and event.number == 3:
                (child,) = [task.pid for task in stage_guest.tasks() if task.comm == "child"]
                stage_guest.run(f"kill -9 {child}").check()
            last = event
    assert isinstance(last, Ending)
    assert not last.passed
    assert "child is gone" in last.words


def test_copy_on_write_by_kpagecount(stage_guest: Guest) -> None:
    """Mapcounts that the lab shows are those of the guest's own /proc/kpagecount, step by step."""
    counts = []
    with closing(labs.run(labs.find("copy-on-write"), stage_guest)) as story:
        for event in story:
            if isinstance(event, Seen):
                frames = [e.now for e in event.exhibits if isinstance(e, FrameShown)]
                for frame in frames:
                    read = f"dd if=/proc/kpagecount bs=8 skip={frame.pfn} count=1 2>/dev/null"
                    theirs = int.from_bytes(stage_guest.run(read).stdout_bytes, "little")
                    assert frame.mapcount == theirs
                    counts.append(theirs)
    assert counts == [1, 2, 1, 1, 1]


@pytest.fixture
def held(stage_guest: Guest) -> Iterator[str]:
    """The guest, held open under a name for commands of their own."""
    name = f"labtest-{os.getpid()}"
    assert isinstance(stage_guest.machine, LocalMachine)
    with machine.serve(stage_guest.machine, name):
        yield name


def test_exit_status(held: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "aliases", "--guest", held, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passed"]
    kinds = [event["type"] for event in said["events"]]
    assert kinds == ["step", "seen"] * 4 + ["ending"]
    assert main(["lab", "aliases", "--guest", held, "--prepare", _ALONE]) == 1
    captured = capsys.readouterr()
    assert "failed at step 4" in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_nothing_is_left(stage_for: StageFor) -> None:
    for lab in labs.LABS:
        guest = stage_for(lab)
        with closing(labs.run(lab, guest)) as story:
            next(story)
        assert guest.run("pidof actor; ls -d /tmp/lab.*").stdout == ""
