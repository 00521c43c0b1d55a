"""Swap areas against /proc/swaps, and the swap entries of page tables against /proc/PID/pagemap."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inspector import Guest, images
from inspector.kernel import ptes, swap
from inspector.kernel.ptes import EntryUse
from inspector.kernel.tasks import Task, user_end

pytestmark = pytest.mark.guest

_PAGE = 4096
_TRIES = 5
_SIZE = 8 << 20
_GROUP = "/sys/fs/cgroup/swapped"
_SWAP_BIT, _FRAME = np.uint64(1 << 62), np.uint64((1 << 55) - 1)  # Documentation/admin-guide/mm/pagemap.rst


@pytest.fixture(scope="module")
def swapped(swapping_guest: Guest) -> Iterator[tuple[Guest, Task, int]]:
    """A guest that swaps, and a task in it with most of its 8 MiB swapped out; where they begin."""
    guest = swapping_guest
    guest.run(f"mkdir {_GROUP}").check()
    pid = guest.spawn(f"sh -c 'echo 0 >{_GROUP}/cgroup.procs; exec /labs/touch 8M --no-thp'")
    log = f"/tmp/spawn-{pid}.log"
    said = guest.run(f"until [ -s {log} ]; do sleep 0.05; done; cat {log}", timeout=60).check().stdout
    guest.run(f"echo 1M >{_GROUP}/memory.high; sleep 0.5").check()
    yield guest, guest.task(pid), int(said.split()[1], 16)
    guest.run(f"kill {pid}; until rmdir {_GROUP}; do sleep 0.1; done").check()


def pagemap(task: Task, start: int) -> str:
    """What the witness reads: the part of pagemap for the task's 8 MiB."""
    return f"/proc/{task.pid}/pagemap@{start // _PAGE * 8}+{_SIZE // _PAGE * 8}"


def test_areas_agree_with_proc_swaps(swapped: tuple[Guest, Task, int], witness: Any) -> None:
    guest, _, _ = swapped
    for _ in range(_TRIES):
        witnessed, ours = witness(guest, ["/proc/swaps"], lambda: swap.areas(guest.kernel))
        if witnessed.same("/proc/swaps"):
            break
    else:
        pytest.fail("the swap areas never stood still")
    rows = [row.split() for row in witnessed.text("/proc/swaps").splitlines()[1:]]
    assert [
        [area.path, area.kind, str(area.pages * 4), str(area.used * 4), str(area.priority)] for area in ours
    ] == rows
    assert len(ours) == 1
    assert ours[0].used > 1000
    assert {"used", "writeok"} <= set(ours[0].flag_names)


def test_entries_agree_with_pagemap(swapped: tuple[Guest, Task, int], witness: Any) -> None:
    guest, task, start = swapped
    path = pagemap(task, start)
    for _ in range(_TRIES):
        witnessed, ours = witness(guest, [path], lambda: entries(task, start))
        if witnessed.same(path):
            break
    else:
        pytest.fail("the task's pages never stood still")
    theirs = np.frombuffer(witnessed.readings[path][0], np.uint64)
    places = np.flatnonzero(theirs & _SWAP_BIT)
    assert len(places) > 1000
    assert ((ours["va"] - np.uint64(start)) // np.uint64(_PAGE)).tolist() == places.tolist()
    words = theirs[places] & _FRAME  # the swap type in the lowest 5 bits, the offset above
    assert (ours["type"] == words & np.uint64(31)).all()
    assert (ours["offset"] == words >> np.uint64(5)).all()
    assert (ours["use"] == EntryUse.SWAP).all()
    assert len(np.unique(ours["offset"])) == len(ours)
    one = ptes.nonpresent(guest.kernel, int(ours["entry"][0]))
    assert (one.type, one.offset, one.pfn) == (int(ours["type"][0]), int(ours["offset"][0]), None)


def entries(task: Task, start: int) -> NDArray[np.void]:
    """Our entries of the task's 8 MiB."""
    return swap.entries(task.kernel, task.space, start, start + _SIZE)


def test_swapped_pages_are_the_mm_s_count(swapped: tuple[Guest, Task, int]) -> None:
    """The mm counts its swap entries by itself; a page of the swap cache is not among them."""
    guest, task, _ = swapped
    with guest.paused():
        found = swap.entries(guest.kernel, task.space, 0, user_end(guest.kernel))
        now = guest.task(task.pid)
    assert now.mm
    assert now.mm.swap_entries == int((found["use"] == EntryUse.SWAP).sum()) > 1000


def test_a_broken_page(any_guest: Guest, start: Any) -> None:
    """The kernel is told that a frame is broken: the entry of the task that has it says so."""
    guest = any_guest
    offline = "/sys/devices/system/memory/hard_offline_page"
    if guest.run(f"test -e {offline}").returncode:
        pytest.skip(
            "this kernel takes no word of broken memory (CONFIG_MEMORY_FAILURE, CONFIG_MEMORY_HOTPLUG)"
        )
    pid = start(guest, "/labs/touch 64K --no-thp")
    try:
        va = int(guest.run(f"cat /tmp/spawn-{pid}.log").stdout.split()[1], 16)
        task = guest.task(pid)
        walk = task.walk(task.vmas()[0].start.__class__(va))
        assert walk.phys is not None
        pfn = walk.phys // _PAGE
        guest.run(f"echo {walk.phys:#x} >{offline}")
        found = swap.entries(guest.kernel, task.space, va, va + (64 << 10))
        assert [EntryUse(use) for use in found["use"]] == [EntryUse.HWPOISON]
        assert found["pfn"].tolist() == [pfn]
        assert found["va"].tolist() == [va]
        word = guest.run(
            f"dd if=/proc/{pid}/pagemap bs=8 skip={va // _PAGE} count=1 2>/dev/null"
        ).stdout_bytes
        theirs = int.from_bytes(word, "little") & int(_FRAME)
        assert (theirs & 31, theirs >> 5) == (int(found["type"][0]), pfn)
    finally:
        guest.run(f"kill -9 {pid}")


def test_types_add_up_to_the_configuration(any_guest: Guest) -> None:
    """The 32 types, as include/linux/swap.h gives them out by the kernel's configuration."""
    release = any_guest.info().release
    (config,) = (
        path.read_text()
        for path in images.cache_dir().glob("kernels/*/config")
        if json.loads((path.parent / "kernel.json").read_text())["release"] == release
    )
    on = set(re.findall(r"^CONFIG_(\w+)=[ym]$", config, re.MULTILINE))
    types = ptes.swap_types(any_guest.kernel)
    uses = [types.use(number)[0] for number in range(types.areas, 32)]
    assert EntryUse.UNKNOWN not in uses
    assert (EntryUse.HWPOISON in uses) == ("MEMORY_FAILURE" in on)
    assert (EntryUse.MIGRATION in uses) == ("MIGRATION" in on)
    assert (EntryUse.DEVICE in uses) == ("DEVICE_PRIVATE" in on)
    order = (
        EntryUse.HWPOISON, EntryUse.MIGRATION, EntryUse.DEVICE, EntryUse.DEVICE_EXCLUSIVE, EntryUse.MARKER,
        EntryUse.SWAPIN_ERROR,
    )  # fmt: skip
    assert uses == sorted(uses, key=order.index)
