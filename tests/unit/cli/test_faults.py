"""`kmi faults`: what may be asked, the lines, the drawing, the JSON; the faults are made by hand."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.text import Text

from inspector.arch import X86_64_4LEVEL, walk
from inspector.errors import GuestDied
from inspector.kernel.vmas import Vma
from inspector.memory import MappedRam, RamBlock
from inspector.trace import ErrorCode, Fault, FaultKind, FrameState
from inspector.trace.kinds import Entry, Evidence
from inspector.units import Pfn, PhysAddr, VirtAddr

Kmi = Callable[..., Any]
VA = 0x7F00_0000_3018
UPPER = ((0x17F0, 0x2067), (0x2000, 0x3067), (0x3000, 0x4067))


def walked(entry: int) -> Any:
    ram = bytearray(0x10000)
    for address, value in (*UPPER, (0x4018, entry)):
        ram[address : address + 8] = value.to_bytes(8, "little")
    memory = MappedRam(ram, [RamBlock(PhysAddr(0), len(ram), 0)])
    return walk(memory, X86_64_4LEVEL, PhysAddr(0x1000), VirtAddr(VA))


def fault(**changes: Any) -> Fault:
    """A first write to a page of the heap: frame 5 came in."""
    values: dict[str, Any] = {
        "number": 1, "pid": 42, "tgid": 42, "comm": "worker", "cpu": 0, "address": VirtAddr(VA),
        "error": ErrorCode.U | ErrorCode.W, "user": True, "ip": VirtAddr(0x401234),
        "place": "/bin/worker+0x1234",
        "vma": Vma(VirtAddr(VA & ~0xFFF), VirtAddr(0x7F00_0001_0000), 3, 0, (0, 0), 0, "[heap]", VirtAddr(0)),
        "before": walked(0), "after": walked(0x8000_0000_0000_5067), "returned": (frozenset(),),
        "frame": Pfn(5), "frame_before": FrameState(Pfn(5), "free", 0, 0),
        "frame_after": FrameState(Pfn(5), "anonymous", 2, 1),
        "kind": FaultKind.ANONYMOUS, "reason": "", "minor": 1, "major": 0,
        "evidence": Evidence(write=True, before=Entry(), after=Entry(pfn=5, size=4096, writable=True)),
    }  # fmt: skip
    return Fault(**(values | changes))


SEGV = fault(
    number=2, kind=FaultKind.SIGSEGV, reason="no mapping there (SEGV_MAPERR)", vma=None, error=ErrorCode.U,
    after=walked(0), frame=None, frame_before=None, frame_after=None, returned=(), evidence=Evidence(),
)  # fmt: skip
SWAPPED = fault(
    number=3, kind=FaultKind.SWAP_IN, error=None, user=False, place="faultin_page+0x9c",
    before=walked(0x1400), returned=(frozenset({"RETRY", "MAJOR"}), frozenset({"MAJOR"})), minor=0, major=1,
    evidence=Evidence(write=False, before=Entry(use="swap"), after=Entry(pfn=5)),
)  # fmt: skip


class FakeTrace:
    """A trace of known faults that may end in an accident."""

    def __init__(self, faults: list[Fault], end: BaseException | None = None) -> None:
        self._faults = faults
        self._end = end
        self.asked: dict[str, Any] = {}
        self.on = False
        self.pid = 42
        self.counts = Counter(each.kind for each in faults)
        self.minor = sum(each.minor for each in faults)
        self.major = sum(each.major for each in faults)
        self.stops, self.passed, self.others, self.lost = 12, 4, 5, 6

    def __enter__(self) -> FakeTrace:
        self.on = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.on = False

    def __iter__(self) -> Iterator[Fault]:
        yield from self._faults
        if self._end:
            raise self._end


@pytest.fixture
def trace(fake: Any) -> FakeTrace:
    """What the guest's trace_faults() gives; `asked` is what it was called with."""
    made = FakeTrace([fault(), SEGV, SWAPPED])

    def start(target: int | str, **how: Any) -> FakeTrace:
        made.asked = {"target": target} | how
        return made

    fake.trace_faults = start
    return made


