"""Whose each page table is, and of which level; the kernel's own carry no mark."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.kernel import lists
from inspector.kernel.frames import FrameState
from inspector.kernel.owners.canvas import UNCLAIMED, Canvas
from inspector.kernel.owners.model import Owner
from inspector.kernel.owners.survey import Survey
from inspector.symbols import Kernel

_OVER = (*UNCLAIMED, Owner.PAGE_TABLE)


def paint(canvas: Canvas, survey: Survey) -> None:
    """The tables of all trees, and those that wait outside one."""
    whose = ("kernel", *survey.threads.spaces)
    _paint(canvas, survey.kernel_tables, whose, survey.kernel_tables["root"].astype(np.int64))
    _paint(canvas, survey.user_tables, whose, survey.user_tables["root"].astype(np.int64) + 1)
    _second_pages(canvas, survey)
    _deposited(canvas)


def _paint(canvas: Canvas, found: NDArray[np.void], whose: tuple[str, ...], owner: NDArray[np.int64]) -> None:
    levels = [level.name for level in canvas.kernel.space.format.levels]
    pairs = owner * len(levels) + found["level"]
    used = np.flatnonzero(np.bincount(pairs))
    texts = [f"{levels[pair % len(levels)]} table, {whose[pair // len(levels)]}" for pair in used.tolist()]
    names = canvas.labelled(texts)[used.searchsorted(pairs)]
    canvas.paint(found["pa"] // np.uint64(canvas.page_size), Owner.PAGE_TABLE, names, _OVER)


def _second_pages(canvas: Canvas, survey: Survey) -> None:
    """The page behind a PGD, where KPTI is built in and off: both are one block (PGD_ALLOCATION_ORDER).

    Nobody refers to it by itself. Later there is none where KPTI is off (pgd_allocation_order(), in 7.2).
    """
    tops = survey.user_tables[survey.user_tables["level"] == 0]
    pfns = (tops["pa"] // np.uint64(canvas.page_size)).astype(np.int64) | 1
    behind = np.flatnonzero(pfns < len(canvas.owner))
    behind = behind[canvas.frames.refcount[pfns[behind]] == 0]
    whose = [survey.threads.spaces[space] for space in tops["root"][behind].tolist()]
    names = canvas.labelled([f"PGD table's second page, {name}" for name in whose])
    canvas.paint(pfns[behind].astype(np.uint64), Owner.PAGE_TABLE, names, (Owner.UNMARKED,))


def _deposited(canvas: Canvas) -> None:
    """The tables in no tree: one kept for each huge page, to split it (C: pgtable_trans_huge_deposit()).

    Their list hangs on the table that maps the huge page, without a head: the first stands for one.
    """
    kernel, types = canvas.kernel, canvas.kernel.types
    kind = kernel.layout(_descriptor)
    if not types.has(kind, "pmd_huge_pte"):
        return
    link = np.uint64(types.offsetof("page", "lru"))
    every = canvas.frames.used[canvas.frames.used_as(FrameState.PAGE_TABLE)]
    named = canvas.detail[every] != 0
    tables, unknown = every[named], every[~named].astype(np.uint64)
    if not unknown.size:
        return
    at = canvas.memmap.addresses(tables.astype(np.uint64)) + np.uint64(types.offsetof(kind, "pmd_huge_pte"))
    firsts, _ = kernel.space.gather(at, np.dtype(np.uint64))
    pages = canvas.memmap.addresses(unknown)
    places = np.searchsorted(pages, firsts)
    heads = np.flatnonzero((places < pages.size) & (pages[np.minimum(places, pages.size - 1)] == firsts))
    if not heads.size:
        return
    following, _ = kernel.space.gather(pages + link, np.dtype(np.uint64))
    is_head = np.isin(pages, firsts[heads])
    ends = np.full(pages.size, -1)
    ends[~is_head] = lists.follow(pages[~is_head] + link, following[~is_head], firsts[heads] + link)
    ends[places[heads]] = np.arange(heads.size)
    texts = canvas.labels
    whose = [texts[int(canvas.detail[tables[head]])].partition(", ")[2] for head in heads]
    names = canvas.labelled([f"deposited table, {name}" for name in whose])
    known = ends >= 0
    canvas.paint(unknown[known], Owner.PAGE_TABLE, names[ends[known]], (Owner.PAGE_TABLE,))


def _descriptor(kernel: Kernel) -> str:
    """The type of what describes a page table: f5ecca06b3a5 (6.5) split struct ptdesc from struct page."""
    return "ptdesc" if kernel.types.has("ptdesc", "pmd_huge_pte") else "page"
