"""Expectations of mappings: what an entry grants, what a range is backed by, who shares it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from inspector.arch import Walk
from inspector.errors import UsageError
from inspector.kernel.rmap import cache_modes
from inspector.kernel.tasks import Task
from inspector.kernel.vmas import Vma
from inspector.snapshots.leaks import runs
from inspector.testing import drawing
from inspector.testing.claims import Claims
from inspector.testing.places import Where, name_of, size_of, space_of
from inspector.units import Pfn, VirtAddr, format_size


def mapping(
    where: Where,
    va: VirtAddr,
    *,
    frame: Pfn | None = None,
    size: int | str | None = None,
    rights: str | None = None,
    user: bool | None = None,
    cache: str | None = None,
) -> Walk:
    """An address is mapped as is said; what is not said is not looked at. Gives the Walk.

    `where` is a task, or the guest for an address of the kernel. `size` is the page's, in bytes or like `2M`;
    `rights` like `rw-`, what all levels together grant; `cache` the memory type: `WB`, `WC`, `UC-`, `UC`.
    Raises Unexpected, UsageError.
    """
    __tracebackhide__ = True
    modes = cache_modes(where.kernel)
    if cache is not None and cache not in modes:
        raise UsageError(f"no memory type {cache!r}: this guest's PAT has {', '.join(dict.fromkeys(modes))}")
    walk = _walk(where, va)
    claims = Claims(f"{va:#x} in {name_of(where)}")
    claims.holds("a page", walk.phys is not None, "present", "not present")
    if walk.phys is not None:
        if frame is not None:
            claims.equal("frame", f"PFN {frame:#x}", f"PFN {walk.pfn:#x}")
        if size is not None:
            claims.equal("page size", format_size(size_of(size)), format_size(walk.page_size or 0))
        if rights is not None:
            claims.equal("rights", rights, drawing.rights(walk))
        if user is not None:
            claims.equal("reach", _reach(user), _reach(walk.user))
        if cache is not None:
            claims.equal("memory type", cache, modes[walk.memory_type or 0])
    claims.check(lambda: drawing.walk_text(walk))
    return walk


def _reach(user: bool) -> str:
    return "user" if user else "kernel only"


def not_mapped(where: Where, va: VirtAddr) -> Walk:
    """The MMU finds no page at an address. Gives the Walk, with its fault. Raises Unexpected."""
    __tracebackhide__ = True
    walk = _walk(where, va)
    claims = Claims(f"{va:#x} in {name_of(where)}")
    claims.holds("a page", walk.phys is None, "none", "one is present")
    claims.check(lambda: drawing.walk_text(walk))
    return walk


def _walk(where: Where, va: VirtAddr) -> Walk:
    with where.kernel.still():
        return space_of(where).walk(va)


def resident(task: Task, va: VirtAddr, *, pages: int | None = None, swapped: int | None = None) -> Vma:
    """Of the VMA around an address so many pages are present, and so many swapped out; gives the Vma.

    With neither said, all of it is present. Raises Unexpected.
    """
    __tracebackhide__ = True
    with task.kernel.still():
        areas = task.vmas()
        rows = task.smaps()
    step = task.kernel.space.format.page_size
    claims = Claims(f"the mapping around {va:#x} of {name_of(task)}")
    at = next((index for index, vma in enumerate(areas) if vma.start <= va < vma.end), None)
    claims.holds("a VMA", at is not None, "one", "none")
    claims.check()
    assert at is not None
    vma, row = areas[at], rows[at]
    if pages is None and swapped is None:
        pages = vma.size // step
    if pages is not None:
        claims.equal("pages present", pages, int(row["rss"]) // step)
    if swapped is not None:
        claims.equal("pages swapped out", swapped, int(row["swap"]) // step)
    claims.check(
        lambda: (
            f"{vma.start:#x}-{vma.end:#x} {vma.permissions} {vma.name or '[anon]'}, {format_size(vma.size)}"
        )
    )
    return vma


def huge(where: Where, va: VirtAddr, size: int | str) -> None:
    """Every byte of a range lies in a huge page (2 MiB or more on x86-64). Raises Unexpected."""
    __tracebackhide__ = True
    end = va + size_of(size)
    with where.kernel.still():
        rows = space_of(where).scan(va, end)
    small = where.kernel.space.format.page_size
    starts = np.maximum(rows["va"], np.uint64(va))
    ends = np.minimum(rows["va"] + rows["size"], np.uint64(end))
    covered = (ends - starts)[rows["size"] > small]
    claims = Claims(f"{format_size(end - va)} at {va:#x} in {name_of(where)}")
    claims.equal("not in huge pages", "0 B", format_size(end - va - int(covered.sum())))
    claims.check(
        lambda: (
            "\n".join(
                f"{np.count_nonzero(rows['size'] == kind)} pages of {format_size(kind)}"
                for kind in np.unique(rows["size"]).tolist()
            )
            or "nothing is present there"
        )
    )


def shared(pfns: Iterable[int], *tasks: Task) -> None:
    """Every one of the tasks maps every one of the frames. Raises Unexpected, UsageError."""
    __tracebackhide__ = True
    wanted = np.unique(np.fromiter(pfns, np.uint64))
    if not wanted.size or len(tasks) < 2:
        raise UsageError("give one frame or more, and two tasks or more, that share them")
    claims = Claims(f"{wanted.size} frames of {' and '.join(name_of(task) for task in tasks)}")
    with tasks[0].kernel.still():
        missing = {task.pid: _not_mapped_by(task, wanted) for task in tasks}
    for task in tasks:
        claims.equal(f"mapped by {name_of(task)}", wanted.size, wanted.size - missing[task.pid].size)
    claims.check(
        lambda: "\n".join(
            f"{name_of(task)} does not map {runs(missing[task.pid])}"
            for task in tasks
            if missing[task.pid].size
        )
    )


def _not_mapped_by(task: Task, wanted: NDArray[np.uint64]) -> NDArray[np.uint64]:
    rows = task.mappings()
    step = np.uint64(task.kernel.space.format.page_size)
    order = np.argsort(rows["pa"])
    first, count = rows["pa"][order] // step, rows["size"][order] // step
    at = np.searchsorted(first, wanted, side="right") - 1
    inside = (at >= 0) & (wanted < (first + count)[at]) if first.size else np.zeros(wanted.size, bool)
    return wanted[~inside]