NO_FILTER = {"kinds": None, "start": None, "end": None, "limit": None, "children": False}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["42"], {"target": 42}),
        (["--", "/labs/touch", "8M", "--no-thp"], {"target": "/labs/touch 8M --no-thp"}),
        (["--", "echo", "a b"], {"target": "echo 'a b'"}),
        (["--", "touch x"], {"target": "touch x"}),
        (["42", "--kind", "cow-copy", "--kind", "THP"], {"kinds": [FaultKind.COW_COPY, FaultKind.THP]}),
        (["42", "--range", "1000-0x3000"], {"start": 0x1000, "end": 0x3000}),
        (["42", "--count", "7", "--children"], {"limit": 7, "children": True}),
        (["spawned", "--spawn", "/labs/burn"], {"target": 1}),
    ],
)  # fmt: skip
def test_what_is_asked(kmi: Kmi, trace: FakeTrace, arguments: list[str], asked: dict[str, Any]) -> None:
    assert kmi("faults", *arguments).status == 0
    assert trace.asked == NO_FILTER | {"target": 42} | asked
    assert not trace.on


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a PID, or a command behind --"),
        (["42", "43"], "a PID stands alone: leave out 43"),
        (["42", "--kind", "page"], "no kind of page fault is 'page'; there are anonymous,"),
        (["42", "--range", "1000"], "not a range: '1000'"),
        (["42", "--range", "2000-1000"], "its end comes first"),
        (["42", "--range", "x-1000"], "not an address: 'x'"),
        (["spawned"], "nothing was spawned"),
    ],
)
def test_bad_questions(kmi: Kmi, trace: FakeTrace, arguments: list[str], says: str) -> None:
    done = kmi("faults", *arguments)
    assert done.status == 2
    assert says in done.error


def test_lines(kmi: Kmi, trace: FakeTrace) -> None:
    done = kmi("faults", "42")
    lines = done.out.splitlines()
    assert lines[0].split() == ["#", "Kind", "Address", "Access", "Frame", "VM_FAULT_", "By", "In"]
    assert lines[1].split() == [
        "1", "anonymous", "0x7f0000003018", "w", "user", "-", "→", "0x5", "0", "/bin/worker+0x1234", "[heap]"
    ]  # fmt: skip
    assert lines[2].split()[:6] == ["2", "sigsegv", "0x7f0000003018", "r", "user", "-"]
    assert lines[2].endswith("no VMA  no mapping there (SEGV_MAPERR)")
    assert lines[3].split()[1:9] == [
        "swap_in",
        "0x7f0000003018",
        "r",
        "asked",
        "swap",
        "→",
        "0x5",
        "MAJOR|RETRY,",
    ]
    assert "kmi: tracing the page faults of PID 42; Ctrl-C ends it" in done.err


def test_summary(kmi: Kmi, trace: FakeTrace) -> None:
    out = kmi("faults", "42").out
    assert "3 page faults of PID 42  min_flt +2, maj_flt +1; 12 stops of the guest" in out
    assert "swap_in        1  " in out
    assert "Not in this list: filtered out 4, ran through of other tasks 5, lost 6" in out


def test_a_narrow_terminal_gets_two_lines(
    kmi: Kmi, trace: FakeTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = Text.from_ansi(kmi("faults", "42").out).plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].strip() == "by /bin/worker+0x1234 in [heap], returned 0"


