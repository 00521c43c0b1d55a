"""Aliases: one page at several addresses."""

from __future__ import annotations

from inspector.labs import checks
from inspector.labs.checks import equal
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import Check, EntryShown, Lab, Look, Seen, Step, Story

KPAGECOUNT = "/proc/kpagecount"


def story(stage: Stage) -> Story:
    """Two shared mappings, a private one, its copy, a child."""
    actor = stage.actor
    yield Step(
        "A file mapped twice",
        "The program maps the first page of a file at two places, both MAP_SHARED, and writes to one.",
        ("a = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);",
         "b = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);",
         "a[0] = 65;  char c = b[0];"),
        ("Two addresses, two entries, one frame: its mapcount is 2.", "What is written at a is read at b."),
    )  # fmt: skip
    a = actor.map("a", 1, "shared", "file=file")
    b = actor.map("b", 1, "shared", "file=file")
    wrote, read = actor.write(a, 65), actor.read(b)
    at_a, at_b = stage.look(a), stage.look(b)
    yield Seen(
        (EntryShown(at_a), EntryShown(at_b), *frames_of(at_b)),
        (
            checks.same_frame("The frame at b is that at a", at_a, at_b),
            checks.mapcount(at_b, 2),
            kpagecount(stage, at_b, 2),
            checks.pagemap(at_a, wrote.pagemap),
            checks.pagemap(at_b, read.pagemap),
            equal("What is read at b", 65, read.value, "the program"),
        ),
    )

    yield Step(
        "A private mapping of it, read",
        "MAP_PRIVATE promises the program a copy of its own. Nothing was written yet, so nothing is copied.",
        ("p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);", "char c = p[0];"),
        ("The same frame, mapped a third time: mapcount 3.", "RW is clear, though the mapping has it."),
    )  # fmt: skip
    p = actor.map("p", 1, "file=file")
    read = actor.read(p)
    at_p = stage.look(p)
    yield Seen(
        (EntryShown(at_p), *frames_of(at_p, at_b)),
        (
            checks.same_frame("The frame at p is that at a", at_a, at_p),
            checks.flags(at_p, on="P", off="RW"),
            kpagecount(stage, at_p, 3),
            checks.pagemap(at_p, read.pagemap),
            equal("What is read at p", 65, read.value, "the program"),
        ),
    )

    yield Step(
        "The private mapping, written",
        "Now the copy is made. It is anonymous memory: no file will ever see it.",
        ("p[0] = 66;  char c = a[0];",),
        ("Another frame at p, with RW. The file's page has mapcount 2 again.", "At a, 65 is still read."),
    )
    wrote, read = actor.write(p, 66), actor.read(a)
    copy, left = stage.look(p), stage.look(a)
    yield Seen(
        (EntryShown(copy, at_p), *frames_of(copy), *frames_of(left, at_p)),
        (
            checks.other_frame("The frame at p is another", at_a, copy),
            checks.owner(copy, "anon"),
            kpagecount(stage, left, 2),
            checks.pagemap(copy, wrote.pagemap),
            equal("What is read at a", 65, read.value, "the program"),
        ),
    )

    yield Step(
        "Another process",
        "A child has the same mappings. fork() copies no entries of a shared file: they can be had again "
        "by a page fault. The child writes to a.",
        ("fork();", "a[0] = 67;   /* in the child */"),
        ("The child's entry names the same frame: mapcount 3.",
         "The parent reads 67. And the kernel has the frame too, in its direct map."),
    )  # fmt: skip
    child = actor.fork()
    wrote = child.write(a, 67)
    read = actor.read(b)
    theirs = stage.look(a, child)
    yield Seen(
        () if theirs.frame is None else (stage.aliases(theirs.frame.pfn),),
        (
            checks.same_frame("The child's frame is the parent's", at_a, theirs),
            kpagecount(stage, theirs, 3),
            checks.pagemap(theirs, wrote.pagemap),
            equal("What the parent reads at b", 67, read.value, "the program"),
        ),
    )


def kpagecount(stage: Stage, look: Look, expected: int) -> Check:
    """How often the frame is mapped, by the guest's own /proc/kpagecount too."""
    pfn = look.frame.pfn if look.frame else 0
    read = stage.guest.run(f"dd if={KPAGECOUNT} bs=8 skip={pfn} count=1 2>/dev/null").stdout_bytes
    return equal("Entries that map the frame", expected, int.from_bytes(read, "little"), KPAGECOUNT)


LAB = Lab(
    name="aliases",
    question="Can one page be at several addresses?",
    answer="A frame has as many addresses as there are entries that name it. Only MAP_PRIVATE ever copies.",
    story=story,
)
