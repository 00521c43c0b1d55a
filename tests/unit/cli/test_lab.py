"""How `kmi lab` draws a story, asks its reader and ends."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from inspector import labs
from inspector.arch import X86_64_4LEVEL, walk
from inspector.labs.story import (
    BlockShown,
    Check,
    Ending,
    EntryShown,
    Frame,
    FrameShown,
    Lab,
    Look,
    Number,
    NumbersShown,
    PagesShown,
    Question,
    QuoteShown,
    Seen,
    Step,
)
from inspector.memory import MappedRam, RamBlock
from inspector.units import Pfn, PhysAddr, VirtAddr

_VA = VirtAddr(0x2000)


def look(entry: int, meaning: str = "") -> Look:
    """A look at an address whose PTE is this."""
    ram = bytearray(0x5000)
    for table, index, value in ((0, 0, 0x1067), (0x1000, 0, 0x2067), (0x2000, 0, 0x3067), (0x3000, 2, entry)):
        ram[table + 8 * index : table + 8 * index + 8] = value.to_bytes(8, "little")
    memory = MappedRam(ram, [RamBlock(PhysAddr(0), len(ram), 0)])
    return Look("program", walk(memory, X86_64_4LEVEL, PhysAddr(0), _VA), meaning, None)


def frame(mapcount: int) -> Frame:
    return Frame(Pfn(0x4), PhysAddr(0x4000), "anon: \x1b[2Jevil (7)", 1, mapcount, ("lru",), 0)


EVENTS: list[Any] = [
    Step("Write", "The program writes.", ("page[0] = 7;",), ("RW comes.",), 1),
    Seen(
        (
            EntryShown(look(0x8000000000004067), look(0x8000000000004025)),
            EntryShown(look(0, "empty"), None),
            FrameShown("program", frame(2), frame(1)),
            NumbersShown("meminfo", (Number("AnonPages", 1234, "KiB", 1230),)),
            PagesShown(_VA, "#.s"),
            BlockShown("before", Pfn(0x1000), "6" * 64 * 3 + "@" + "c" * 63),
            QuoteShown("the kernel's log", ("seg\x1b[31mfault",)),
        ),
        (Check("mapcount of the frame", True, "2", "2", "struct page"),),
    ),
    Ending(True, "So it is."),
]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, kmi: Any) -> Any:
    """Run `kmi lab` with a story by hand."""

    def start(events: list[Any], *arguments: str, stdin: str = "") -> Any:
        def run(lab: Lab, guest: Any, prepare: str | None) -> Any:
            for event in events:
                answer = yield event
                if isinstance(event, Question):
                    yield Ending(answer == event.answer, f"you said {answer}")
                    return

        monkeypatch.setattr(labs, "run", run)
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        return kmi("lab", "zero-page", *arguments)

    return start


def test_what_is_drawn(play: Any) -> None:
    done = play(EVENTS)
    assert done.status == 0
    out = done.out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert "1. Write" in lines
    assert "  was  8000000000004025  P US A NX       page 0x4000" in lines
    assert "  now  8000000000004067  P RW US A D NX  page 0x4000" in lines
    assert "+RW +D" in out
    assert "not present  empty" in out
    assert "mapcount 1→2" in out
    assert "1,234  KiB  was 1,230, +4" in out
    assert "  #.s" in lines
    assert "before, 256 frames from 0x1000  0-a free, by order  c CPU's list  # ours  x not" in lines
    assert lines[lines.index("  " + "6" * 64 + " x3") + 1] == "  @" + "c" * 63
    assert "✓ mapcount of the frame: 2  (struct page)" in lines
    assert max(map(len, lines)) <= 80


def test_a_failure_is_exit_1_and_one_line(play: Any) -> None:
    bad = Check("It holds", False, "1", "2", "struct page", "is it on?")
    events = [EVENTS[0], Seen((), (bad,)), Ending(False, f"step 1: {bad.complaint}")]
    captured = play(events)
    assert captured.status == 1
    assert captured.err.splitlines()[-1] == (
        "kmi: lab zero-page failed at step 1: It holds: expected 1, found 2 (struct page); is it on?"
    )
    assert "✗ It holds: expected 1, found 2" in captured.out
    captured = play(events, "--json")
    assert captured.status == 1
    assert not json.loads(captured.out)["passed"]


def test_json(play: Any) -> None:
    said = json.loads(play(EVENTS, "--json").out)
    assert (said["lab"], said["passed"]) == ("zero-page", True)
    step, seen, ending = said["events"]
    assert step["title"] == "Write"
    assert ending["words"] == "So it is."
    entry = seen["exhibits"][0]
    assert entry["type"] == "entry"
    assert entry["now"]["walk"]["steps"][-1]["entry"] == "0x8000000000004067"
    assert entry["before"]["walk"]["steps"][-1]["flags"] == ["P", "US", "A", "NX"]
    assert seen["exhibits"][2]["now"]["phys"] == "0x4000"
    assert seen["checks"][0]["witness"] == "struct page"


def test_pictures(play: Any, tmp_path: Path) -> None:
    assert play(EVENTS, "--svg", str(tmp_path / "new")).status == 0
    (picture,) = (tmp_path / "new").iterdir()
    assert picture.name == "lab-zero-page-1.svg"
    text = picture.read_text()
    ElementTree.fromstring(text)
    assert "8000000000004067" in text.replace("&#160;", " ")
    assert "http" not in text.replace("http://www.w3.org", "")
    (tmp_path / "file").write_text("")
    done = play(EVENTS, "--svg", str(tmp_path / "file" / "x"))
    assert done.status == 2
    assert "cannot write" in done.err


def test_pause_waits_at_each_event(play: Any) -> None:
    assert play(EVENTS, "--pause", stdin="\n\n").out.count("-- Enter") == 2


def test_the_reader_is_asked(play: Any) -> None:
    events = [Question("Which index?", "bits 47 to 39", "5")]
    right = play(events, stdin="5\n")
    assert right.status == 0
    assert "Which index?" in right.out
    assert play(events, stdin="6\n").status == 1
    assert play(events, "--answers").status == 0
    nobody = play(events, stdin="")
    assert nobody.status == 2
    assert "--answers" in nobody.err


def test_list(kmi: Any) -> None:
    out = kmi("lab", "--list").out
    assert all(lab.name in out and lab.question[:20] in out for lab in labs.LABS)
    names = [row["name"] for row in json.loads(kmi("lab", "--list", "--json").out)]
    assert names == [lab.name for lab in labs.LABS]


@pytest.mark.parametrize("arguments", [["lab"], ["lab", "nonsense"]])
def test_what_makes_no_sense(kmi: Any, arguments: list[str]) -> None:
    done = kmi(*arguments)
    assert done.status == 2
    assert "--list" in done.err
