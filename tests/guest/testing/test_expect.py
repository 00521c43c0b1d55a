"""Each expectation holds where the guest's own word says so, and where it does not its message helps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from inspector import Guest, labs
from inspector.errors import UsageError
from inspector.labs.actor import Actor
from inspector.labs.stage import Stage
from inspector.testing import Unexpected, expect
from inspector.trace import FaultKind
from inspector.units import MIB, Pfn, VirtAddr

pytestmark = pytest.mark.guest

_PAGES = 8
_SIZE = _PAGES * 4096


@pytest.fixture
def actor(guest: Guest) -> Iterator[Actor]:
    """A program that does what it is told, and reads its own /proc."""
    with Stage(guest, labs.find("copy-on-write")) as stage:
        yield stage.actor


@pytest.fixture
def page(guest: Guest, actor: Actor) -> VirtAddr:
    """The first of some pages of the program's that are present, and that no CPU still holds for the LRU."""
    va = actor.map("memory", _PAGES)
    actor.touch(va, _PAGES)
    guest.run("echo 1 >/proc/sys/vm/compact_memory").check()  # C: lru_add_drain_all(), in compact_nodes()
    return va


def frame(actor: Actor, va: VirtAddr) -> Pfn:
    """The frame, by the program's own pagemap."""
    found = actor.pagemap(va).pfn
    assert found is not None
    return found


def complaint(act: Callable[[], object]) -> str:
    """What an expectation says that does not hold."""
    with pytest.raises(Unexpected) as raised:
        act()
    return str(raised.value)


def lines(text: str, *words: str) -> bool:
    """Whether one line of a text has these words, in this order."""
    return any(re.search(".*".join(map(re.escape, words)), line) for line in text.splitlines())


