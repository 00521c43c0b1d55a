"""A program with a known script of accesses: the trace tells exactly that list, on stock kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from inspector import Guest
from inspector.errors import NoSuchTask, UsageError
from inspector.trace import ErrorCode, Fault, FaultKind
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest

_RUNS = 10
_HOLDS = 3
_PAGE = 4096
_ALL_KINDS = "/labs/faults /tmp --swap --disk /dev/zram1"
# The agent makes that file by itself: by then the shell that woke the task is gone, and its memory free.
_AWAIT_GO = "until [ -e /tmp/go ]; do sleep 0.1; done"
# qemu_images/programs/faults.c: the window that is the script's alone; pagemap: Documentation/admin-guide/mm.
_WINDOW, _WINDOW_END = 0x1000_0000_0000, 0x1001_0000_0000
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_ACCESS = {"read": ErrorCode(0), "write": ErrorCode.W, "exec": ErrorCode.I}


@dataclass(frozen=True)
class Scripted:
    """A line of what the program said it did."""

    kind: str
    mode: str
    access: str
    address: int
    pagemap: int


@pytest.fixture(
    scope="module",
    params=[(k, c) for k in ("debian-6.1", "debian-6.12") for c in (1, 2)],
    ids=lambda which: f"{which[0]}-{which[1]}cpu",
)
def traced_guest(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest with swap and a disk, on one CPU or two."""
    kernel, cpus = request.param
    with boot_guest(kernel, "512M", cpus, cmdline="vsyscall=xonly") as guest:
        guest.run("echo 64M >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0").check()
        guest.run("cat /sys/class/zram-control/hot_add && echo 8M >/sys/block/zram1/disksize").check()
        yield guest


def script(guest: Guest, pid: int) -> tuple[list[Scripted], int, int]:
    """What the program said: its accesses, and the kernel's counts of its minor and major faults."""
    log = f"/tmp/spawn-{pid}.log"
    done = f"until grep -q counted {log}; do sleep 0.05; done; cat {log}"
    lines = [line.split() for line in guest.run(done, timeout=60).check().stdout.splitlines()]
    accesses = [
        Scripted(line[0], line[1], line[2], int(line[3], 16), int(line[4], 16)) for line in lines[:-1]
    ]
    return accesses, int(lines[-1][1]), int(lines[-1][2])


def mode(fault: Fault) -> str:
    """Who made the access, as the program says it."""
    return "asked" if fault.error is None else "user" if fault.user else "kernel"


def in_script(fault: Fault) -> bool:
    """Whether the address is one that only the script touches."""
    return _WINDOW <= fault.address < _WINDOW_END or bool(fault.address >> 47)


def test_each_kind_is_told(traced_guest: Guest) -> None:
    for _ in range(_RUNS):
        traced_guest.run("rm -f /tmp/go").check()
        with traced_guest.trace_faults(f"sh -c '{_AWAIT_GO}; exec {_ALL_KINDS}'") as trace:
            traced_guest.put(b"", "/tmp/go")
            faults = list(trace)
        said, minor, major = script(traced_guest, trace.pid)
        ours = [fault for fault in faults if in_script(fault)]
        assert [(fault.kind.name, mode(fault), fault.address) for fault in ours] == [
            (access.kind, access.mode, access.address) for access in said
        ]
        assert len({access.kind for access in said}) >= 19
        assert trace.lost == 0
        check_error_codes(ours, said)
        check_frames(ours, said)
        # The program's counts go up to its last two accesses.
        first, end = faults.index(ours[0]), faults.index(ours[-2])
        assert sum(fault.minor for fault in faults[first:end]) == minor
        assert sum(fault.major for fault in faults[first:end]) == major
        assert sum(trace.counts.values()) == len(faults)


def check_error_codes(faults: list[Fault], said: list[Scripted]) -> None:
    """Bits W, U and I of each #PF are those of the access; P is that of the walk before."""
    for fault, access in zip(faults, said, strict=True):
        if fault.error is not None:
            user = ErrorCode.U if access.mode == "user" else ErrorCode(0)
            present = (
                ErrorCode.P if fault.before.phys is not None and not fault.address >> 47 else ErrorCode(0)
            )
            assert fault.error == _ACCESS[access.access] | user | present, (fault, access)


