"""What changed hands between two moments that are known by heart."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from inspector.errors import UsageError
from inspector.kernel.owners import FRAME, Owner
from inspector.snapshots import Holder, Snapshot, TaskState
from inspector.units import VirtAddr

FREE, TOP, WORKER = Holder(Owner.FREE), Holder(Owner.ANON, "top (7)"), Holder(Owner.ANON, "worker (9)")


def test_nothing_changed(before: Snapshot) -> None:
    diff = before.diff(before)
    assert not diff
    assert len(diff.pfns) == 0
    assert diff.handovers() == []
    assert not diff.leaked()
    assert str(diff) == "nothing changed hands in 0.00 s"


def test_frames_by_holder(before: Snapshot, after: Snapshot) -> None:
    diff = after.diff(before)
    # 12 and 13 are the moved page; 41 and 42: 41 was given back, 42 was free before and is.
    changed = [12, 13, *range(14, 20), 21, 31, 41, 43, 44, *range(50, 54), 60, 61]
    assert diff.pfns.tolist() == changed
    found = {each.holder: (each.before, each.after, each.gained, each.lost) for each in diff.balances}
    assert found[WORKER] == (0, 6, 6, 0)
    assert found[TOP] == (3, 3, 1, 1)  # exec() is no handover: sh's other two frames stay
    assert found[Holder(Owner.SLAB, "filp")] == (1, 2, 1, 0)
    assert found[Holder(Owner.UNMARKED)] == (2, 3, 2, 1)
    assert found[Holder(Owner.VMALLOC, "leak_all+0x5/0x9")] == (0, 4, 4, 0)
    assert found[Holder(Owner.PER_CPU_FREE)] == (4, 0, 0, 4)
    assert Holder(Owner.RESERVED) not in found
    assert diff.net == 6 + 1 + 1 + 1 + 4 + 2
    assert [each.net for each in diff.balances] == sorted((each.net for each in diff.balances), reverse=True)


def test_a_class_together(before: Snapshot, after: Snapshot) -> None:
    diff = after.diff(before)
    whole = diff.balance(Owner.ANON)
    assert (whole.before, whole.after, whole.gained, whole.lost) == (3, 9, 7, 1)
    assert diff.balance(Owner.ANON, "worker (9)").net == 6
    assert diff.balance(Owner.ANON, "nobody (0)").net == 0


def test_handovers_have_their_frames(before: Snapshot, after: Snapshot) -> None:
    diff = after.diff(before)
    found = {(each.was, each.now): each.pfns.tolist() for each in diff.handovers()}
    assert found[FREE, WORKER] == [14, 15, 16, 17, 18, 19]
    assert found[TOP, FREE] == [12]
    assert found[Holder(Owner.PER_CPU_FREE), Holder(Owner.VMALLOC, "leak_all+0x5/0x9")] == [50, 51, 52, 53]
    sizes = [len(each.pfns) for each in diff.handovers()]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == len(diff.pfns)
    assert diff.gained(TOP).tolist() == [13]
    assert diff.lost(TOP).tolist() == [12]


def test_freed_is_what_nobody_has(before: Snapshot, after: Snapshot) -> None:
    diff = after.diff(before)
    assert diff.freed(TOP).tolist() == [12]
    assert diff.freed(Holder(Owner.UNMARKED)).tolist() == [41]
    assert diff.lost(Holder(Owner.PER_CPU_FREE)).tolist() == [50, 51, 52, 53]
    assert diff.freed(Holder(Owner.PER_CPU_FREE)).tolist() == []  # the vmalloc area's now


def test_tasks(before: Snapshot, after: Snapshot) -> None:
    changes = {change.task.pid: change for change in after.diff(before).tasks}
    assert set(changes) == {7, 8, 9}
    assert changes[9].before is None
    assert changes[8].after is None
    assert (changes[9].rss, changes[8].rss, changes[7].rss) == (8, -5, 0)


def test_a_pid_used_again_is_another_task(before: Snapshot) -> None:
    def moved(task: TaskState) -> TaskState:
        return replace(task, address=VirtAddr(task.address + 64)) if task.pid == 7 else task

    changes = replace(before, tasks=tuple(map(moved, before.tasks))).diff(before).tasks
    assert {(each.before is None, each.after is None) for each in changes} == {(True, False), (False, True)}


def test_caches_areas_modules_and_zones(before: Snapshot, after: Snapshot) -> None:
    diff = after.diff(before)
    assert [(each.cache.name, each.objects, each.slabs) for each in diff.caches] == [
        ("dentry", 20, 1),
        ("filp", 3, 1),
        ("lsm_inode_cache", 3, 1),
    ]
    assert [(each.area.caller, each.came) for each in diff.areas] == [("leak_all+0x5/0x9", True)]
    assert [(each.module.name, each.came) for each in diff.modules] == [("virtio", False)]
    assert [(each.name, each.before, each.after) for each in diff.zones] == [("Normal", 50, 38)]


def test_mappings(before: Snapshot, after: Snapshot) -> None:
    spaces = {change.task.pid: change for change in after.diff(before).spaces}
    assert set(spaces) == {7, 9}
    # 0x501000 has another frame, 0x502000 is new; what worker maps is all new.
    assert spaces[7].gained["va"].tolist() == [0x501000, 0x502000]
    assert spaces[7].lost["va"].tolist() == [0x501000]
    assert (spaces[9].gained_bytes, spaces[9].lost_bytes) == (4096, 0)


def test_accessed_and_dirty_are_no_change(before: Snapshot) -> None:
    touched = before.mappings.copy()
    touched["entry"] ^= np.uint64(0x60)
    assert not replace(before, mappings=touched).diff(before).spaces
    touched["rights"] = 1
    assert len(replace(before, mappings=touched).diff(before).spaces) == 2


def test_memory_may_grow(before: Snapshot) -> None:
    more = np.zeros(66, FRAME)
    more[:64] = before.frames
    more["owner"][64:] = Owner.FREE
    diff = replace(before, frames=more).diff(before)
    assert [(each.was, each.now) for each in diff.handovers()] == [(Holder(Owner.NO_PAGE), FREE)]
    assert diff.net == 0


def test_two_guests_cannot_be_compared(before: Snapshot) -> None:
    for other in (replace(before, build_id="cd"), replace(before, kaslr_offset=5)):
        with pytest.raises(UsageError, match="two guests, or of two boots of one"):
            other.diff(before)


def test_text(before: Snapshot, after: Snapshot) -> None:
    text = str(after.diff(before))
    for line in (
        "19 frames changed hands in 2.00 s; 60 KiB more in use; free pages -12",
        "      +6    +24 KiB        6        0  anon worker (9)",
        "       6  free -> anon worker (9)",
        "  +    +32 KiB       9 worker",
        "  ~          0       7 top, was sh",
        "  -    -20 KiB       8 idler",
        "  ~     +768 B  filp: +3 objects, +1 slab",
        "  +   20 KiB  0xffffc90000020000  leak_all+0x5/0x9",
        "  -    8 KiB  0xffffffffc0000000  virtio",
        "        +4 KiB       7 top: 8 KiB gained in 2 entries, 4 KiB lost in 1 entry",
    ):
        assert line in text.splitlines(), text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_guest_does_not_write_to_the_terminal(before: Snapshot) -> None:
    evil = replace(before, labels=tuple(f"{label}\x1b[2J" for label in before.labels))
    assert "\x1b" not in str(evil.diff(before))
    assert "\x1b" not in json.dumps(evil.diff(before).as_data(), ensure_ascii=False)


def test_data(before: Snapshot, after: Snapshot) -> None:
    data = json.loads(json.dumps(after.diff(before).as_data()))
    assert data["frames_changed"] == 19
    assert data["in_use_frames"] == 15
    assert data["handovers"][0] == {
        "from": {"owner": "free", "label": None},
        "to": {"owner": "anon", "label": "worker (9)"},
        "frames": 6,
        "pfn_runs": [[14, 6]],
    }
    assert {task["change"] for task in data["tasks"]} == {"came", "went", "changed"}
    assert data["vmalloc_areas"][0]["caller"] == "leak_all+0x5/0x9"
    assert data["leaked"][0] == {
        "owner": "anon", "label": "worker (9)", "unit": "frame", "count": 6, "bytes": 24576,
        "pfn_runs": [[14, 6]], "freed_pfn_runs": [], "forgotten_pfn_runs": [],
    }  # fmt: skip
