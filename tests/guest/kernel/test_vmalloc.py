"""The vmalloc region against /proc/vmallocinfo, line by line, and against its own page tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel import vmalloc
from inspector.kernel.vmalloc import BUSY, LEAVING, VmallocArea
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest

_TRIES = 8
_PAGE = 4096


@pytest.fixture(scope="module")
def telling_guest(any_guest: Guest) -> Iterator[Guest]:
    """A guest whose /proc shows root real addresses, with a module that has taken memory from vmalloc."""
    before = any_guest.run("cat /proc/sys/kernel/kptr_restrict").stdout
    any_guest.run("echo 1 >/proc/sys/kernel/kptr_restrict").check()
    any_guest.run("echo 64M >/sys/block/zram0/disksize").check()
    yield any_guest
    any_guest.run(f"echo 1 >/sys/block/zram0/reset; echo {before} >/proc/sys/kernel/kptr_restrict").check()


def shown(areas: list[VmallocArea]) -> Counter[str]:
    """Our areas as lines of /proc/vmallocinfo."""
    return Counter(str(area).strip() for area in areas if area.kind != LEAVING)


def test_agrees_with_vmallocinfo(telling_guest: Guest, witness: Any) -> None:
    path = "/proc/vmallocinfo"
    for _ in range(_TRIES):
        witnessed, ours = witness(telling_guest, [path], lambda: vmalloc.areas(telling_guest.kernel))
        first, second = (
            Counter(line.strip() for line in reading.decode().splitlines())
            for reading in witnessed.readings[path]
        )
        lines = shown(ours)
        # A task's stack may come and go between the readings, and a free range be taken twice.
        if first == second == lines:
            break
    else:
        pytest.fail(
            f"in both readings, not ours: {(first & second) - lines}; ours alone: {lines - (first | second)};"
            f" between the readings: {(first | second) - (first & second)}"
        )
    text = "\n".join(lines)
    for word in ("ioremap", "vmap", "vmalloc", "phys=", "N0=", "[zram]"):
        assert word in text, word


def test_pages_are_those_that_the_page_tables_map(telling_guest: Guest) -> None:
    """Two sources in the guest: the area's array of pages, and the kernel's page tables."""
    with telling_guest.paused():
        rows = vmalloc.area_table(telling_guest.kernel)
        pages = vmalloc.area_pages(telling_guest.kernel, rows)
        frames = vmalloc.area_frames(telling_guest.kernel, rows)
    assert len(pages) > 100
    mapped = {(int(row["pfn"]), int(row["index"])) for row in frames}
    named = {(int(row["pfn"]), int(row["index"])) for row in pages}
    assert named <= mapped
    counts = np.bincount(pages["index"], minlength=len(rows))
    assert (counts == rows["nr_pages"])[rows["pages"] != 0].all()
    # What is mapped and has an array is in the array.
    with_array = set(np.flatnonzero(rows["pages"] != 0).tolist())
    assert {pair for pair in mapped if pair[1] in with_array} == named
    assert (frames["va"] >= rows["start"][frames["index"]]).all()
    assert (frames["va"] + np.uint64(_PAGE) <= rows["end"][frames["index"]]).all()


def test_ioremap_maps_what_it_says(telling_guest: Guest) -> None:
    with telling_guest.paused():
        areas = vmalloc.areas(telling_guest.kernel)
        found = [area for area in areas if "ioremap" in area.flags and area.kind == BUSY and area.phys]
        translated = [telling_guest.kernel.space.translate(area.start) for area in found]
    assert found
    assert translated == [area.phys for area in found]


def test_the_area_of_an_address(telling_guest: Guest) -> None:
    """A task's kernel stack lies in an area that kernel_clone() made."""
    with telling_guest.paused():
        rows = vmalloc.area_table(telling_guest.kernel)
        areas = vmalloc.areas(telling_guest.kernel, rows)
        stack = telling_guest.task(1).stack
    index = vmalloc.area_at(rows, stack)
    assert index is not None
    assert areas[index].start <= stack < areas[index].end
    assert vmalloc.area_at(rows, VirtAddr(int(rows["start"][0]) - 1)) is None
