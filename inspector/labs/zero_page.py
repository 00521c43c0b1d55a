"""The zero page: memory that was only read costs no memory."""

from __future__ import annotations

import numpy as np

from inspector.labs import checks, prepare
from inspector.labs.checks import equal, kib, pfn_text
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import EntryShown, Lab, Number, NumbersShown, Seen, Step, Story
from inspector.trace import FaultKind
from inspector.units import Pfn

_PAGES = 512  # 2 MiB: room for a huge page, which must not come
_HINT = "is the memory private, and are transparent huge pages off for it?"


def story(stage: Stage) -> Story:
    """Read, read more, write."""
    actor = stage.actor
    yield Step(
        "Memory that nobody has touched",
        f"The program asks for {_PAGES} pages of private memory. It touches none of them.",
        (f"char *page = mmap(NULL, {_PAGES} * 4096, PROT_READ | PROT_WRITE,",
         "                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);"),
        ("The page table entry is empty: a promise, no page.",),
    )  # fmt: skip
    page = actor.map("page", _PAGES, "plain")
    empty = stage.look(page)
    yield Seen((EntryShown(empty),), (checks.not_present(empty),))

    yield Step(
        "Read a byte",
        "It must read as 0. The kernel keeps one frame that is full of zeros, and lends it to all.",
        ("char c = page[0];",),
        (
            "One page fault. The entry is present, but not writable (RW clear).",
            "The frame is the zero page. Nobody counts its users: mapcount 0.",
        ),
    )
    rss = stage.rss()
    seen = stage.watch(lambda: actor.read(page), page)
    access = seen.access
    zero = stage.look(page)
    yield Seen(
        (*seen.shown, EntryShown(zero, empty), *frames_of(zero)),
        (
            equal("The byte that was read", 0, access.value, "the program"),
            checks.faults(access, 1, hint=_HINT),
            checks.kind(seen.faults, FaultKind.ZERO_PAGE, _HINT),
            checks.flags(zero, on="P", off="RW", hint=_HINT),
            checks.owner(zero, "zero page", _HINT),
            checks.pagemap(zero, access.pagemap),
        ),
    )

    yield Step(
        "Read all the others",
        f"{_PAGES - 1} more pages are read: {(_PAGES - 1) * 4:,} KiB.",
        (f"for (int i = 1; i < {_PAGES}; i++) c = page[i * 4096];",),
        ("All entries name that one frame.", "The resident set (RSS) does not grow by a byte."),
    )
    access = actor.read_all(page + stage.page_size, _PAGES - 1)
    rows = stage.task().space.scan(page, page + _PAGES * stage.page_size)
    frames = [pfn_text(Pfn(pfn)) for pfn in np.unique(rows["pa"] // stage.page_size).tolist()]
    numbers = (
        Number("entries present", len(rows), "of 4 KiB"),
        Number("frames behind them", len(frames), "of 4 KiB"),
        Number("RSS of the program", stage.rss(), "KiB", rss),
    )
    yield Seen(
        (NumbersShown("page tables and struct mm_struct", numbers),),
        (
            equal("Entries that are present", _PAGES, len(rows), checks.TABLES, _HINT),
            equal("Frames that they name", pfn_text(zero.walk.pfn), ", ".join(frames), checks.TABLES),
            equal("Frames that the program sees", 1, actor.count(page, _PAGES).frames, checks.PAGEMAP),
            checks.faults(access, _PAGES - 1),
            kib("Rss of the mapping", 0, actor.smaps(page)["Rss"], checks.SMAPS),
        ),
    )

    yield Step(
        "Write a byte",
        "The zero page must stay zero. Only now the kernel has to give a frame away.",
        ("page[0] = 7;",),
        (
            "One page fault, and a frame of its own: anonymous memory.",
            "RW and D are set. One entry maps the frame: mapcount 1.",
        ),
    )
    seen = stage.watch(lambda: actor.write(page, 7), page)
    access = seen.access
    own = stage.look(page)
    yield Seen(
        (*seen.shown, EntryShown(own, zero), *frames_of(own)),
        (
            checks.faults(access, 1),
            checks.kind(seen.faults, FaultKind.COW_COPY),
            checks.flags(own, on="P RW D"),
            checks.other_frame("Another frame than the zero page", zero, own),
            checks.owner(own, "anon"),
            checks.mapcount(own, 1),
            checks.pagemap(own, access.pagemap),
            kib("Rss of the mapping", 4, actor.smaps(page)["Rss"], checks.SMAPS),
        ),
    )


_PREPARE, _UNDO = prepare.thp("madvise")
LAB = Lab(
    name="zero-page",
    question="Does memory that was only read take up memory?",
    answer="All that was only read shares one frame of zeros; the first write to a page takes a frame.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