def check_frames(faults: list[Fault], said: list[Scripted]) -> None:
    """The frame that the walk after finds is the one that the program then read in its pagemap.

    No other task runs meanwhile: nobody maps a frame that is to be put in, though it may wait in a batch
    of pages of a CPU's, to be freed when that is emptied. But for one fault, before COW_REUSE: the child
    that was just forked copies pages too then, and frees those that its parent has copied already.
    """
    frames = 0
    beside_a_child = [access.kind for access in said].index("COW_REUSE") - 1
    for number, (fault, access) in enumerate(zip(faults, said, strict=True)):
        if access.pagemap & _PRESENT and fault.kind not in (FaultKind.SIGSEGV, FaultKind.SIGBUS):
            assert fault.after.pfn == access.pagemap & _FRAME, (fault, access)
            frames += 1
            if fault.frame is not None:
                assert fault.frame_after is not None
                assert fault.frame_after.pfn == fault.frame
                assert fault.frame_after.use != "free"
        if fault.kind in (FaultKind.ANONYMOUS, FaultKind.COW_COPY, FaultKind.SWAP_IN, FaultKind.STACK_GROWTH):
            assert fault.frame_before is not None
            mapped = fault.frame_before.use != "free" and bool(fault.frame_before.mapcount)
            assert not mapped or number == beside_a_child, fault
            assert fault.frame_after is not None
            assert fault.frame_after.use == "anonymous"
    assert frames > 20


def test_who_faulted_is_told(traced_guest: Guest) -> None:
    with traced_guest.trace_faults(
        "/labs/faults /tmp", start=VirtAddr(_WINDOW), end=VirtAddr(_WINDOW_END)
    ) as trace:
        faults = list(trace)
    assert faults
    assert all(in_script(fault) for fault in faults)
    assert trace.passed > 10
    said, _, _ = script(traced_guest, trace.pid)
    for fault, access in zip(faults, [a for a in said if not a.address >> 47], strict=True):
        assert (fault.pid, fault.comm) == (trace.pid, "faults")
        assert fault.vma is None or fault.vma.start <= fault.address < fault.vma.end
        if access.mode == "user" and access.access != "exec":
            assert fault.place.startswith("/labs/faults+0x")
        elif access.mode == "kernel":  # the very instruction of copy_to_user() and the like
            assert traced_guest.symbol_at(fault.ip) is not None
            assert "user" in fault.place or "rep_" in fault.place


def test_filters(traced_guest: Guest) -> None:
    wanted = [FaultKind.ZERO_PAGE, FaultKind.SIGSEGV]
    with traced_guest.trace_faults("/labs/faults /tmp", kinds=wanted, limit=3) as trace:
        faults = list(trace)
    assert [fault.kind for fault in faults] == [FaultKind.ZERO_PAGE] * 2 + [FaultKind.SIGSEGV]
    assert trace.counts == {FaultKind.ZERO_PAGE: 2, FaultKind.SIGSEGV: 1}
    assert not trace.on


def test_step_holds_the_guest(traced_guest: Guest) -> None:
    with traced_guest.trace_faults(
        "/labs/touch 1M --no-thp", kinds=[FaultKind.ANONYMOUS], step=True
    ) as trace:
        for number in range(1, 6):
            fault = trace.next()
            assert fault is not None
            # It stands at this very fault: its frame is mapped, and none is told further.
            task = traced_guest.task(trace.pid)
            assert task.walk(fault.address).phys == fault.after.phys
            assert trace.recorded == number
    assert traced_guest.run("echo on").stdout == "on\n"


def test_others_run_through(traced_guest: Guest) -> None:
    """Tasks that fault at the same time, in processes of their own, do not get into the record."""
    busy = traced_guest.spawn("while :; do /bin/busybox true; done")
    try:
        with traced_guest.trace_faults("/labs/race 1 64") as trace:
            faults = list(trace)
    finally:
        traced_guest.run(f"kill {busy}")
    own = int(traced_guest.run(f"cat /tmp/spawn-{trace.pid}.log").check().stdout.split()[0], 16)
    assert {fault.tgid for fault in faults} == {trace.pid}
    touched = [fault.address for fault in faults if own <= fault.address < own + 64 * _PAGE]
    assert touched == [own + i * _PAGE for i in range(64)]
    assert trace.others > 0
    assert trace.lost == 0


