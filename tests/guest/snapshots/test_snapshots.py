"""What a diff says of a live guest, against /proc: pagemap, slabinfo, vmallocinfo, and a driver's own log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inspector
from inspector import Guest
from inspector.kernel.owners import Owner
from inspector.snapshots import Diff, Snapshot

pytestmark = pytest.mark.guest

Start = Callable[[Guest, str], int]

_PAGE = 4096
_PRESENT, _FILE, _FRAME = 1 << 63, 1 << 61, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
_SETTLES = 10.0  # seconds: what RCU and workers free late


@pytest.fixture(scope="module", params=["debian-6.1", "debian-6.12"])
def own(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest that the tests here may change."""
    with boot_guest(request.param, "512M", 2) as guest:
        yield guest


def ended(guest: Guest, pid: int) -> None:
    """Kill a task, and wait until it is gone."""
    guest.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done").check()


def pagemap(guest: Guest, pid: int) -> list[int]:
    """The entries of a sleeping task's present pages, as the guest itself reads them."""
    found: list[int] = []
    for vma in guest.task(pid).vmas():
        if vma.name != "[vsyscall]":
            where = f"/proc/{pid}/pagemap bs=8 skip={vma.start // _PAGE} count={vma.size // _PAGE}"
            raw = guest.run(f"dd if={where} 2>/dev/null").check().stdout_bytes
            found += [entry for entry in np.frombuffer(raw, np.uint64).tolist() if entry & _PRESENT]
    return found


def test_a_task_has_the_frames_that_its_pagemap_says(own: Guest, start: Start) -> None:
    before = own.snapshot()
    pid = start(own, "/labs/touch 8M")
    diff = own.snapshot().diff(before)
    entries = pagemap(own, pid)
    theirs = {entry & _FRAME for entry in entries if not entry & _FILE}
    assert len(theirs) >= 2048
    label = f"touch ({pid})"
    balance = diff.balance(Owner.ANON, label)
    zero = set(own.owners().frames_of(Owner.ZERO_PAGE)["pfn"].tolist())
    assert (balance.before, balance.after) == (0, len(theirs - zero))
    assert set(diff.gained(balance.holder).tolist()) == theirs - zero
    (change,) = (change for change in diff.tasks if change.task.pid == pid)
    assert change.before is None
    (space,) = (space for space in diff.spaces if space.task.pid == pid)
    assert space.gained_bytes == len(entries) * _PAGE
    assert f"anon {label}" in str(diff)

    with_task = own.snapshot()
    ended(own, pid)
    gone = own.snapshot().diff(with_task)
    assert gone.balance(Owner.ANON, label).after == 0
    assert set(gone.lost(balance.holder).tolist()) == theirs - zero
    assert not [leak for leak in own.snapshot().diff(before).leaked().found if label in leak.holder.label]


def test_slab_objects_grow_as_slabinfo_says(own: Guest, witness: Any) -> None:
    def counted() -> tuple[dict[str, tuple[int, int]], Snapshot]:
        witnessed, ours = witness(own, ["/proc/slabinfo"], own.snapshot)
        lines = [line for line in witnessed.agreed_lines("/proc/slabinfo") if line]
        table = [line.split() for line in lines if not line.startswith(("slabinfo", "#"))]
        return {row[0]: (int(row[1]), int(row[2])) for row in table}, ours

    was, before = counted()
    own.run("mkdir /tmp/many && cd /tmp/many && seq 2000 | xargs touch").check()
    now, after = counted()
    changed = {change.cache.name: change for change in after.diff(before).caches}
    shared = set(was) & set(now)
    # What the witness itself needs to open and read is not the same at both its readings.
    agreed = [name for name in shared if was[name] != now[name] and name in changed]
    assert "shmem_inode_cache" in agreed
    for name in agreed:
        change = changed[name]
        assert change.before is not None
        assert change.after is not None
        assert change.after.active - change.before.active == now[name][0] - was[name][0], name
        assert change.after.objects - change.before.objects == now[name][1] - was[name][1], name
    # The files and their inodes are theirs who made them, and no leak.
    assert changed["shmem_inode_cache"].objects >= 2000
    assert "shmem_inode_cache" not in str(after.diff(before).leaked())
    own.run("rm -r /tmp/many").check()


def leaks_settled(guest: Guest, before: Snapshot) -> Diff:
    """The diff when what is freed late is freed, or after some seconds."""
    deadline = time.monotonic() + _SETTLES
    while True:
        diff = guest.snapshot().diff(before)
        if not diff.leaked() or time.monotonic() > deadline:
            return diff
        time.sleep(0.5)


@pytest.fixture
def unloaded(own: Guest) -> Iterator[Guest]:
    """The guest without the lender, also after a test that failed."""
    yield own
    own.run("rmmod lender 2>/dev/null")


