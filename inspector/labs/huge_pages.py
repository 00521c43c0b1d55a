"""Transparent huge pages: 2 MiB by one fault and one entry, and their split."""

from __future__ import annotations

from inspector.labs import checks, prepare
from inspector.labs.checks import equal, kib
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import EntryShown, Lab, Seen, Step, Story
from inspector.trace import FaultKind

_PAGES = 512
_NUMBERS = ("AnonHugePages",)
_SPLIT = "/sys/kernel/debug/split_huge_pages"
_HINT = "are transparent huge pages on? /sys/kernel/mm/transparent_hugepage/enabled: "


def story(stage: Stage) -> Story:
    """Write a byte, change one page's rights, split the page."""
    actor = stage.actor
    enabled = stage.guest.run("cat /sys/kernel/mm/transparent_hugepage/enabled").stdout.strip()
    hint = _HINT + (enabled or "this kernel has none")
    yield Step(
        "Write one byte",
        "The program maps 2 MiB, aligned to 2 MiB, says that huge pages suit it, and writes a byte.",
        ("madvise(page, 2 << 20, MADV_HUGEPAGE);", "page[0] = 7;"),
        ("One page fault brings 2 MiB: the resident set grows by 2,048 KiB.",
         "The walk ends a level early, at a PMD with PS: it maps a page, not a table.",
         "The frame is the first of 512 in a row: a folio of order 9."),
    )  # fmt: skip
    before, sizes = stage.meminfo(_NUMBERS), stage.sizes()
    page = actor.map("page", _PAGES, "thp")
    empty = stage.look(page)
    seen = stage.watch(lambda: actor.write(page, 7), page)
    wrote = seen.access
    huge = stage.look(page)
    yield Seen(
        (
            *seen.shown,
            EntryShown(huge, empty),
            *frames_of(huge),
            stage.sizes(sizes),
            stage.meminfo(_NUMBERS, before),
        ),
        (
            checks.faults(wrote, 1),
            checks.kind(seen.faults, FaultKind.THP, hint),
            equal("The walk ends at", "PMD", huge.level, checks.TABLES, hint),
            checks.flags(huge, on="P RW PS", hint=hint),
            equal("Order of the folio", 9, huge.frame.order if huge.frame else None, checks.FRAME, hint),
            checks.pagemap(huge, wrote.pagemap),
            kib("AnonHugePages of the mapping", 2048, actor.smaps(page)["AnonHugePages"], checks.SMAPS),
            equal("Pages present", _PAGES, actor.count(page, _PAGES).present, checks.PAGEMAP),
        ),
    )

    fifth = type(page)(page + 5 * stage.page_size)
    yield Step(
        "Protect one page of it",
        "One entry has one set of rights. To make page 5 read-only the kernel must replace the PMD by a "
        "table of 512 PTEs. The mapping is split; the memory stays where it is.",
        ("page[5 * 4096] = 5;", "mprotect(page + 5 * 4096, 4096, PROT_READ);"),
        ("The walk goes down to a PTE. Page 5 lacks RW, its neighbours have it.",
         "The frames are the same. The folio is still of order 9.",
         "AnonHugePages falls by 2,048 KiB, the resident set does not."),
    )  # fmt: skip
    before, sizes = stage.meminfo(_NUMBERS), stage.sizes()
    actor.write(fifth, 5)
    actor.ask(f"protect {fifth:#x} 1 r")
    small, neighbour = stage.look(fifth), stage.look(type(page)(fifth + stage.page_size))
    head = stage.look(page)
    smaps = actor.smaps(page)
    yield Seen(
        (EntryShown(head, huge), EntryShown(small), EntryShown(neighbour), *frames_of(head, huge),
         stage.sizes(sizes), stage.meminfo(_NUMBERS, before)),
        (
            equal("The walk ends at", "PTE", head.level, checks.TABLES),
            checks.same_frame("The frame at the start", huge, head),
            checks.flags(small, on="P", off="RW"),
            checks.flags(neighbour, on="P RW"),
            equal("Order of the folio", 9, small.frame.order if small.frame else None, checks.FRAME),
            kib("AnonHugePages of the mapping", 0, smaps["AnonHugePages"], checks.SMAPS),
            equal("Pages present", _PAGES, actor.count(page, _PAGES).present, checks.PAGEMAP),
        ),
    )  # fmt: skip

    yield Step(
        "Split the folio too",
        "As long as the folio is whole none of its frames can be freed alone. The kernel splits it when "
        "memory is short; debugfs lets us ask for it.",
        (f"echo 'PID,START,END' >{_SPLIT}",),
        ("Frames of order 0, each on its own.", "What was written stays where it is: nothing is copied."),
    )
    task = stage.task()
    end = page + _PAGES * stage.page_size
    # Before fa6c02315f74 (5.13) it takes no ranges: 1 splits all that there are.
    asked = stage.guest.run(f"echo '{task.pid},{page:#x},{end:#x}' >{_SPLIT} || echo 1 >{_SPLIT}")
    after = stage.look(page)
    tail = stage.look(fifth)
    smaps = actor.smaps(page)
    hint = f"could the kernel be asked? {asked.stderr.strip()}" if asked.returncode else ""
    yield Seen(
        (EntryShown(after, head), *frames_of(after, head), *frames_of(tail, small)),
        (
            equal("Order of the folio", 0, after.frame.order if after.frame else None, checks.FRAME, hint),
            checks.same_frame("The frame at the start", huge, after),
            checks.same_frame("The frame of page 5", small, tail),
            checks.pagemap(tail, actor.pagemap(fifth)),
            kib("Rss of page 5", 4, actor.smaps(fifth)["Rss"], checks.SMAPS),
        ),
    )


_PREPARE, _UNDO = prepare.thp("madvise")
LAB = Lab(
    name="huge-pages",
    question="How can one page fault bring 2 MiB, and what takes a huge page apart?",
    answer="A PMD with PS maps 512 frames at once. What needs one page of them splits first the mapping, "
    "later the folio.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