def test_threads_that_fault_at_the_same_time(traced_guest: Guest) -> None:
    """None is lost and none is told twice, on however many CPUs they fault."""
    threads, pages = 3, 24
    with traced_guest.trace_faults(f"/labs/race {threads} {pages}") as trace:
        faults = list(trace)
    said = traced_guest.run(f"cat /tmp/spawn-{trace.pid}.log").check().stdout.split()
    own, common, minor, major = int(said[0], 16), int(said[1], 16), int(said[2]), int(said[3])
    assert trace.lost == 0
    in_own = [fault for fault in faults if own <= fault.address < own + threads * pages * _PAGE]
    assert sorted(fault.address for fault in in_own) == [own + i * _PAGE for i in range(threads * pages)]
    by_thread = {fault.pid for fault in in_own}
    assert len(by_thread) == threads
    for pid in by_thread:
        mine = [fault.address for fault in in_own if fault.pid == pid]
        assert mine == [mine[0] + i * _PAGE for i in range(pages)]
    in_common = [fault for fault in faults if common <= fault.address < common + pages * _PAGE]
    assert {fault.address for fault in in_common} == {common + i * _PAGE for i in range(pages)}
    told = in_own + in_common
    assert (sum(fault.minor for fault in told), sum(fault.major for fault in told)) == (minor, major)


def test_children(traced_guest: Guest) -> None:
    with traced_guest.trace_faults(
        "/labs/fork 64K --no-thp", children=True, kinds=[FaultKind.COW_COPY]
    ) as trace:
        seen = set()
        for fault in trace:
            seen.add(fault.tgid)
            if len(seen) == 2:
                break
    traced_guest.run(f"kill {trace.pid}")
    assert trace.pid in seen


def test_no_breakpoint_stays(traced_guest: Guest) -> None:
    with traced_guest.trace_faults("/labs/touch 8M --no-thp", limit=5) as trace:
        list(trace)
    # The task faults on: with a breakpoint left nobody would let it run.
    said = f"/tmp/spawn-{trace.pid}.log"
    traced_guest.run(f"until [ -s {said} ]; do sleep 0.05; done; kill {trace.pid}", timeout=60).check()
    assert traced_guest.running


def test_a_pause_waits_and_ends(traced_guest: Guest) -> None:
    """Pauses and readings of others meet a traced guest as they meet any other."""
    pid = traced_guest.spawn("while :; do /bin/busybox true; done")
    try:
        with traced_guest.trace_faults(pid, limit=40) as trace:
            done = threading.Event()
            for _ in range(10):
                with traced_guest.paused():
                    before = traced_guest.task(pid).mm
                    assert before is not None
            traced_guest.pause()
            assert traced_guest.state().kind == "paused"
            stops = trace.stops
            assert not done.wait(0.3)
            assert trace.stops <= stops + 1
            traced_guest.resume()
            assert len(list(trace)) == 40
    finally:
        traced_guest.run(f"kill {pid}")


def test_holds_that_a_trace_hears_of_late(traced_guest: Guest) -> None:
    """What each of them told waits unread; that it is read at last must not stop the guest."""
    loop = traced_guest.machine.stop_loop()
    try:
        assert loop.go(1)
        for _ in range(_HOLDS):
            with traced_guest.paused():
                pass
        for _ in range(_HOLDS):
            assert loop.wait(5) is None
        assert traced_guest.run("echo on").stdout == "on\n"
    finally:
        loop.close()


def test_a_traced_guest_runs_on_once_it_was_saved(traced_guest: Guest) -> None:
    loop = traced_guest.machine.stop_loop()
    try:
        assert loop.go(1)
        traced_guest.mark()
        assert traced_guest.run("echo on").stdout == "on\n"
    finally:
        loop.close()


def test_bad_targets(traced_guest: Guest) -> None:
    with pytest.raises(NoSuchTask), traced_guest.trace_faults(99999):
        pass
    with pytest.raises(UsageError, match="kernel thread"), traced_guest.trace_faults(2):
        pass
    with pytest.raises(UsageError, match="no program /nowhere"), traced_guest.trace_faults("/nowhere 4K"):
        pass
    with pytest.raises(UsageError, match="limit"):
        traced_guest.trace_faults(1, limit=0)
    assert traced_guest.running