def test_page(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    pfn = frame(actor, page)
    found = expect.page(
        guest, pfn, owner="anon", label="actor (*)", flags="lru uptodate !reserved", refcount=1, mapcount=1,
        order=0, migratetype="Movable", zone="DMA32", charge="/",
    )  # fmt: skip
    assert found.pfn == pfn
    said = complaint(
        lambda: expect.page(guest, pfn, owner="page cache", flags="!lru uptodate", refcount=7, charge="")
    )
    assert said.startswith(f"PFN {pfn:#x}: not as expected")
    assert lines(said, "owner", "expected page cache", "found anon")
    assert lines(said, "flag lru", "expected clear", "found set")
    assert lines(said, "refcount", "expected 7", "found 1")
    assert lines(said, "charged to", "expected nobody", "found /")
    assert "flag uptodate" not in said  # that one holds
    assert lines(said, f"{page:#x}", f"actor ({actor.pid})")  # who maps it
    with pytest.raises(UsageError, match="did you mean 'anon'"):
        expect.page(guest, pfn, owner="anonn")
    with pytest.raises(UsageError, match="no page flag 'drity'; did you mean 'dirty'"):
        expect.page(guest, pfn, flags="!drity")


def test_mapping(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    task = guest.task(actor.pid)
    expect.mapping(task, page, frame=frame(actor, page), size=4096, rights="rw-", user=True, cache="WB")
    expect.mapping(guest, guest.symbol("_stext"), rights="r-x", user=False)
    said = complaint(lambda: expect.mapping(task, page, size="2M", rights="r-x", user=False, cache="UC-"))
    assert lines(said, "page size", "expected 2 MiB", "found 4 KiB")
    assert lines(said, "rights", "expected r-x", "found rw-")
    assert lines(said, "reach", "expected kernel only", "found user")
    assert lines(said, "memory type", "expected UC-", "found WB")
    assert lines(said, "PTE [", "P RW US")  # the walk
    assert lines(complaint(lambda: expect.mapping(task, VirtAddr(4096))), "expected present")
    with pytest.raises(UsageError, match=r"no memory type 'WCC': this guest's PAT has WB, .*UC"):
        expect.mapping(task, page, cache="WCC")


def test_not_mapped(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    task = guest.task(actor.pid)
    expect.not_mapped(task, VirtAddr(4096))
    assert lines(complaint(lambda: expect.not_mapped(task, page)), "expected none")
    actor.unmap(page, _PAGES)
    expect.not_mapped(task, page)


def test_resident(guest: Guest, actor: Actor) -> None:
    va = actor.map("half", _PAGES)
    actor.touch(va, _PAGES // 2)
    task = guest.task(actor.pid)
    assert expect.resident(task, va, pages=actor.smaps(va)["Rss"] // 4, swapped=0).start == va
    said = complaint(lambda: expect.resident(task, va))
    assert lines(said, "pages present", f"expected {_PAGES}", f"found {_PAGES // 2}")
    assert lines(said, f"{va:#x}-{va + _SIZE:#x}", "32 KiB")
    assert lines(complaint(lambda: expect.resident(task, VirtAddr(4096))), "a VMA", "found none")


def test_huge(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    va = actor.map("huge", 512, "thp")
    actor.write(va)
    task = guest.task(actor.pid)
    assert actor.smaps(va)["AnonHugePages"] == 2048
    expect.huge(task, va, "2M")
    said = complaint(lambda: expect.huge(task, VirtAddr(va - _SIZE), 2 * MIB))
    assert lines(said, "not in huge pages", "expected 0 B", "found 32 KiB")
    assert lines(complaint(lambda: expect.huge(task, page, _SIZE)), "8 pages of 4 KiB")


def test_contiguous(guest: Guest, actor: Actor) -> None:
    va = actor.map("huge", 512, "thp")
    actor.write(va)
    task = guest.task(actor.pid)
    found = expect.contiguous(task, va, "2M", below="4G")
    assert found[0] == frame(actor, va)
    assert len(found) == 512
    said = complaint(lambda: expect.contiguous(task, va, "2M", below="1M"))
    highest = f"{int(found[-1]) * 4096 + 4095:#x}"
    assert lines(said, "highest address", "expected below 0x100000", f"found {highest}")
    zeros = actor.map("zeros", 2)  # only read: one frame, the zero page, twice
    actor.read_all(zeros, 2)
    said = complaint(lambda: expect.contiguous(task, zeros, 2 * 4096))
    assert lines(said, "runs of frames", "expected 1", "found 2")
    assert lines(complaint(lambda: expect.contiguous(task, VirtAddr(4096), 4096)), "pages present", "found 0")


def test_frames(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    theirs = [frame(actor, VirtAddr(page + number * 4096)) for number in range(_PAGES)]
    task = guest.task(actor.pid)
    assert expect.frames(task, page, _SIZE).tolist() == theirs
    actor.unmap(VirtAddr(page + 4096), 1)
    said = complaint(lambda: expect.frames(task, page, _SIZE))
    assert lines(said, "pages present", f"expected {_PAGES}", f"found {_PAGES - 1}")
    assert lines(said, f"{page + 4096:#x}, x86-64")  # the first that is not


def test_shared_and_stays(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    child = actor.fork()
    parents, childs = guest.task(actor.pid), guest.task(child.pid)
    frames = expect.frames(parents, page, _SIZE)
    expect.shared(frames, parents, childs)
    with expect.stays(parents, page, _SIZE) as kept:
        child.write(page, 9)
    assert np.array_equal(kept, frames)
    said = complaint(lambda: expect.shared(frames, parents, childs))
    assert lines(said, f"child ({child.pid})", f"expected {_PAGES}", f"found {_PAGES - 1}")
    assert lines(said, "does not map", f"{frame(actor, page):#x}")
    was = frame(child, VirtAddr(page + 4096))

    def moves() -> None:
        with expect.stays(childs, page, _SIZE):
            child.write(page + 4096, 9)

    said = complaint(moves)
    assert lines(said, "pages that moved", "expected 0", "found 1")
    assert lines(said, "were in frames", f"{was:#x}")
    assert lines(said, "are in frames", f"{frame(child, VirtAddr(page + 4096)):#x}")


@pytest.mark.parametrize("pages", [0, 3, _PAGES])
def test_rss_growth(guest: Guest, actor: Actor, pages: int) -> None:
    va = actor.map("grows", _PAGES)
    with expect.rss_growth(guest, actor.pid, pages, kind="anon"):
        if pages:
            actor.touch(va, pages)

    def more() -> None:
        with expect.rss_growth(guest, actor.pid, pages):
            actor.unmap(va, _PAGES)
            actor.write(actor.map("other", 1))

    assert lines(complaint(more), "all pages", f"expected +{pages}", f"found {1 - pages:+d}")
    with pytest.raises(UsageError, match="anon, file, shmem"), expect.rss_growth(guest, 1, 0, kind="swap"):
        pass


def test_fault(guest: Guest, actor: Actor) -> None:
    va = actor.map("faults", 2)
    with expect.fault(guest, actor.pid, at=va, kind=FaultKind.ANONYMOUS) as faults:
        actor.write(va)
    assert [found.address for found in faults.seen] == [va]
    with expect.fault(guest, actor.pid, at=va, times=0):
        actor.write(va)

    def act(kind: FaultKind, times: int) -> None:
        with expect.fault(guest, actor.pid, at=VirtAddr(va + 4096), kind=kind, times=times):
            actor.read(va + 4096)

    said = complaint(lambda: act(FaultKind.ANONYMOUS, 1))
    assert lines(said, "kind", "expected anonymous first touch", "found zero page read")
    assert lines(said, "PTE [")
    said = complaint(lambda: act(FaultKind.ZERO_PAGE, 1))
    assert lines(said, "page faults", "expected 1", "found 0")
    assert "no fault was seen there" in said


def test_no_leaks(guest: Guest) -> None:
    """A task that ends leaves nothing; one that stays has the pages that it touched, and a few more."""
    for _ in range(2):  # what is made the first time stays
        guest.run("/bin/true").check()
    with expect.no_leaks(guest, frames=8, objects=8):
        guest.run("/bin/true").check()
    pids: list[int] = []

    def stay() -> None:
        with expect.no_leaks(guest, frames=8, objects=8, patience=0):
            pids.append(guest.spawn("/labs/touch 1M"))
            guest.run(f"until [ -s /tmp/spawn-{pids[0]}.log ]; do sleep 0.05; done").check()

    said = complaint(stay)
    guest.run(f"kill {pids[0]}").check()
    assert re.match(r"[\d.]+ MiB leaked in this block:", said)
    (frames,) = re.findall(rf"(\d+) frames \([^)]*\) of anon touch \({pids[0]}\)", said)
    assert 256 <= int(frames) < 320  # 1 MiB, its stack and its data


def test_plain_assert_is_short(guest: Guest, actor: Actor, page: VirtAddr) -> None:
    """Pytest prints what an assert compares: a walk and a page must fit a report."""
    for value in (guest.task(actor.pid).walk(page), guest.page(frame(actor, page)), guest.task(actor.pid)):
        assert len(repr(value)) < 1000
    with nullcontext(guest.task(actor.pid).walk(VirtAddr(4096))) as walk:
        assert "PMD" in repr(walk)