def test_drawn(kmi: Kmi, trace: FakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    lines = kmi("faults", "42", "-v").out.splitlines()
    assert [line.split()[0] for line in lines[3:7]] == ["PGD[254]", "PUD[0]", "PMD[0]", "PTE[3]"]
    assert "→" not in lines[5]
    assert lines[6].split() == [
        "PTE[3]", "0x4018", "0" * 16, "empty", "→", "8000000000005067", "P", "RW", "US", "A", "D", "NX"
    ]  # fmt: skip
    assert lines[7].strip() == "frame 0x5: free → anonymous, refcount 2, mapcount 1"


def test_json(kmi: Kmi, trace: FakeTrace) -> None:
    done = kmi("faults", "42", "--json")
    data = json.loads(done.out)
    assert len(done.out.splitlines()) == 5, "a fault a line"
    first, second, third = data["faults"]
    assert (data["pid"], first["kind"], first["address"]) == (42, "anonymous", hex(VA))
    assert (first["access"], first["mode"], first["error"]) == ("write", "user", ["W", "U"])
    assert (first["ip"], first["place"]) == ("0x401234", "/bin/worker+0x1234")
    assert first["vma"] == {
        "start": "0x7f0000003000", "end": "0x7f0000010000", "permissions": "rw-p",
        "flag_names": ["READ", "WRITE"], "name": "[heap]",
    }  # fmt: skip
    assert (first["frame"], first["returned"], first["reason"]) == (5, [[]], None)
    assert first["frame_before"] == {"use": "free", "refcount": 0, "mapcount": 0}
    assert first["frame_after"] == {"use": "anonymous", "refcount": 2, "mapcount": 1}
    assert first["before"]["fault"]["entry_address"] == "0x4018"
    assert (first["after"]["pfn"], first["after"]["steps"][3]["entry"]) == (5, "0x8000000000005067")
    assert (second["vma"], second["frame"], second["frame_before"], second["returned"]) == (
        None,
        None,
        None,
        [],
    )
    assert (third["error"], third["mode"], third["held_before"], third["held_after"]) == (
        None,
        "asked",
        "swap",
        None,
    )
    assert third["returned"] == [["MAJOR", "RETRY"], ["MAJOR"]]
    assert data["summary"] == {
        "kinds": {"anonymous": 1, "sigsegv": 1, "swap_in": 1}, "minor": 2, "major": 1, "filtered": 4,
        "other_tasks": 5, "lost": 6, "stops": 12,
    }  # fmt: skip


def test_ctrl_c_ends_the_trace_and_not_the_answer(kmi: Kmi, fake: Any) -> None:
    trace = FakeTrace([fault()], KeyboardInterrupt())
    fake.trace_faults = lambda target, **how: trace
    done = kmi("faults", "42", "--json")
    assert done.status == 0
    assert json.loads(done.out)["summary"]["kinds"] == {"anonymous": 1}
    assert not trace.on
    assert fake.closed == 1


def test_a_guest_that_dies_leaves_whole_json(kmi: Kmi, fake: Any) -> None:
    fake.trace_faults = lambda target, **how: FakeTrace([fault()], GuestDied("the guest is gone"))
    done = kmi("faults", "42", "--json")
    assert done.status == 2
    assert done.err.splitlines()[-1] == "kmi: the guest is gone"
    assert len(json.loads(done.out)["faults"]) == 1


def test_svg(kmi: Kmi, trace: FakeTrace, tmp_path: Path) -> None:
    file = tmp_path / "faults.svg"
    assert kmi("faults", "42", "--svg", str(file)).status == 0
    ElementTree.parse(file)  # well-formed
    picture = file.read_text().replace("&#160;", " ")
    for text in ("8000000000005067", "swap_in", "no mapping there (SEGV_MAPERR)", "min_flt +2"):
        assert text in picture
    assert "https://" not in picture


def test_svg_that_cannot_be_written(kmi: Kmi, trace: FakeTrace, tmp_path: Path) -> None:
    done = kmi("faults", "42", "--svg", str(tmp_path / "none" / "faults.svg"))
    assert done.status == 2
    assert "faults.svg: No such file or directory" in done.err


def test_hostile_names_stay_text(kmi: Kmi, fake: Any) -> None:
    area = Vma(VirtAddr(0), VirtAddr(4096), 3, 0, (0, 0), 0, "[red]\x1b[2J", VirtAddr(0))
    fake.trace_faults = lambda target, **how: FakeTrace([fault(vma=area)])
    out = kmi("faults", "42").out
    assert r"[red]\x1b[2J" in out
    assert "\x1b" not in out
