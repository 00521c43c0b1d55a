"""16 GiB of addresses in a small guest: a range that is filled when it is touched, by either side."""

from __future__ import annotations

from collections.abc import Generator

from inspector.labs import checks
from inspector.labs.checks import equal, holds
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import (
    Check,
    EntryShown,
    Event,
    Lab,
    Look,
    Number,
    NumbersShown,
    QuoteShown,
    Seen,
    Step,
    Story,
    VmaShown,
    WalkShown,
)
from inspector.labs.vast import MODULE, Packed, Range
from inspector.trace import FaultKind
from inspector.units import GIB, KIB, VirtAddr

_GIB, _FRAMES = 16, 64
_HERE, _THERE = 9 * GIB, 3 * GIB  # the page that the story is of; pages that drive it out
_TEXT, _FIRST = b"far away", "f"
_COPIES = range(0, _GIB, 2)  # the GiB that are filled
_SOURCE = "/proc/kallsyms"
_SPECIAL = "SW9"  # _PAGE_BIT_SPECIAL is _PAGE_BIT_SOFTW1 (arch/x86/include/asm/pgtable_types.h)
_QEMU, _RAM, _MEMINFO, _AREAS = "QEMU", "RAM", "/proc/meminfo", "/proc/vmallocinfo"


def story(stage: Stage) -> Story:
    """Reserve, touch from the kernel and from user space, evict, touch again, fill, give back."""
    space = yield from _reserved(stage)
    first = yield from _by_the_kernel(stage, space)
    page, here = yield from _by_user_space(stage, space, first)
    out = yield from _driven_out(stage, space, page, first, here)
    yield from _again(stage, space, page, first, out)
    yield from _filled(space)
    yield from _given_back(stage, space, page)


def _reserved(stage: Stage) -> Generator[Event, str | None, Range]:
    yield Step(
        "Addresses alone",
        f"A module reserves {_GIB} GiB of the kernel's addresses, and nothing behind them. It hooks itself "
        "in where the kernel gives up on a bad address.",
        (f"area = get_vm_area({_GIB}UL << 30, VM_IOREMAP);",
         "register_kprobe(&probe);        /* on bad_area_nosemaphore() */"),
        ("An area of vmalloc's that is larger than all RAM.",
         "No page table for it: the walk ends at a PUD entry, of 1 GiB."),
    )  # fmt: skip
    total = stage.guest.meminfo()["MemTotal"]
    space = Range(stage, _GIB, _FRAMES)
    look, tables = space.look(_HERE), space.tables()
    rows = (Number("addresses", _GIB << 20, "KiB"), Number("RAM", total, "KiB"))
    yield Seen(
        (
            QuoteShown("as in /proc/vmallocinfo:", (space.said,)),
            NumbersShown("the area, and MemTotal", rows),
            EntryShown(look),
        ),
        (
            equal("Bytes, with a guard page", _GIB * GIB + stage.page_size, sum(space.vmallocinfo()), _AREAS),
            holds("It is larger than RAM", total < _GIB << 20, "larger", f"{total:,} KiB of RAM", _MEMINFO),
            checks.not_present(look),
            _level(look, "PUD"),
            equal("Page tables for it, PMD and PTE", "0, 0", f"{tables.pmd}, {tables.pte}", checks.TABLES),
        ),
    )
    return space


def _by_the_kernel(stage: Stage, space: Range) -> Generator[Event, str | None, Look]:
    yield Step(
        "The kernel touches it",
        "write() of /dev/vast is a plain copy to the address 9 GiB in. The copy faults; the module, in the "
        "fault, maps a page of zeros; the instruction is run again.",
        ('pwrite(fd, "far away", 8, 9UL << 30);',),
        ("A PMD table and a PTE table appear, and an entry that names a frame.",
         "The text is in that frame."),
    )  # fmt: skip
    before = space.counts()["kernel_faults"]
    space.actor.pwrite("vast", _HERE, _TEXT)
    look, tables = space.look(_HERE), space.tables()
    found = b"" if look.walk.phys is None else stage.guest.read_phys(look.walk.phys, len(_TEXT))
    yield Seen(
        (WalkShown(look),),
        (
            equal("Faults of the kernel served", 1, space.counts()["kernel_faults"] - before, MODULE),
            equal("Page tables, PMD and PTE", "1, 1", f"{tables.pmd}, {tables.pte}", checks.TABLES),
            _named("The frame", look, space),
            equal("What is in the frame", _TEXT.decode(), found.decode("ascii", "replace"), _RAM),
        ),
    )
    return look


