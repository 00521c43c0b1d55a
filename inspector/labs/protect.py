"""mprotect and mlock: entries that forbid, and pages that stay."""

from __future__ import annotations

from inspector.kernel import ptes
from inspector.kernel.ptes import EntryUse
from inspector.labs import checks, prepare
from inspector.labs.checks import equal, holds, kib
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import Check, EntryShown, Lab, Seen, Step, Story

_PAGES = 16
_ACCERR = 2
_HIGH = "/sys/fs/cgroup/lab/memory.high"


def story(stage: Stage) -> Story:
    """PROT_READ, PROT_NONE, back; lock, reclaim."""
    actor = stage.actor
    yield Step(
        "Read-only",
        "The program writes 7 to a page, then makes it read-only, and writes again.",
        ("page[0] = 7;  mprotect(page, 4096, PROT_READ);", "page[0] = 8;"),
        ("RW goes, the frame stays.", "The write ends in SIGSEGV: the mapping itself forbids it."),
    )
    page = actor.map("page", 1)
    actor.write(page, 7)
    first = stage.look(page)
    actor.ask(f"protect {page:#x} 1 r")
    readable = stage.look(page)
    wrote = actor.write(page, 8)
    yield Seen(
        (EntryShown(readable, first), *frames_of(readable, first)),
        (
            checks.flags(readable, on="P", off="RW"),
            checks.same_frame("The frame", first, readable),
            *_refused(wrote.signal, wrote.code),
        ),
    )

    yield Step(
        "PROT_NONE",
        "Now the program may not even read. But its data must be kept.",
        ("mprotect(page, 4096, PROT_NONE);", "char c = page[0];"),
        ("P is clear: that is all that the CPU needs to know.",
         "Bit 8 tells the kernel that this is no swap entry. The address bits stand inverted, so "
         "that a CPU with the L1TF flaw finds no memory there.",
         "The frame still has its 7."),
    )  # fmt: skip
    actor.ask(f"protect {page:#x} 1 none")
    closed = stage.look(page)
    what = ptes.nonpresent(stage.guest.kernel, closed.entry)
    read = actor.read(page)
    byte = stage.guest.read_phys(first.frame.phys, 1)[0] if first.frame else None
    yield Seen(
        (EntryShown(closed, readable), *frames_of(closed, readable)),
        (
            checks.not_present(closed),
            equal("What the entry is", EntryUse.PROT_NONE.name, what.use.name, checks.TABLES),
            equal(
                "The frame that it names",
                checks.pfn_text(first.walk.pfn),
                checks.pfn_text(what.pfn),
                checks.TABLES,
            ),
            checks.equal(
                "The frame by pagemap", checks.pfn_text(first.walk.pfn),
                checks.pfn_text(read.pagemap.pfn), checks.PAGEMAP,
            ),
            *_refused(read.signal, read.code),
            equal("The byte in the frame", 7, byte, "physical memory"),
        ),
    )  # fmt: skip

    yield Step(
        "And back",
        "The program may read and write again. The page never left.",
        ("mprotect(page, 4096, PROT_READ | PROT_WRITE);", "char c = page[0];"),
        ("The same frame, and no page fault: the entry is present again at once.",),
    )
    actor.ask(f"protect {page:#x} 1 rw")
    opened = stage.look(page)
    read = actor.read(page)
    yield Seen(
        (EntryShown(opened, closed), *frames_of(opened, closed)),
        (
            checks.flags(opened, on="P"),
            checks.same_frame("The frame", first, opened),
            checks.faults(read, 0),
            equal("What is read", 7, read.value, "the program"),
            checks.pagemap(opened, read.pagemap),
        ),
    )

    yield Step(
        "Locked in memory",
        f"The program maps twice {_PAGES} pages, and locks one half. mlock() brings its pages in at once.",
        (f"mlock(locked, {_PAGES} * 4096);", f"for (int i = 0; i < {_PAGES}; i++) other[i * 4096] = 1;"),
        ("All locked pages are present, and their frames are mlocked and unevictable.",),
    )
    locked, other = actor.map("locked", _PAGES), actor.map("other", _PAGES)
    actor.ask(f"lock {locked:#x} {_PAGES}")
    actor.touch(other, _PAGES)
    held = stage.look(locked)
    names = held.frame.flags if held.frame else ()
    yield Seen(
        (EntryShown(held), *frames_of(held), stage.pages(locked, _PAGES)),
        (
            equal("Locked pages present", _PAGES, actor.count(locked, _PAGES).present, checks.PAGEMAP),
            holds("The frame's flags", "mlocked" in names, "mlocked", " ".join(names), checks.FRAME),
            kib("Locked", _PAGES * 4, actor.smaps(locked)["Locked"], checks.SMAPS),
        ),
    )

    yield Step(
        "The kernel wants memory",
        "The program's cgroup is told to do without memory. There is swap for it to go to.",
        (f"echo 0 >{_HIGH}",),
        ("The other half is swapped out (s). The locked half stays (#).",),
    )
    stage.guest.run(f"for i in 1 2 3; do echo 0 >{_HIGH}; done; echo max >{_HIGH}")
    kept, gone = actor.count(locked, _PAGES), actor.count(other, _PAGES)
    hint = "" if stage.guest.swap_areas() else "this guest has no swap"
    shown = stage.pages(locked, _PAGES), stage.pages(other, _PAGES)
    yield Seen(
        shown,
        (
            equal("Locked pages present", _PAGES, kept.present, checks.PAGEMAP),
            equal("Other pages swapped out", _PAGES, gone.swapped, checks.PAGEMAP, hint),
            equal("Locked pages present", _PAGES, shown[0].states.count("#"), checks.TABLES),
            equal("Other pages swapped out", _PAGES, shown[1].states.count("s"), checks.TABLES),
        ),
    )


def _refused(signal: int, code: int) -> tuple[Check, ...]:
    said = f"signal {signal}, code {code}"
    return (equal("What the program got", f"signal 11, code {_ACCERR}", said, "its signal handler"),)


_SWAP, _NO_SWAP = prepare.SWAP
_GROUP = "mkdir -p /sys/fs/cgroup/lab && echo 0 >/sys/fs/cgroup/lab/cgroup.procs"
LAB = Lab(
    name="protect",
    question="What do mprotect() and mlock() do to a page?",
    answer="mprotect() changes what entries allow and keeps the page; mlock() keeps it in memory.",
    story=story,
    prepare=f"{_SWAP} && {_GROUP}",
    undo=f"{_NO_SWAP}; rmdir /sys/fs/cgroup/lab",
)
