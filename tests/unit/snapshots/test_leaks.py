"""What counts as leaked, and what the kernel merely keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inspector.kernel.owners import Owner
from inspector.snapshots import Snapshot
from inspector.snapshots.leaks import pfn_runs, runs


def test_leaks(before: Snapshot, after: Snapshot) -> None:
    leaks = after.diff(before).leaked()
    assert [(str(leak.holder), leak.count, leak.unit) for leak in leaks.found] == [
        ("anon worker (9)", 6, "frame"),
        ("vmalloc leak_all+0x5/0x9", 4, "frame"),
        ("unmarked", 1, "frame"),
        ("slab filp", 3, "object"),
    ]
    unmarked = leaks.found[2]
    assert (unmarked.pfns.tolist(), unmarked.freed.tolist()) == ([43, 44], [41])  # an exchange, and a leak
    assert leaks.nbytes == (6 + 4 + 1) * 4096 + 3 * 256
    assert len(leaks) == 4


def test_what_is_given_back_elsewhere_hides_nothing(before: Snapshot, after: Snapshot) -> None:
    """One more is unmarked than before; but two that nothing points to are lost, 40 since long ago."""
    lost = replace(after, forgotten=np.array([40, 44], np.uint64))
    (leak,) = (leak for leak in lost.diff(before).leaked().found if leak.holder.owner == Owner.UNMARKED)
    assert (leak.count, leak.forgotten.tolist()) == (2, [40, 44])
    told = "PFN 0x2b-0x2c; 1 other freed meanwhile; nothing points to PFN 0x28, 0x2c"
    assert str(leak) == f"2 frames (8 KiB) of unmarked: {told}"
    known = replace(before, forgotten=np.array([40], np.uint64))
    (leak,) = (leak for leak in lost.diff(known).leaked().found if leak.holder.owner == Owner.UNMARKED)
    assert (leak.count, leak.forgotten.tolist()) == (1, [44])


def test_frames_that_came_and_were_lost_at_once(before: Snapshot, after: Snapshot) -> None:
    lost = replace(after, forgotten=np.array([43, 44], np.uint64))
    (leak,) = (leak for leak in lost.diff(before).leaked().found if leak.holder.owner == Owner.UNMARKED)
    assert str(leak).endswith("PFN 0x2b-0x2c; 1 other freed meanwhile; nothing points to them")


def test_an_exchange_is_no_leak(before: Snapshot, after: Snapshot) -> None:
    frames = before.frames.copy()
    frames[40:44] = frames[[42, 43, 40, 41]]  # two unmarked frames for two others
    frames["pfn"] = np.arange(len(frames))
    diff = replace(before, frames=frames).diff(before)
    assert len(diff.pfns) == 4
    assert not diff.leaked()


def test_what_is_left_out(before: Snapshot, after: Snapshot) -> None:
    # The page cache grew by a page, dentry by 20 objects, lsm_inode_cache by 3, stacks kept for reuse by 2.
    names = {leak.holder.label for leak in after.diff(before).leaked().found}
    assert not names & {"/bin/sh", "dentry", "lsm_inode_cache", "kernel_clone+0x1/0x2"}
    all_kinds = after.diff(before).leaked(ignore=())
    assert "/bin/sh" in {leak.holder.label for leak in all_kinds.found}


def test_tolerance(before: Snapshot, after: Snapshot) -> None:
    diff = after.diff(before)
    assert [leak.count for leak in diff.leaked(frames=4).found] == [6, 3]
    assert [leak.count for leak in diff.leaked(frames=6, objects=2).found] == [3]
    assert not diff.leaked(frames=6, objects=3)
    assert str(diff.leaked(frames=6, objects=3)) == "nothing leaked"


def test_a_class_may_be_left_out(before: Snapshot, after: Snapshot) -> None:
    leaks = after.diff(before).leaked(ignore=(Owner.ANON, Owner.SLAB, Owner.PAGE_CACHE))
    assert [leak.holder.owner for leak in leaks.found] == [Owner.VMALLOC, Owner.UNMARKED]


def test_it_says_where(before: Snapshot, after: Snapshot) -> None:
    lines = str(after.diff(before).leaked()).splitlines()
    assert lines == [
        "44.8 KiB leaked:",
        "  6 frames (24 KiB) of anon worker (9): PFN 0xe-0x13",
        "  4 frames (16 KiB) of vmalloc leak_all+0x5/0x9: PFN 0x32-0x35",
        "  1 frame (4 KiB) of unmarked: PFN 0x2b-0x2c; 1 other freed meanwhile",
        "  3 objects (768 B) of slab filp: PFN 0x15",
    ]


@pytest.mark.parametrize(
    ("pfns", "found"),
    [([], []), ([7], [(7, 1)]), ([1, 2, 3, 9, 11, 12], [(1, 3), (9, 1), (11, 2)])],
)
def test_runs(pfns: list[int], found: list[tuple[int, int]]) -> None:
    assert pfn_runs(np.array(pfns, np.uint64)) == found


def test_runs_as_text() -> None:
    assert runs(np.array([1, 2, 5, 8], np.uint64), 2) == "0x1-0x2, 0x5, and 1 more runs"


def test_a_worker_that_came_is_no_leak(before: Snapshot, after: Snapshot) -> None:
    """Its stack, and one object of each cache for it."""
    worker = replace(before.tasks[0], pid=30, comm="kworker/0:2", kernel_thread=True)
    grown = replace(after, tasks=(*after.tasks, worker))
    (filp,) = (leak for leak in grown.diff(before).leaked().found if leak.holder.owner == Owner.SLAB)
    assert filp.count == 3  # more than the one that might be the worker's
    assert not [
        leak for leak in grown.diff(before).leaked(objects=2).found if leak.holder.owner == Owner.SLAB
    ]
