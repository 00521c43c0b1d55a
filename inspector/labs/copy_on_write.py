"""Copy-on-write: what fork() copies, and when."""

from __future__ import annotations

from inspector.labs import checks
from inspector.labs.checks import equal
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import EntryShown, Lab, Seen, Step, Story
from inspector.trace import FaultKind


def story(stage: Stage) -> Story:
    """Write, fork, write in the child, end the child, write in the parent."""
    parent, stage.name = stage.actor, "parent"
    yield Step(
        "A page of its own",
        "The program, a parent soon, writes 7 to a page of private memory.",
        ("page[0] = 7;",),
        ("The entry is writable (RW) and dirty (D).", "One entry maps the frame: its mapcount is 1."),
    )
    page = parent.map("page", 1)
    wrote = parent.write(page, 7)
    first = stage.look(page)
    yield Seen(
        (EntryShown(first), *frames_of(first)),
        (checks.flags(first, on="RW D"), checks.mapcount(first, 1), checks.pagemap(first, wrote.pagemap)),
    )

    yield Step(
        "Fork",
        "fork() makes a child with the same memory. It copies the page table, not the page.",
        ("pid_t child = fork();",),
        (
            "Both entries name the same frame: its mapcount is 2.",
            "RW goes from both. The next write, by either, shall fault.",
        ),
    )
    child = parent.fork()
    ours, theirs = stage.look(page), stage.look(page, child)
    yield Seen(
        (EntryShown(ours, first), EntryShown(theirs), *frames_of(ours, first)),
        (
            checks.same_frame("The child's frame is the parent's", ours, theirs),
            checks.flags(ours, on="P", off="RW"),
            checks.flags(theirs, on="P", off="RW"),
            checks.mapcount(ours, 2),
            checks.pagemap(theirs, child.pagemap(page)),
        ),
    )

    yield Step(
        "The child writes",
        "The entry forbids it, the mapping does not. So the kernel takes a frame, copies 4 KiB "
        "into it, and lets the child write to the copy.",
        ("page[0] = 8;   /* in the child */",),
        (
            "The child's entry names another frame, with RW. The old has mapcount 1.",
            "The parent's entry is as it was, without RW. It still reads 7.",
        ),
    )
    seen = stage.watch(lambda: child.write(page, 8), page, child)
    wrote = seen.access
    read = parent.read(page)
    copy, left = stage.look(page, child), stage.look(page)
    yield Seen(
        (
            *seen.shown,
            EntryShown(copy, theirs),
            EntryShown(left, ours),
            *frames_of(copy),
            *frames_of(left, ours),
        ),
        (
            checks.faults(wrote, 1),
            checks.kind(seen.faults, FaultKind.COW_COPY),
            checks.other_frame("The child's frame is another", theirs, copy),
            checks.flags(copy, on="RW D"),
            checks.flags(left, off="RW"),
            checks.mapcount(left, 1),
            checks.pagemap(copy, wrote.pagemap),
            equal("What the parent reads", 7, read.value, "the program"),
        ),
    )

    yield Step(
        "The child is gone, the parent writes",
        "The parent's entry still lacks RW, so its write faults. But now nobody else has the "
        "frame. The kernel sees that, and copies nothing: it reuses the frame.",
        ("waitpid(child, NULL, 0);", "page[0] = 9;"),
        ("One page fault. The same frame as in step 1, and RW is back.",),
    )
    parent.reap()
    seen = stage.watch(lambda: parent.write(page, 9), page)
    wrote = seen.access
    last = stage.look(page)
    yield Seen(
        (*seen.shown, EntryShown(last, left), *frames_of(last, left)),
        (
            checks.faults(wrote, 1),
            checks.kind(seen.faults, FaultKind.COW_REUSE),
            checks.same_frame("The frame of step 1", first, last),
            checks.flags(last, on="RW D"),
            checks.mapcount(last, 1),
            checks.pagemap(last, wrote.pagemap),
        ),
    )


LAB = Lab(
    name="copy-on-write",
    question="What does fork() copy, and when?",
    answer="fork() copies page tables and takes RW away. A page is copied when one of two users writes.",
    story=story,
)
