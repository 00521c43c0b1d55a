"""Page tables of tasks against /proc/PID/pagemap, and the kernel's half against QEMU's own walk."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inspector import Guest
from inspector.kernel.ptes import prot_none_pfn
from inspector.kernel.tasks import Task, user_end
from inspector.units import GIB, VirtAddr

pytestmark = pytest.mark.guest

_PAGE = 4096
_PRESENT, _PFN = np.uint64(1 << 63), np.uint64((1 << 55) - 1)  # Documentation/admin-guide/mm/pagemap.rst
_TRIES = 5


@pytest.fixture(scope="module")
def tasks(any_guest: Guest, start: Any) -> dict[str, Task]:
    """A task with huge pages, one that forked and its child, one with a mapping of 1 GiB in one page."""
    guest = any_guest
    started = {
        "thp": start(guest, "/labs/touch 8M --thp"),
        "forked": start(guest, "/labs/fork 4M"),
        "gigantic": start(guest, "/labs/touch 1G --huge 1G"),
        "maps": start(guest, "/labs/maps"),
    }
    found = {name: guest.task(pid) for name, pid in started.items()}
    found["child"] = next(task for task in guest.tasks() if task.ppid == found["forked"].pid)
    return found


def pagemap_ranges(task: Task) -> dict[str, tuple[int, int]]:
    """What the witness must read: PATH@OFFSET+LENGTH of each VMA's part of pagemap -> its pages."""
    return {
        f"/proc/{task.pid}/pagemap@{vma.start // _PAGE * 8}+{vma.size // _PAGE * 8}": (
            vma.start // _PAGE,
            vma.end // _PAGE,
        )
        for vma in task.vmas()
        if vma.name != "[vsyscall]"
    }


def expand(mappings: NDArray[np.void]) -> dict[int, int]:
    """Our leaf entries as {virtual page: PFN}, large pages taken apart."""
    pages: dict[int, int] = {}
    for row in mappings:
        first, pfn = int(row["va"]) // _PAGE, int(row["pa"]) // _PAGE
        pages.update((first + i, pfn + i) for i in range(int(row["size"]) // _PAGE))
    return pages


def prot_none_pages(task: Task) -> set[int]:
    """The virtual pages of VMAs that allow no access."""
    return {
        page
        for vma in task.vmas()
        if vma.permissions.startswith("---")
        for page in range(vma.start // _PAGE, vma.end // _PAGE)
    }


@pytest.mark.parametrize("name", ["thp", "forked", "child", "gigantic", "maps"])
def test_agrees_with_pagemap(any_guest: Guest, tasks: dict[str, Task], witness: Any, name: str) -> None:
    task = tasks[name]
    ranges = pagemap_ranges(task)
    for _ in range(_TRIES):
        witnessed, ours = witness(any_guest, list(ranges), task.mappings)
        if all(witnessed.same(path) for path in ranges):
            break
    theirs: dict[int, int] = {}
    for path, (first, end) in ranges.items():
        entries = np.frombuffer(witnessed.readings[path][0], np.uint64)
        assert len(entries) == end - first
        present = np.flatnonzero(entries & _PRESENT)
        theirs.update(zip((present + first).tolist(), (entries[present] & _PFN).tolist(), strict=True))
    assert len(theirs) > 10
    # A PROT_NONE page is present for Linux and not for the MMU: pagemap names its frame, mappings() does not.
    no_access = prot_none_pages(task)
    hidden = {page: pfn for page, pfn in theirs.items() if page in no_access}
    assert bool(hidden) == (name == "maps")
    assert expand(ours) == {page: pfn for page, pfn in theirs.items() if page not in hidden}

    space = task.space
    with any_guest.paused():
        for first, end in ranges.values():
            for page in range(first, end):
                walk = space.walk(VirtAddr(page * _PAGE))
                pfn = walk.phys // _PAGE if walk.phys is not None else None
                if page in hidden:
                    assert walk.fault
                    assert pfn is None
                    pfn = prot_none_pfn(task.kernel, walk.fault.entry or 0)
                assert pfn == theirs.get(page), hex(page * _PAGE)


def test_page_sizes(tasks: dict[str, Task]) -> None:
    """The tasks are what they are called: without these sizes the comparison above would prove less."""
    sizes = {name: set(task.mappings()["size"].tolist()) for name, task in tasks.items()}
    assert 2 << 20 in sizes["thp"]
    assert GIB in sizes["gigantic"]
    assert sizes["child"] == {_PAGE} or 2 << 20 in sizes["child"]


def test_kernel_half_agrees_with_qemu(any_guest: Guest) -> None:
    """QEMU's `info tlb` walks the same CR3 with code of its own."""
    guest = any_guest
    with guest.paused():
        theirs = info_tlb(guest.machine.hmp("info tlb"))
        space = guest.space(cpu=0)
        ours = space.scan(user_end(guest.kernel))
    kernel_half = {row for row in theirs if row[0] >= 1 << 63}
    assert len(kernel_half) > 1000
    assert {(int(row["va"]), int(row["pa"]), flags(int(row["entry"]))) for row in ours} == kernel_half


_LETTERS = {"X": 63, "G": 8, "P": 7, "D": 6, "A": 5, "C": 4, "T": 3, "U": 2, "W": 1}  # target/i386/monitor.c


def info_tlb(text: str) -> set[tuple[int, int, str]]:
    """(virtual, physical, flags) of each line of `info tlb`."""
    return {
        (int(match[1], 16), int(match[2], 16), match[3])
        for match in re.finditer(r"^([0-9a-f]{16}): ([0-9a-f]{16}) (\S{9})", text, re.MULTILINE)
    }


def flags(entry: int) -> str:
    """An entry's flags as `info tlb` prints them."""
    return "".join(letter if entry >> bit & 1 else "-" for letter, bit in _LETTERS.items())
