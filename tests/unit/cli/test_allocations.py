"""`kmi allocations`: the lines, the sums and the JSON; the records are made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inspector.trace import Allocation, StackFrame
from inspector.units import Pfn, VirtAddr

Kmi = Callable[..., Any]
CAME = ("__alloc_pages+0x1", "vma_alloc_folio+0x2", "do_anonymous_page+0x3", "handle_mm_fault+0x4")
WENT = ("free_unref_page+0x1", "[red]x\x1b[2J+0x2")


def record(number: int, places: tuple[str, ...], **changes: Any) -> Allocation:
    """A page of a worker's."""
    stack = tuple(StackFrame(VirtAddr(0xFFFF_FFFF_8100_0000 + at), place) for at, place in enumerate(places))
    values: dict[str, Any] = {
        "number": number, "freed": False, "pfn": Pfn(0x1000), "order": 0, "gfp": 0xCC0,
        "gfp_names": ("GFP_KERNEL", "__GFP_ZERO"), "pid": 42, "tgid": 42, "comm": "worker", "cpu": 1,
        "stack": stack,
    }  # fmt: skip
    return Allocation(**(values | changes))


RECORDS = [record(1, CAME), record(2, CAME, pfn=Pfn(0x2000), order=3)]
FREED = record(3, WENT, freed=True, gfp=None, gfp_names=())


class FakeTrace:
    """A trace of known records; Ctrl-C ends it where `interrupted`."""

    pid, allocated, freed, stops, others, lost = 42, 9, 1, 7, 2, 0

    def __init__(self, interrupted: bool = False) -> None:
        self.interrupted, self.on = interrupted, False

    def __enter__(self) -> FakeTrace:
        self.on = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.on = False

    def __iter__(self) -> Iterator[Allocation]:
        yield from [*RECORDS, FREED]
        if self.interrupted:
            raise KeyboardInterrupt


@pytest.fixture
def trace(fake: Any) -> FakeTrace:
    """What the guest's trace_allocations() gives; what it was asked is kept."""
    made = FakeTrace()
    fake.asked = []
    fake.trace_allocations = lambda *what, **how: fake.asked.append((what, how)) or made
    return made


def test_lines_and_sums(kmi: Kmi, fake: Any, trace: FakeTrace) -> None:
    out = kmi("allocations", "42", "--pfn", "0x1000", "--count", "3", "--children").out
    assert fake.asked == [((42,), {"pfn": 0x1000, "limit": 3, "children": True})]
    assert "alloc  0x1000             4 KiB  worker (42)           GFP_KERNEL __GFP_ZERO" in out
    assert "alloc  0x2000-0x2007     32 KiB" in out
    assert "do_anonymous_page < handle_mm_fault" in out
    assert "[red]x\\x1b[2J" in out, "the guest's text does nothing to a terminal"
    assert "9 pages allocated, 1 freed (+8); 7 stops of the guest" in out
    assert out.splitlines()[-2].split() == ["9", "do_anonymous_page"]
    assert not trace.on


def test_the_whole_stack(kmi: Kmi, trace: FakeTrace) -> None:
    lines = [line.strip() for line in kmi("allocations", "-v").out.splitlines()]
    assert lines[2:6] == list(CAME)


def test_json(kmi: Kmi, trace: FakeTrace) -> None:
    data = json.loads(kmi("allocations", "--json", "--", "worker", "-x").out)
    first, _, last = data["allocations"]
    assert (first["gfp"], first["gfp_names"], first["order"]) == ("0xcc0", ["GFP_KERNEL", "__GFP_ZERO"], 0)
    assert first["stack"][2]["place"] == "do_anonymous_page+0x3"
    assert (last["freed"], last["gfp"]) == (True, None)
    assert data["summary"] == {"pages_allocated": 9, "pages_freed": 1, "other": 2, "lost": 0, "stops": 7}


def test_ctrl_c_is_a_way_to_end_it(kmi: Kmi, trace: FakeTrace) -> None:
    trace.interrupted = True
    done = kmi("allocations")
    assert done.status == 0
    assert "9 pages allocated" in done.out


def test_not_a_pfn(kmi: Kmi, trace: FakeTrace) -> None:
    done = kmi("allocations", "--pfn", "x")
    assert done.status == 2
    assert done.error == "not a PFN: 'x'; write it in decimal, or in hexadecimal as 0x1f"