def _by_user_space(
    stage: Stage, space: Range, first: Look
) -> Generator[Event, str | None, tuple[VirtAddr, Look]]:
    yield Step(
        "A program touches it",
        f"The program maps all {_GIB} GiB, and reads 9 GiB in. Its fault goes to the driver by the door made "
        "for it, and the driver enters the frame that it has there.",
        ("vmf_insert_pfn(vma, address, page_to_pfn(page));   /* vm_ops->fault */",),
        ("The program's entry names the kernel's frame: one page, two addresses.",
         f"A bare PFN ({_SPECIAL}, Linux's special bit) that nobody can pin. RSS does not count it."),
    )  # fmt: skip
    start = space.actor.map("range", _GIB * GIB // stage.page_size, "shared", "device=vast")
    page = VirtAddr(start + _HERE)
    seen = stage.watch(lambda: space.actor.read(page), page)
    here, vma = stage.look(page), stage.vma(page)
    smaps = space.actor.smaps(page)
    yield Seen(
        (*([VmaShown(vma)] if vma else []), *seen.shown, EntryShown(here), *frames_of(here)),
        (
            checks.kind(seen.faults, FaultKind.DRIVER),
            checks.faults(seen.access, 1),
            checks.same_frame("The program's frame is the kernel's", first, here),
            checks.flags(here, on=f"P RW {_SPECIAL}"),
            equal("What is read", _FIRST, chr(seen.access.value), "the program"),
            equal("Size and Rss", f"{_GIB << 20:,} KiB, 0 KiB", f"{smaps['Size']:,} KiB, {smaps['Rss']} KiB",
                  checks.SMAPS),
        ),
    )  # fmt: skip
    return page, here


def _driven_out(
    stage: Stage, space: Range, page: VirtAddr, first: Look, here: Look
) -> Generator[Event, str | None, Look]:
    yield Step(
        "Others need the frame",
        f"The module has {_FRAMES} frames. The kernel reads {_FRAMES} pages elsewhere: the oldest page has "
        "to go. It is taken from both sides and all TLBs, then compressed.",
        ("unmap_mapping_range(...);          /* the program's entries */",
         "lzo1x_1_compress(page, 4096, ...);"),
        ("Neither side has an entry. The kernel's tables there were empty: they are gone.",
         "The text is in an object of the slab allocator, small."),
    )  # fmt: skip
    space.drive_out(_FRAMES, _THERE)
    kernels, programs = space.look(_HERE), stage.look(page)
    kept, counts, tables = space.packed(_HERE), space.counts(), space.tables()
    yield Seen(
        (EntryShown(kernels, first), EntryShown(programs, here), *_object(kept)),
        (
            _level(kernels, "PUD"),
            checks.not_present(programs),
            equal("Page tables of the PTE level", counts["tables"], tables.pte, MODULE),
            equal("What the object holds of it", _TEXT.decode(), _part(kept), _RAM),
            equal("Pages kept, and bytes of them", f"1, {len(kept.data) if kept else 0}",
                  f"{counts['packed']}, {counts['packed_bytes']}", MODULE),
        ),
    )  # fmt: skip
    return programs


def _again(
    stage: Stage, space: Range, page: VirtAddr, first: Look, out: Look
) -> Generator[Event, str | None, None]:
    yield Step(
        "Touched again",
        "First by a load of the kernel's that must not sleep. To bring a page in takes a mutex and memory, "
        "so it is refused: its exception table says what then. Next, the program reads.",
        ("copy_from_kernel_nofault(&value, here, 8);   /* by ioctl() */", "char c = page[0];"),
        ("-EFAULT for the first, and nothing changes.",
         "The second gets another frame with the same bytes. The object is freed."),
    )  # fmt: skip
    before = space.counts()["refused"]
    said = space.peek(_HERE)
    refused, still = space.counts()["refused"] - before, space.look(_HERE)
    read = space.actor.read(page)
    back = stage.look(page)
    text = space.actor.peek(page, len(_TEXT))
    yield Seen(
        (EntryShown(back, out), *frames_of(back)),
        (
            equal("The load that must not sleep", "Bad address", said, "the program"),
            equal("Faults refused", 1, refused, MODULE),
            checks.not_present(still),
            checks.faults(read, 1),
            checks.other_frame("The frame is another", first, back),
            _named("The frame of both sides", back, space),
            equal("What is read", _TEXT.decode(), text.decode("ascii", "replace"), "the program"),
            equal("Pages kept", 0, space.counts()["packed"], MODULE),
        ),
    )


def _filled(space: Range) -> Generator[Event, str | None, None]:
    yield Step(
        "Fill it",
        f"{_SOURCE} is written to every other GiB of the range, a thousand pages and more, and the first "
        "copy read back.",
        (f"dd if={_SOURCE} of=/dev/vast seek=...   # {len(_COPIES)} times",),
        ("LZO makes a third of such text. kmalloc() rounds up, and loses part of it.",
         "The range holds more than it takes of RAM."),
    )  # fmt: skip
    slab = space.slab()
    for number in _COPIES:
        space.write_text(number * GIB, f"cat {_SOURCE}")
    said = space.guest.run(f"wc -c <{_SOURCE}; md5sum <{_SOURCE}").check().stdout.split()
    size, expected = int(said[0]), said[1]
    counts, grown = space.counts(), space.slab() - slab
    first = space.checksum(_COPIES[0] * GIB, size)
    page = space.stage.page_size
    held = (counts["packed"] + _FRAMES) * page // KIB
    frames, tables = _FRAMES * page // KIB, (counts["tables"] + space.tables().pmd) * page // KIB
    room = counts["packed_room"] // KIB
    taken = frames + tables + room
    rows = (
        Number("in the range: pages in use", held, "KiB"),
        Number("in RAM: frames", frames, "KiB"),
        Number("in RAM: page tables", tables, "KiB"),
        Number("in RAM: objects, with what kmalloc() adds", room, "KiB"),
        Number("of these, what LZO made", counts["packed_bytes"] // KIB, "KiB"),
    )
    ratio = counts["packed"] * page / max(1, counts["packed_bytes"])
    words = f"Compressed {ratio:.1f} to 1; in the range over in RAM {held / taken:.1f} to 1."
    yield Seen(
        (NumbersShown(f"{MODULE}, after {counts['kernel_faults']:,} faults", rows),),
        (
            equal("MD5 of the first copy", expected, first, "md5sum"),
            holds("In the range, over in RAM", held > 1.5 * taken, "1.5 or more", f"{held / taken:.1f}",
                  MODULE),
            holds("Slabs have grown by that", abs(grown - room) < 0.2 * room, f"about {room:,} KiB",
                  f"{grown:,} KiB", _MEMINFO),
        ),
        words,
    )  # fmt: skip


def _given_back(stage: Stage, space: Range, page: VirtAddr) -> Generator[Event, str | None, None]:
    yield Step(
        "Given back",
        "The program reads there once more, unmaps the range and closes the device. The module goes.",
        (f"munmap(range, {_GIB}UL << 30); close(fd);", "rmmod vast"),
        ("munmap() frees the program's page tables with the addresses.",
         "free_vm_area() would leave the kernel's. The module has freed its own."),
    )  # fmt: skip
    read = space.actor.read(page)
    before, here, kernels = stage.sizes(), stage.look(page), space.look(_HERE)
    space.actor.unmap(VirtAddr(page - _HERE), _GIB * GIB // stage.page_size)
    space.actor.close_device("vast")
    sizes, gone = stage.sizes(before), stage.look(page)
    stage.unload("vast")
    left, tables, areas = space.look(_HERE), space.tables(), space.vmallocinfo()
    stage.check_health()
    was, now = before.rows[2].value, sizes.rows[2].value
    yield Seen(
        (sizes, EntryShown(gone, here), EntryShown(left, kernels)),
        (
            equal("What is read", _FIRST, chr(read.value), "the program"),
            holds("Page tables of the program", now < was, f"fewer than {was} KiB", f"{now} KiB, not {was}",
                  "struct mm_struct"),
            checks.not_present(gone),
            equal("Page tables of the range, PMD and PTE", "0, 0", f"{tables.pmd}, {tables.pte}",
                  checks.TABLES),
            equal("Areas of the module's", 0, len(areas), _AREAS),
        ),
    )  # fmt: skip


def _level(look: Look, expected: str) -> Check:
    """At which level the walk ends."""
    return equal("The kernel's walk ends at", expected, look.level, checks.TABLES)


def _named(claim: str, look: Look, space: Range) -> Check:
    """The kernel's address leads to the frame by QEMU's walk too."""
    expected, found = checks.pfn_text(look.walk.pfn), checks.pfn_text(space.by_qemu(_HERE))
    return equal(claim, expected, found, _QEMU)


def _part(kept: Packed | None) -> str:
    """The text, where it is in what is kept."""
    return _TEXT.decode() if kept and _TEXT in kept.data else "not the text"


def _object(kept: Packed | None) -> tuple[QuoteShown, ...]:
    """What is kept of the page, and what one can read of it."""
    if kept is None:
        return ()
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in kept.data)
    return (QuoteShown(f"at {kept.address:#x}, {kept.owner}, {len(kept.data)} bytes:", (text,)),)


_KPROBES = "echo 1 >/sys/kernel/debug/kprobes/enabled"
LAB = Lab(
    name="vast-range",
    question="Can a driver have 16 GiB of addresses in 512 MiB of RAM?",
    answer="Addresses cost nothing until they are touched. User space has a door for that, "
    "vm_ops->fault. The kernel has none, and what serves as one here is not for production.",
    story=story,
    prepare=_KPROBES,
    undo=_KPROBES,
)