def test_a_driver_that_forgets_pages(unloaded: Guest, start: Start) -> None:
    """The lender logs where its pages lie; forgotten, they are in use and nobody's."""
    own = unloaded
    own.load_module("lender")

    def lend(how: str) -> set[int]:
        own.run("dmesg -c >/dev/null").check()
        ended(own, start(own, f"/labs/loan page 48 {how}"))
        log = own.run("dmesg").check().stdout
        return {int(at, 16) // _PAGE for at in re.findall(r"page \d+ at (0x[0-9a-f]+)", log)}

    lend("")  # what is made for the first loan alone is there now
    before = own.snapshot()
    lend("")
    given_back = leaks_settled(own, before).leaked(frames=8, objects=4)
    assert not given_back, str(given_back)

    before = own.snapshot()
    forgotten = lend("--forget")
    assert len(forgotten) == 48
    leaks = leaks_settled(own, before).leaked(frames=8, objects=4)
    (leak,) = (leak for leak in leaks.found if leak.holder.owner == Owner.UNMARKED)
    assert forgotten <= set(leak.pfns.tolist())
    assert abs(leak.count - 48) <= 8  # others' unmarked frames come and go meanwhile
    # Its array of 48 pointers is given back.
    assert [each.holder.owner for each in leaks.found] == [Owner.UNMARKED], str(leaks)


def test_vmalloc_and_modules(unloaded: Guest) -> None:
    own = unloaded
    old = own.run("cat /proc/vmallocinfo").check().stdout.splitlines()
    before = own.snapshot()
    module = own.load_module("lender")
    diff = own.snapshot().diff(before)
    new = own.run("cat /proc/vmallocinfo").check().stdout.splitlines()
    came = [change for change in diff.modules if change.came]
    assert [change.module.name for change in came] == ["lender"]
    modules = own.run("cat /proc/modules").check().stdout
    assert f"lender {came[0].module.size} " in modules
    # Addresses are hashed there, each always to the same.
    told = [line.split() for line in set(new) - set(old)]
    areas = [change.area for change in diff.areas if change.came and change.area.start == module.base]
    assert len(areas) == 1
    assert (areas[0].size, areas[0].caller) in [(int(words[1]), words[2]) for words in told]
    balance = diff.balance(Owner.MODULE, "lender")
    assert (balance.before, balance.after) == (0, came[0].module.size // _PAGE)
    assert balance.after > 0
    own.unload_module("lender")
    assert [change.came for change in own.snapshot().diff(before).modules] == []


def test_kept_in_a_file(own: Guest, tmp_path: Path) -> None:
    before = own.snapshot()
    before.save(tmp_path / "before")
    own.run("ls -R /sys >/dev/null").check()
    after = own.snapshot()
    kept = Snapshot.load(tmp_path / "before")
    assert str(after.diff(kept)) == str(after.diff(before))
    assert after.diff(kept).as_data() == after.diff(before).as_data()
    assert (tmp_path / "before").stat().st_size < before.nbytes // 10


def test_a_memory_image_has_the_same(own: Guest, tmp_path: Path) -> None:
    """What was saved while the guest stood still is what it held then."""
    with own.paused():
        before = own.snapshot()
        own.save(tmp_path / "image")
    with inspector.open(tmp_path / "image") as image:
        diff = image.snapshot().diff(before)
    assert not diff, str(diff)
    own.run("ls -R /bin >/dev/null").check()
    assert own.snapshot().diff(before)


def test_a_quiet_guest_leaks_nothing(own: Guest) -> None:
    """Running a command over and over leaves nothing that does not settle."""
    own.run("true").check()
    before = own.snapshot()
    for _ in range(5):
        own.run("true").check()
    leaks = leaks_settled(own, before).leaked(frames=4, objects=4)
    assert not leaks, str(leaks)


def test_tables_of_a_guest(own: Guest) -> None:
    tables = pytest.importorskip("inspector.tables")
    duckdb = pytest.importorskip("duckdb")
    with own.paused():
        rows = own.frames()
        frames, mappings = tables.frames(own), tables.mappings(own)
        ours = own.reverse_map().rows
        counts = own.owners().counts()
    for name in ("pfn", "flags", "index", "refcount", "mapcount", "order"):
        assert np.array_equal(frames[name].to_numpy(), rows[name])
    # The reverse map has each address space once as well, in another order.
    user = ours[ours["owner"] != 0xFFFF_FFFF]
    for name in ("va", "pa", "entry"):
        assert np.array_equal(np.sort(mappings[name].to_numpy()), np.sort(user[name]))
    sql = duckdb.connect()
    sql.register("frames", frames)
    found = dict(sql.sql("SELECT owner, count(*) FROM frames GROUP BY owner").fetchall())
    told = {owner.name.lower(): count for owner, count in counts.items() if count}
    # A snapshot counts ended tasks' pages in a batch for the LRU lists as free (snapshots/taking.py).
    nobodys = (rows["owner"] == Owner.ANON) & (rows["mapcount"] == 0) & (rows["refcount"] == 1)
    batched = found["per_cpu_free"] - told["per_cpu_free"]
    assert 0 <= batched <= np.count_nonzero(nobodys)
    assert found == told | {
        "per_cpu_free": found["per_cpu_free"],
        "anon": told["anon"] - batched,
    }
