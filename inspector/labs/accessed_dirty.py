"""Accessed and dirty: the CPU sets A and D, the kernel clears them."""

from __future__ import annotations

from collections import Counter

from inspector.labs import checks, prepare
from inspector.labs.checks import equal, kib
from inspector.labs.stage import Stage
from inspector.labs.story import EntryShown, Lab, Number, NumbersShown, Seen, Step, Story
from inspector.trace import FaultKind

_HINT = "is the file on a disk? One in memory (tmpfs) is never written back"


def story(stage: Stage) -> Story:
    """Clear A, read; clear D, write; write a file's page back, write."""
    actor = stage.actor
    yield Step(
        "After a write",
        "The program writes to a page of private memory.",
        ("page[0] = 7;",),
        ("A and D are set. This time the kernel set them, as it made the entry.",),
    )
    page = actor.map("page", 1)
    wrote = actor.write(page, 7)
    first = stage.look(page)
    yield Seen(
        (EntryShown(first),),
        (checks.flags(first, on="A D"), checks.faults(wrote, 1), checks.pagemap(first, wrote.pagemap)),
    )

    yield Step(
        "The kernel clears A",
        "The kernel wants to know which pages are in use. It clears A and looks again later. "
        "/proc/PID/clear_refs does the same for us.",
        (f"echo 1 >/proc/{actor.pid}/clear_refs",),
        ("A is gone, nothing else: the page stays. The program's smaps tells: Referenced 0 KiB.",),
    )
    stage.guest.run(f"echo 1 >/proc/{actor.pid}/clear_refs").check()
    old = stage.look(page)
    yield Seen(
        (EntryShown(old, first),),
        (
            checks.flags(old, on="P RW D", off="A"),
            checks.same_frame("The frame", first, old),
            kib("Referenced", 0, actor.smaps(page)["Referenced"], checks.SMAPS),
        ),
    )

    yield Step(
        "The CPU sets A",
        "The program reads the page. The entry allows it, so the kernel is not asked.",
        ("char c = page[0];",),
        ("A is back, and there was no page fault: the CPU's page walk has set it.",),
    )
    read = actor.read(page)
    young = stage.look(page)
    yield Seen(
        (EntryShown(young, old),),
        (
            checks.faults(read, 0),
            checks.flags(young, on="A"),
            kib("Referenced", 4, actor.smaps(page)["Referenced"], checks.SMAPS),
        ),
    )

    yield Step(
        "The kernel clears D, the CPU sets it",
        "MADV_FREE says: this data may be thrown away, unless it is written again. To see that, the kernel "
        "clears D. Then the program writes.",
        ("madvise(page, 4096, MADV_FREE);", "page[0] = 8;"),
        ("After MADV_FREE: RW without D. After the write: D is set, again without a fault.",),
    )
    actor.ask(f"advise {page:#x} 1 free")
    clean = stage.look(page)
    lazy = actor.smaps(page)["LazyFree"]
    wrote = actor.write(page, 8)
    dirty = stage.look(page)
    yield Seen(
        (EntryShown(clean, young), EntryShown(dirty, clean)),
        (
            checks.flags(clean, on="P RW", off="D"),
            kib("LazyFree before the write", 4, lazy, checks.SMAPS),
            checks.faults(wrote, 0),
            checks.flags(dirty, on="A D"),
            kib("LazyFree after it", 0, actor.smaps(page)["LazyFree"], checks.SMAPS),
        ),
    )

    yield Step(
        "A page of a file",
        "The program maps a page of a disk, shared, and writes to it. What is dirty must go to the disk.",
        ("file = mmap(NULL, 4096, ..., MAP_SHARED, fd, 0);", "file[0] = 1;"),
        ("D is set in the entry.",),
    )
    actor.ask("fill disk 1")
    file = actor.map("file", 1, "shared", "file=disk")
    actor.write(file, 1)
    written = stage.look(file)
    smaps = actor.smaps(file)
    yield Seen(
        (EntryShown(written), _dirt(smaps)),
        (checks.flags(written, on="RW D"), kib("Dirty", 4, _dirty(smaps), checks.SMAPS)),
    )

    yield Step(
        "Write it back, write again",
        "msync() sends the page to the disk. From then on the kernel must know of the next write: it takes "
        "D away, and RW with it.",
        ("msync(file, 4096, MS_SYNC);", "file[0] = 2;"),
        ("After msync(): neither D nor RW. The write faults, and both are back.",),
    )
    actor.ask(f"sync {file:#x} 1")
    synced = stage.look(file)
    smaps = actor.smaps(file)
    seen = stage.watch(lambda: actor.write(file, 2), file)
    wrote = seen.access
    again = stage.look(file)
    yield Seen(
        (*seen.shown, EntryShown(synced, written), EntryShown(again, synced), _dirt(smaps)),
        (
            checks.flags(synced, on="P", off="D RW", hint=_HINT),
            kib("Dirty after msync()", 0, _dirty(smaps), checks.SMAPS),
            equal("Page faults that it took", 1, wrote.minor + wrote.major, checks.RUSAGE),
            checks.kind(seen.faults, FaultKind.SHARED_WRITE),
            checks.flags(again, on="RW D"),
            checks.pagemap(again, wrote.pagemap),
        ),
    )


def _dirty(smaps: Counter[str]) -> int:
    return smaps["Private_Dirty"] + smaps["Shared_Dirty"]


def _dirt(smaps: Counter[str]) -> NumbersShown:
    rows = (
        Number("clean", smaps["Private_Clean"] + smaps["Shared_Clean"], "KiB"),
        Number("dirty", _dirty(smaps), "KiB"),
    )
    return NumbersShown(checks.SMAPS, rows)


_PREPARE, _UNDO = prepare.DISK
LAB = Lab(
    name="accessed-dirty",
    question="Who sets the accessed and dirty bits, and who clears them?",
    answer="The CPU sets A and D as it uses an entry, and never clears them. Clearing is the kernel's part.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
