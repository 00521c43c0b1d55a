"""Demand paging: what mmap() gives, and when memory comes."""

from __future__ import annotations

from inspector.labs import checks, prepare
from inspector.labs.checks import equal, holds, kib
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import EntryShown, FrameShown, Lab, Seen, Step, Story
from inspector.trace import FaultKind

_PAGES = 2048
_SHOWN, _TOUCHED = 128, 100
_HINT = "are transparent huge pages off for it?"


def story(stage: Stage) -> Story:
    """Map, write a byte, write a hundred, give all back."""
    actor = stage.actor
    yield Step(
        "Ask for 8 MiB",
        "mmap() notes in a list that the program may use these addresses: a VMA. That is all.",
        ("char *page = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE,",
         "                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);"),
        ("The virtual size (VSZ) grows by 8,192 KiB, the resident set does not.",
         "There is no entry: not even the table that it would be in."),
    )  # fmt: skip
    before = stage.sizes()
    page = actor.map("page", _PAGES, "plain")
    empty = stage.look(page)
    now = stage.sizes(before)
    grown = now.rows[0].value - before.rows[0].value
    yield Seen(
        (EntryShown(empty), now, stage.pages(page, _SHOWN)),
        (
            checks.not_present(empty),
            kib("VSZ has grown by", 8192, grown, "struct mm_struct"),
            equal("Pages present", 0, actor.count(page, _PAGES).present, checks.PAGEMAP),
            kib("Rss of the mapping", 0, actor.smaps(page)["Rss"], checks.SMAPS),
        ),
    )

    yield Step(
        "Write one byte",
        "The CPU finds no entry and raises a page fault. The kernel looks for the VMA, takes a free "
        "frame, clears it, makes the entry, and lets the CPU try again.",
        ("page[0] = 7;",),
        ("One page fault. One page is present, and the resident set has grown by it: 4 KiB.",),
    )
    seen = stage.watch(lambda: actor.write(page, 7), page)
    wrote = seen.access
    first = stage.look(page)
    yield Seen(
        (
            *seen.shown,
            EntryShown(first, empty),
            *frames_of(first),
            stage.sizes(now),
            stage.pages(page, _SHOWN),
        ),
        (
            checks.faults(wrote, 1, hint=_HINT),
            checks.kind(seen.faults, FaultKind.ANONYMOUS, _HINT),
            checks.flags(first, on="P RW D"),
            checks.pagemap(first, wrote.pagemap),
            equal("Pages present", 1, actor.count(page, _PAGES).present, checks.PAGEMAP, _HINT),
            kib("Rss of the mapping", 4, actor.smaps(page)["Rss"], checks.SMAPS, _HINT),
        ),
    )

    yield Step(
        f"Write to {_TOUCHED} pages",
        "Each page costs a page fault, the first time. A page that is there costs none.",
        (f"for (int i = 0; i < {_TOUCHED}; i++) page[i * 4096] = 1;",),
        (f"{_TOUCHED - 1} page faults: page 0 was there. The pages come in by ones.",),
    )
    now = stage.sizes()
    wrote = actor.touch(page, _TOUCHED)
    yield Seen(
        (stage.sizes(now), stage.pages(page, _SHOWN)),
        (
            checks.faults(wrote, _TOUCHED - 1),
            equal("Pages present", _TOUCHED, actor.count(page, _PAGES).present, checks.PAGEMAP),
            kib("Rss of the mapping", 4 * _TOUCHED, actor.smaps(page)["Rss"], checks.SMAPS),
        ),
    )

    yield Step(
        "Give them back",
        "madvise(MADV_DONTNEED) drops the pages and keeps the promise.",
        ("madvise(page, 8 << 20, MADV_DONTNEED);", "char c = page[0];"),
        ("The entries are empty again. The frames are free, or somebody else's.",
         "What is read is 0: the 7 is gone."),
    )  # fmt: skip
    now = stage.sizes()
    actor.ask(f"advise {page:#x} {_PAGES} drop")
    gone = stage.look(page)
    freed = stage.sizes(now)
    pages = stage.pages(page, _SHOWN)
    old = None if first.frame is None else stage.frame(first.frame.pfn)
    frames = () if old is None else (FrameShown("the old frame", old, first.frame),)
    present = actor.count(page, _PAGES).present
    read = actor.read(page)
    ours = old is not None and old.owner.startswith("anon: actor") and old.mapcount
    yield Seen(
        (EntryShown(gone, first), *frames, freed, pages),
        (
            checks.not_present(gone),
            holds("The old frame", not ours, "not the program's", old.owner if old else "none", checks.FRAME),
            equal("Pages present", 0, present, checks.PAGEMAP),
            equal("The byte that is read", 0, read.value, "the program"),
        ),
    )


_PREPARE, _UNDO = prepare.thp("madvise")
LAB = Lab(
    name="demand-paging",
    question="When does memory come that a program asked for?",
    answer="mmap() gives addresses. Memory comes page by page, at the first touch of each.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
