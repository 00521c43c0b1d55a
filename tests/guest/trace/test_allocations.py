"""Pages handed out and taken back, against the task's own pagemap; stacks against /proc/PID/stack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from inspector import Guest
from inspector.errors import NoSuchFrame, UsageError
from inspector.trace import Allocation
from inspector.trace.unwind import Unwinder
from inspector.units import Pfn, VirtAddr

pytestmark = pytest.mark.guest

_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
_PAGES = 64


@pytest.fixture(scope="module", params=["debian-6.1", "debian-6.12"])
def traced_guest(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest with two CPUs."""
    with boot_guest(request.param, "256M", 2) as guest:
        yield guest


def touched(guest: Guest, pid: int) -> list[int]:
    """The frames of the memory that a touch program touched, by its pagemap."""
    log = f"/tmp/spawn-{pid}.log"
    said = guest.run(f"until [ -s {log} ]; do sleep 0.05; done; cat {log}", timeout=60).check().stdout
    first = int(said.split()[1], 16) >> 12
    raw = guest.run(f"dd if=/proc/{pid}/pagemap bs=8 skip={first} count={_PAGES} 2>/dev/null").check()
    entries = np.frombuffer(raw.stdout_bytes, np.uint64)
    assert len(entries) == _PAGES
    assert (entries & np.uint64(_PRESENT) != 0).all()
    return [int(entry) & _FRAME for entry in entries]


def test_every_page_of_a_task_comes_and_goes(traced_guest: Guest) -> None:
    with traced_guest.trace_allocations(f"/labs/touch {_PAGES * 4}K --no-thp") as trace:
        frames = touched(traced_guest, trace.pid)
        traced_guest.run(f"kill {trace.pid}").check()
        records = list(trace)
    assert trace.lost == 0
    assert {record.tgid for record in records} == {trace.pid}
    for pfn in frames:
        mine = [record for record in records if record.pfn == pfn]
        came = [record for record in mine if not record.freed]
        assert came, f"frame {pfn:#x} was never handed out"
        assert came[-1].order == 0
        assert "__GFP_ZERO" in came[-1].gfp_names
        assert any("MOVABLE" in name for name in came[-1].gfp_names)
        check_fault_stack(came[-1])
        gone = [record for record in mine if record.freed]
        assert gone, f"frame {pfn:#x} was never taken back"
        assert gone[-1].number > came[-1].number
        assert any(frame.place.startswith("do_exit+") for frame in gone[-1].stack)
    assert trace.allocated == sum(1 << record.order for record in records if not record.freed)
    assert trace.freed == sum(1 << record.order for record in records if record.freed)


def check_fault_stack(record: Allocation) -> None:
    """From the page allocator through the fault's handlers to the exception's entry."""
    places = [frame.place.split("+")[0] for frame in record.stack]
    handlers = ("handle_mm_fault", "do_user_addr_fault", "exc_page_fault", "asm_exc_page_fault")
    order = [places.index(name) for name in handlers]
    assert order == sorted(order)
    assert places[0].startswith("__alloc_pages")
    assert places[-1] == "asm_exc_page_fault"


def records_of(guest: Guest, command: str) -> list[Allocation]:
    """All that a program allocates and frees, until it says that it is ready and is killed."""
    with guest.trace_allocations(command) as trace:
        log = f"/tmp/spawn-{trace.pid}.log"
        guest.run(f"until [ -s {log} ]; do sleep 0.05; done; kill {trace.pid}", timeout=120).check()
        records = list(trace)
    assert trace.lost == 0
    return records


def test_huge_pages(traced_guest: Guest) -> None:
    records = records_of(traced_guest, "/labs/touch 4M --thp")
    huge = [record.pfn for record in records if record.order == 9 and not record.freed]
    assert len(huge) == 2
    assert {record.pfn for record in records if record.order == 9 and record.freed} == set(huge)


def test_nothing_is_handed_out_twice(traced_guest: Guest) -> None:
    """All that all tasks allocate and free, with kernel stacks, whose pages are asked for together."""
    pid = traced_guest.spawn("while :; do /bin/busybox true; done")
    with traced_guest.trace_allocations(limit=1500) as trace:
        records = list(trace)
    traced_guest.run(f"kill {pid}").check()
    assert trace.lost == 0
    assert [record.number for record in records] == list(range(1, 1501))
    assert any("alloc_pages_bulk" in record.stack[0].place or is_vmalloc(record) for record in records)
    live: set[int] = set()
    for record in records:
        pages = set(range(record.pfn, record.pfn + (1 << record.order)))
        if record.freed:
            live -= pages
        else:
            assert not live & pages, record
            live |= pages


def is_vmalloc(record: Allocation) -> bool:
    """Whether vmalloc() asked."""
    return any("vmalloc" in frame.place for frame in record.stack)


def test_one_frame(traced_guest: Guest) -> None:
    pid = traced_guest.spawn(f"/labs/touch {_PAGES * 4}K --no-thp")
    pfn = Pfn(touched(traced_guest, pid)[7])
    with traced_guest.trace_allocations(pfn=pfn, limit=1) as trace:
        traced_guest.run(f"kill {pid}").check()
        (record,) = list(trace)
    assert record.freed
    assert (record.pfn, record.order, record.tgid, record.comm) == (pfn, 0, pid, "touch")


def test_bad_targets(traced_guest: Guest) -> None:
    with pytest.raises(NoSuchFrame):
        traced_guest.trace_allocations(pfn=Pfn(1 << 40))
    with pytest.raises(UsageError, match="children"):
        traced_guest.trace_allocations(children=True)


def test_stacks_are_the_kernels_own(traced_guest: Guest) -> None:
    """Where each sleeping task sleeps, unwound by us and by the kernel."""
    compared = 0
    with traced_guest.paused():
        unwinder = Unwinder(traced_guest.kernel)
        ours = {}
        for task in traced_guest.tasks():
            if task.state in "SI":
                view = traced_guest.kernel.view("task_struct", task.address)
                frame = traced_guest.kernel.view("inactive_task_frame", view.ptr("thread.sp"))
                above = VirtAddr(frame.address + traced_guest.kernel.types.sizeof("inactive_task_frame"))
                stack = unwinder.stack(frame.ptr("ret_addr"), above, frame.ptr("bp"))
                ours[task.pid] = [found.place for found in stack]
    for pid, places in ours.items():
        said = traced_guest.run(f"cat /proc/{pid}/stack").stdout
        theirs = [re.sub(r"/0x[0-9a-f]+", "", line.split("] ", 1)[1]) for line in said.splitlines()]
        # The kernel leaves the scheduler's own functions out, and a task may have run in between.
        if theirs and theirs == places[len(places) - len(theirs) :]:
            compared += 1
    assert compared > 0.8 * len(ours)
    assert compared > 20
