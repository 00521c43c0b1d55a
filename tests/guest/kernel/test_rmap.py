"""The reverse map both ways: all that pagemap knows is in it, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel.frames import FrameState
from inspector.kernel.rmap import KERNEL, ReverseMap
from inspector.units import Pfn, VirtAddr

pytestmark = pytest.mark.guest

_PAGE = 4096
_PRESENT, _PFN = np.uint64(1 << 63), np.uint64((1 << 55) - 1)
_TRIES = 5
_RETRIED = "the tasks did not hold still"


@pytest.fixture(scope="module")
def sharing_guest(any_guest: Guest, start: Any) -> Guest:
    """A guest with tasks that share, fork, map files and huge pages."""
    for command in ("/labs/fork 4M", "/labs/touch 4M --shared", "/labs/touch 4M --thp", "/labs/maps"):
        start(any_guest, command)
    return any_guest


def pagemaps(guest: Guest) -> dict[str, tuple[int, int]]:
    """PATH@OFFSET+LENGTH of each readable VMA's part of pagemap -> (PID, first page)."""
    return {
        f"/proc/{task.pid}/pagemap@{vma.start // _PAGE * 8}+{vma.size // _PAGE * 8}": (
            task.pid,
            vma.start // _PAGE,
        )
        for task in guest.tasks()
        for vma in task.vmas()
        if vma.name != "[vsyscall]" and not vma.permissions.startswith("---")
    }


def test_every_pair_is_in_pagemap_and_in_the_index(sharing_guest: Guest, witness: Any) -> None:
    guest = sharing_guest
    for _ in range(_TRIES):
        ranges = pagemaps(guest)
        witnessed, (index, then) = witness(
            guest, list(ranges), lambda: (guest.reverse_map(), pagemaps(guest))
        )
        if all(witnessed.same(path) for path in ranges):
            break
    else:
        pytest.fail(_RETRIED)
    # pagemap shows a device's memory (VM_PFNMAP) as a hole, the agent's window for one: walk_page_test().
    # A task that maps memory meanwhile is left out.
    moved = {owner[0] for _, owner in ranges.items() ^ then.items()}
    asked = {pid for pid, _ in ranges.values()} - moved
    assert {guest.task(pid).comm for pid in asked} >= {"fork", "touch", "maps", "init"}
    theirs = set()
    for path, (pid, first) in ranges.items():
        if pid not in asked:
            continue
        entries = np.frombuffer(witnessed.readings[path][0], np.uint64)
        for page in np.flatnonzero(entries & _PRESENT).tolist():
            theirs.add((pid, first + page, int(entries[page] & _PFN)))
    device = {
        (pid, page)
        for pid in asked
        for vma in guest.task(pid).vmas()
        if "PFNMAP" in vma.flag_names
        for page in range(vma.start // _PAGE, vma.end // _PAGE)
    }
    assert {pair for pair in pairs(index, asked) if pair[:2] not in device} == theirs
    assert len(theirs) > 4000


def pairs(index: ReverseMap, pids: set[int]) -> set[tuple[int, int, int]]:
    """(PID, virtual page, PFN) of every user row, large pages taken apart."""
    found: set[tuple[int, int, int]] = set()
    for row in index.rows[index.rows["owner"] != KERNEL]:
        pid = index.owners[int(row["owner"])].pid
        if pid in pids:
            page, pfn = int(row["va"]) // _PAGE, int(row["pa"]) // _PAGE
            found.update((pid, page + i, pfn + i) for i in range(int(row["size"]) // _PAGE))
    return found


def test_of_names_every_alias(sharing_guest: Guest) -> None:
    """A page that a forked task and its child share: both map it read-only, and the direct map has it too."""
    guest = sharing_guest
    with guest.paused():
        index = guest.reverse_map()
        parent = next(task for task in guest.tasks() if task.comm == "fork")
        child = next(task for task in guest.tasks() if task.ppid == parent.pid)
        shared = np.intersect1d(parent.mappings()["pa"], child.mappings()["pa"])
        assert shared.size
        aliases = index.of(Pfn(int(shared[0]) // _PAGE))
        pids = {alias.task.pid for alias in aliases if alias.task}
        assert {parent.pid, child.pid} <= pids
        kernel = [alias for alias in aliases if alias.task is None]
        assert "direct map" in {alias.region for alias in kernel}
        for alias in aliases:
            space = alias.task.space if alias.task else guest.kernel.space
            assert space.walk(alias.va).pfn == int(shared[0]) // _PAGE


def test_the_frame_with_most_addresses(sharing_guest: Guest) -> None:
    """The kernel maps one frame (espfix) again and again: init_espfix_ap(), arch/x86/kernel/espfix_64.c."""
    guest = sharing_guest
    with guest.paused():
        index = guest.reverse_map()
        frames, counts = np.unique(index.rows["pa"] // np.uint64(_PAGE), return_counts=True)
        pfn = Pfn(int(frames[np.argmax(counts)]))
        aliases = guest.mapped_by(pfn)
    assert counts.max() >= 1 << 16
    assert sum(alias.count for alias in aliases) == index.rows_of(pfn).size
    assert len(aliases) < 10
    most = max(aliases, key=lambda alias: alias.count)
    assert (most.region, most.cache_mode) == ("espfix", "WB")
    for va in (most.vas[1], most.vas[-1]):
        assert guest.kernel.space.walk(VirtAddr(va)).pfn == pfn


def test_one_frame_is_as_in_the_whole_index(sharing_guest: Guest) -> None:
    guest = sharing_guest
    with guest.paused():
        index = guest.reverse_map()
        user = index.rows[index.rows["owner"] != KERNEL]
        for pa in user["pa"][:: len(user) // 5].tolist():
            pfn = Pfn(pa // _PAGE)
            assert [(a.task and a.task.pid, a.vas) for a in guest.mapped_by(pfn)] == [
                (a.task and a.task.pid, a.vas) for a in index.of(pfn)
            ]


def test_counts_agree_with_mapcounts(sharing_guest: Guest) -> None:
    """What all page tables hold of an anonymous 4 KiB page is its mapcount: the kernel's own count."""
    guest = sharing_guest
    with guest.paused():
        index, frames = guest.reverse_map(), guest.frames()
    mapped = index.user_mapped(Pfn(len(frames)))
    single = (frames["state"] == FrameState.ANON) & (frames["flags"] >> np.uint64(16) & np.uint64(1) == 0)
    small = np.zeros(len(frames), np.bool_)
    rows = index.rows
    user = rows[(rows["owner"] != KERNEL) & (rows["size"] == _PAGE)]
    pfns = user["pa"] // np.uint64(_PAGE)
    small[pfns[pfns < len(frames)].astype(np.int64)] = True  # a device's memory may lie behind all RAM
    chosen = single & small & (frames["mapcount"] > 0)
    assert chosen.sum() > 500
    different = np.flatnonzero(chosen & (frames["mapcount"] != mapped))
    assert different.size == 0, different[:5]
