"""The page cache: a file read through a mapping, by major and by minor faults."""

from __future__ import annotations

from inspector.labs import checks, prepare
from inspector.labs.checks import equal, holds
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import EntryShown, Lab, Seen, Step, Story
from inspector.trace import FaultKind
from inspector.units import VirtAddr

_PAGES = 64
_FAR = 48
_NUMBERS = ("Buffers",)  # where the page cache of a block device is counted
_HINT = "is the file on a disk? A file in memory (tmpfs) is never read from anywhere"


def story(stage: Stage) -> Story:
    """Map, read cold, read on, map again."""
    actor = stage.actor
    yield Step(
        "A file that is not in memory",
        f"{_PAGES} pages are written to a disk. The kernel is asked to forget them. The program maps them.",
        ('fd = open("disk", O_RDWR);', "char *file = mmap(NULL, 64 * 4096, PROT_READ, MAP_SHARED, fd, 0);"),
        ("No entry. And no frame holds the file's pages: the page cache has none of them.",),
    )
    actor.ask(f"fill disk {_PAGES}")
    actor.ask("forget disk")
    start = actor.map("file", _PAGES, "shared", "ro", "file=disk")
    empty = stage.look(start)
    before = stage.meminfo(_NUMBERS)
    yield Seen(
        (EntryShown(empty), before),
        (
            checks.not_present(empty),
            equal("Pages in the page cache", 0, actor.cached(start, _PAGES), "mincore()", _HINT),
        ),
    )

    yield Step(
        "The first read",
        "The CPU faults. The page is not in the page cache: the kernel takes a frame, reads from the disk, "
        "and the program waits.",
        ("char c = file[0];",),
        ("One major fault. The frame belongs to the page cache; the entry only borrows it.",
         "Readahead: the kernel has read more than the one page."),
    )  # fmt: skip
    seen = stage.watch(lambda: actor.read(start), start)
    read = seen.access
    first = stage.look(start)
    cached = actor.cached(start, _PAGES)
    yield Seen(
        (*seen.shown, EntryShown(first, empty), *frames_of(first), stage.meminfo(_NUMBERS, before)),
        (
            equal("The byte that was read", ord("a"), read.value, "the program"),
            checks.faults(read, 0, 1, _HINT),
            checks.kind(seen.faults, FaultKind.FILE_MAJOR),
            checks.flags(first, on="P", off="RW"),
            checks.owner(first, "page cache"),
            checks.pagemap(first, read.pagemap),
            holds("Pages in the page cache", cached > 1, "more than 1", str(cached), "mincore()"),
        ),
    )

    again = actor.map("again", _PAGES, "shared", "ro", "file=disk")
    yield Step(
        "Another mapping of it",
        "The program maps the file a second time, and reads the same page there.",
        ("char *again = mmap(NULL, 64 * 4096, PROT_READ, MAP_SHARED, fd, 0);", "char c = again[0];"),
        ("A minor fault: the page is in the cache, the entry alone was missing.",
         "The same frame: mapcount 2. And the fault put in entries for its neighbours too."),
    )  # fmt: skip
    none = stage.look(again)
    seen = stage.watch(lambda: actor.read(again), again)
    read = seen.access
    second = stage.look(again)
    around = actor.count(again, _PAGES).present
    neighbour = actor.read(again + stage.page_size)
    yield Seen(
        (*seen.shown, EntryShown(second, none), *frames_of(second, first), stage.pages(again, _PAGES)),
        (
            checks.faults(read, 1, 0),
            checks.kind(seen.faults, FaultKind.FILE_MINOR),
            checks.same_frame("The same frame", first, second),
            checks.mapcount(second, 2),
            holds("Entries that came by one fault", around > 1, "more than 1", str(around), checks.PAGEMAP),
            equal("Faults for the page beside it", 0, neighbour.minor + neighbour.major, checks.RUSAGE),
        ),
    )

    yield Step(
        "Forget it, and read again",
        "Both mappings go. The kernel is asked to forget the file once more. Then the program maps it anew.",
        ("munmap(file, ...);  munmap(again, ...);",
         "posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);", "char c = file[0];"),
        ("A major fault again: what nobody maps, and what is on disk, may go at any time.",),
    )  # fmt: skip
    actor.ask(f"unmap {start:#x} {_PAGES}")
    actor.ask(f"unmap {again:#x} {_PAGES}")
    actor.ask("forget disk")
    anew = actor.map("anew", _PAGES, "shared", "ro", "file=disk")
    cached = actor.cached(anew, _PAGES)
    none = stage.look(anew)
    read = actor.read(VirtAddr(anew))
    back = stage.look(anew)
    yield Seen(
        (EntryShown(back, none), *frames_of(back)),
        (
            equal("Pages in the page cache before", 0, cached, "mincore()"),
            checks.faults(read, 0, 1),
            checks.owner(back, "page cache"),
            checks.pagemap(back, read.pagemap),
        ),
    )


_PREPARE, _UNDO = prepare.DISK
LAB = Lab(
    name="page-cache",
    question="When does reading a mapped file have to wait for the disk?",
    answer="A major fault reads from the disk; a minor one finds the page in the cache, where all share it.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
