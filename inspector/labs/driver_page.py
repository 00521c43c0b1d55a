"""A driver's page: who is charged for it, whose RSS it is in, who moves it, who frees it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from inspector.kernel.owners import Owner
from inspector.labs import checks
from inspector.labs.checks import equal, holds, kib
from inspector.labs.lending import ACCOUNT, DONTCOPY, FORGET, MOVABLE, Desk, Loan
from inspector.labs.stage import Stage
from inspector.labs.story import (
    Check,
    EntryShown,
    Event,
    FrameShown,
    Lab,
    Number,
    NumbersShown,
    QuoteShown,
    Seen,
    Step,
    Story,
)
from inspector.trace import FaultKind
from inspector.units import PhysAddr, VirtAddr

_SPECIAL = "SW9"  # _PAGE_BIT_SPECIAL is _PAGE_BIT_SOFTW1 (arch/x86/include/asm/pgtable_types.h)
_MANY, _LOST, _SOME = 256, 64, 16
_STOCK = 16  # KiB
_LRU, _BUDDY, _MMAP, _ANON = 1 << 5, 1 << 10, 1 << 11, 1 << 12  # include/uapi/linux/kernel-page-flags.h
_COUNT, _FLAGS, _GROUP = "/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup"
_STAT, _LOG, _SMAPS = "memory.stat", "the kernel's log", "/proc/PID/smaps"
_SOFT_OFFLINE = "soft_offline_page"
_SOFT_OFFLINE_PATH = f"/sys/devices/system/memory/{_SOFT_OFFLINE}"
_TEXT = b"nobody's"


def story(stage: Stage) -> Story:
    """Take, charge, map in five ways, fork, give back, try to move, forget."""
    desk = Desk(stage)
    plain = yield from _taken(desk)
    paid = yield from _charged(desk)
    numbers = yield from _by_number(desk, plain)
    pages = yield from _by_page(desk, paid)
    yield from _forked(desk, numbers[0], pages[0], pages[2])
    yield from _given_back(desk, numbers, pages)
    yield from _not_moved(desk)
    yield from _forgotten(desk)


def _taken(desk: Desk) -> Generator[Event, str | None, Loan]:
    yield Step(
        "The driver takes a page",
        "The program opens /dev/lender and asks for a page. The driver takes one, and keeps it until the "
        "file is closed. Nothing is mapped yet.",
        ("page = alloc_page(GFP_KERNEL | __GFP_ZERO);   /* in its ioctl() */",),
        ("It has one reference, the driver's, and no entry maps it.",
         "It is in nobody's RSS, and no memory cgroup is charged for it."),
    )  # fmt: skip
    desk.open("pfn")
    before = desk.rss()
    loan = desk.take("pfn", "pfn")
    after = desk.rss(before)
    yield Seen(
        (FrameShown("the page", desk.frame(loan)), after),
        (
            _counts(desk, "1/0", loan),
            equal("Entries that map it", 0, desk.words(_COUNT, loan.frames)[0], _COUNT),
            equal("The cgroup that is charged for it", 0, desk.words(_GROUP, loan.frames)[0], _GROUP),
            _grown(before, after, 0),
        ),
    )
    return loan


def _charged(desk: Desk) -> Generator[Event, str | None, Loan]:
    yield Step(
        "Who is charged",
        f"{_MANY} pages more, then {_MANY} with __GFP_ACCOUNT: a charge to the memory cgroup of the one who "
        "asks. Its limit holds only for what is charged to it.",
        ("alloc_page(GFP_KERNEL | __GFP_ZERO);",
         "alloc_page(GFP_KERNEL | __GFP_ZERO | __GFP_ACCOUNT);"),
        (f"The first {_MANY} cost the cgroup nothing, the others {_MANY * 4:,} KiB of kernel memory: charged "
         "where they are taken, not where they are mapped.",
         "RSS is the same as before."),
    )  # fmt: skip
    path, inode = desk.group()
    hint = "" if path != "/" else "the root cgroup is charged for nothing: is the program in one of its own?"
    desk.open("free", "page")
    start, rss = desk.charged(), desk.rss()
    free = desk.take("free", "page", _MANY)
    without = desk.charged()
    paid = desk.take("page", "page", _MANY, ACCOUNT)
    paying = desk.charged()
    rows = (
        Number(f"kernel, after {_MANY} pages of GFP_KERNEL", without, "KiB", start),
        Number(f"kernel, after {_MANY} of GFP_KERNEL_ACCOUNT", paying, "KiB", without),
    )
    groups = desk.words(_GROUP, paid.frames)
    desk.give_back(free)
    yield Seen(
        (NumbersShown(f"{_STAT} of {path}", rows),),
        (
            _charge("Charged without __GFP_ACCOUNT", 0, without - start, hint),
            _charge("Charged with it", _MANY * 4, paying - without, hint),
            equal(f"Pages charged to {path}", _MANY, groups.count(inode), _GROUP, hint),
            _grown(rss, desk.rss(), 0),
        ),
    )
    return paid


def _by_number(desk: Desk, plain: Loan) -> Generator[Event, str | None, tuple[Loan, Loan]]:
    yield Step(
        "Mapped by its number",
        "Now the driver maps a page, and gives its PFN alone. VM_PFNMAP says of the VMA that its entries do "
        "not stand for pages.",
        ("vmf_insert_pfn(vma, address, pfn);                       /* at a fault */",
         "remap_pfn_range(vma, address, pfn, 4096, vm_page_prot);  /* at mmap() */"),
        (f"The entries have {_SPECIAL}, which is Linux's special bit.",
         "Nobody counts: refcount 1, mapcount 0, no RSS. pagemap tells no frame."),
    )  # fmt: skip
    desk.open("remap")
    before = desk.rss()
    plain, remapped = desk.map(plain), desk.map(desk.take("remap", "remap"))
    seen = desk.stage.watch(lambda: desk.actor.write(plain.va, 7), plain.va)
    desk.actor.write(remapped.va, 8)
    one, other = desk.look(plain), desk.look(remapped)
    told = desk.actor.pagemap(plain.va).pfn
    yield Seen(
        (*seen.shown, EntryShown(one), EntryShown(other), FrameShown(plain.call, desk.frame(plain))),
        (
            checks.kind(seen.faults, FaultKind.DRIVER),
            checks.flags(one, on=_SPECIAL),
            checks.flags(other, on=_SPECIAL),
            equal("VmFlags: pf is VM_PFNMAP", "pf, pf io", desk.vm_flags(plain, remapped), _SMAPS),
            _counts(desk, "1/0, 1/0", plain, remapped),
            equal("Rss of the mappings", "0, 0 KiB", desk.rss_of(plain, remapped), _SMAPS),
            equal("pagemap", "no frame", checks.pfn_text(told), checks.PAGEMAP),
            _grown(before, desk.rss(), 0),
        ),
    )
    return plain, remapped


def _by_page(desk: Desk, paid: Loan) -> Generator[Event, str | None, tuple[Loan, Loan, Loan]]:
    yield Step(
        "Mapped as a page",
        f"Three ways give a struct page. The first maps one of the {_MANY} that are charged.",
        ("vm_insert_page(vma, address, page);    /* at mmap(), one */",
         "vm_map_pages(vma, pages, count);       /* at mmap(), all */",
         "get_page(page); vmf->page = page;      /* at a fault     */"),
        (f"No {_SPECIAL}. Each entry holds a reference, and is counted: mapcount 1.",
         "RSS grows by what is mapped, as file pages: a /dev file is one too.",
         "VM_MIXEDMAP for the first two. The third needs no flag."),
    )  # fmt: skip
    desk.open("pages", "fault")
    before = desk.rss()
    loans = desk.map(paid), desk.map(desk.take("pages", "pages")), desk.map(desk.take("fault", "fault"))
    for loan in loans:
        desk.actor.write(loan.va, 9)
    look, after = desk.look(loans[0]), desk.rss(before)
    entries = ", ".join(str(desk.words(_COUNT, loan.frames[:1])[0]) for loan in loans)
    yield Seen(
        (EntryShown(look), *(FrameShown(loan.call, desk.frame(loan)) for loan in loans), _file(after)),
        (
            checks.flags(look, off=_SPECIAL),
            equal("VmFlags: mm is VM_MIXEDMAP", "mm, mm, none", desk.vm_flags(*loans), _SMAPS),
            _counts(desk, "2/1, 2/1, 2/1", *loans),
            equal("Entries that map them", "1, 1, 1", entries, _COUNT),
            equal("Rss of the mappings", "4, 4, 4 KiB", desk.rss_of(*loans), _SMAPS),
            _grown(before, after, 12),
        ),
    )
    return loans


def _forked(desk: Desk, number: Loan, page: Loan, fault: Loan) -> Generator[Event, str | None, None]:
    stage, parent = desk.stage, desk.actor
    yield Step(
        "Fork",
        "Of a shared mapping fork() copies the entries only where a page fault might not bring them back: "
        "with VM_PFNMAP or VM_MIXEDMAP.",
        ("pid_t child = fork();", "char c = page[0];   /* in the child, of vmf->page */"),
        ("vmf_insert_pfn, vm_insert_page: copied. The second counts: mapcount 2.",
         "vmf->page: not copied. As the child reads, the driver is asked again.",
         "VM_DONTCOPY: the child does not even have the mapping."),
    )  # fmt: skip
    kept = desk.lend("page", DONTCOPY, "kept")
    parent.write(kept.va, 9)
    loans = number, page, fault, kept
    before = [_mapped(desk, loan) for loan in loans]
    child = parent.fork()
    after = [_mapped(desk, loan) for loan in loans]
    names = *(loan.call for loan in loans[:3]), "VM_DONTCOPY"
    rows = tuple(
        Number(f"addresses of the page of {name}", now, "", was)
        for name, now, was in zip(names, after, before, strict=True)
    )
    pss = parent.smaps(page.va)["Pss"]
    has = "a mapping" if stage.vma(kept.va, child) or child.smaps(kept.va) else "no mapping"
    seen = stage.watch(lambda: child.read(fault.va), fault.va, child)
    yield Seen(
        (NumbersShown("all page tables, before and after fork()", rows), *seen.shown),
        (
            equal("Addresses after fork()", "2, 2, 1, 1", ", ".join(map(str, after)), checks.TABLES),
            _counts(desk, "1/0, 3/2", number, page),
            kib("Pss of vm_insert_page's mapping, which two share", 2, pss, checks.SMAPS),
            equal("With VM_DONTCOPY the child has", "no mapping", has, _SMAPS),
            checks.kind(seen.faults, FaultKind.DRIVER),
            equal("What the child reads there", 9, seen.access.value, "the child"),
        ),
    )
    parent.reap()
    desk.give_back(kept)


def _given_back(
    desk: Desk, numbers: tuple[Loan, Loan], pages: tuple[Loan, Loan, Loan]
) -> Generator[Event, str | None, None]:
    actor, guest = desk.actor, desk.guest
    number, page = numbers[0], pages[0]
    yield Step(
        "Given back",
        "The child has exited: its references are put. Now munmap(), then close().",
        ("munmap(page, 4096);", "close(fd);"),
        ("munmap() puts the entry's reference. A bare PFN has none: that no frame is freed while it is "
         "mapped is up to the driver.",
         "close() leads to the driver's release(). It frees the pages, and ends the charge."),
    )  # fmt: skip
    mapped, frame = desk.counts(number, page), desk.frame(page)
    paying = desk.charged()
    with guest.trace_allocations(actor.pid, pfn=page.frames[0]) as trace:
        actor.unmap(page.va, 1)
    early = list(trace)
    actor.unmap(number.va, 1)
    unmapped, after = desk.counts(number, page), desk.frame(page)
    with guest.trace_allocations(actor.pid, pfn=page.frames[0]) as trace:
        actor.close_device(page.name)
    freed = list(trace)
    path = [frame.place.split("+")[0] for frame in freed[0].stack[:4]] if freed else []
    releases = next((name for name in path if name.startswith("lender_")), "nothing of the driver's")
    repaid = paying - desk.charged()
    actor.close_device(number.name)
    desk.give_back(numbers[1], *pages[1:])
    yield Seen(
        (
            FrameShown(page.call, after, frame),
            QuoteShown("what frees it, innermost first:", (" < ".join(path),)),
        ),
        (
            equal("refcount/mapcount, mapped", "1/0, 2/1", mapped, checks.FRAME),
            equal("refcount/mapcount, unmapped", "1/0, 1/0", unmapped, checks.FRAME),
            equal("Freed by munmap()", 0, len(early), checks.TRACER),
            equal("Freed by close(), in", "lender_release", releases, checks.TRACER),
            _charge("No longer charged", _MANY * 4, repaid),
        ),
    )


def _not_moved(desk: Desk) -> Generator[Event, str | None, None]:
    stage, actor, guest = desk.stage, desk.actor, desk.guest
    yield Step(
        "A movable page that is not moved",
        "GFP_HIGHUSER_MOVABLE takes pages from pageblocks that are meant to be emptied. The kernel is asked "
        "to move two pages, one of the driver's and one of the program's own; then to compact memory.",
        (f"echo ADDRESS >{_SOFT_OFFLINE_PATH}", "echo 1 >/proc/sys/vm/compact_memory"),
        ("The program's is on an LRU list, and moves.",
         "The driver's is on none, and has no movable_operations: EIO. It stays."),
    )  # fmt: skip
    desk.open("movable")
    loan = desk.map(desk.take("movable", "page", _SOME, MOVABLE), _SOME)
    actor.touch(loan.va, _SOME)
    own = actor.map("own", 1)
    actor.write(own, 5)
    ours, theirs = stage.look(own), desk.look(loan)
    assert ours.frame is not None
    lie = desk.blocks([ours.frame.pfn, *loan.frames])
    words = desk.words(_FLAGS, [ours.frame.pfn, loan.frames[0]])
    lru = ", ".join("yes" if word & _LRU else "no" for word in words)
    said = [_offline(desk, pfn * stage.page_size) for pfn in (ours.frame.pfn, loan.frames[0])]
    before = _migrated(desk)
    guest.run("echo 1 >/proc/sys/vm/compact_memory", 120).check()
    compacted = Number("pages that compaction has moved", _migrated(desk) - before, "")
    moved = stage.look(own)
    stayed = [
        stage.look(VirtAddr(loan.va + index * stage.page_size)).walk.pfn == pfn
        for index, pfn in enumerate(loan.frames)
    ]
    logged = [found[0] for found in stage.log(r"Memory failure: .*: unhandlable page")]
    yield Seen(
        (
            FrameShown("the driver's", desk.frame(loan), theirs.frame),
            NumbersShown("pgmigrate_success in /proc/vmstat", (compacted,)),
            QuoteShown(f"{_LOG}:", tuple(logged[-1:])),
        ),
        (
            equal("In movable pageblocks", len(lie), lie.count("Movable"), "the pageblocks' bitmap"),
            equal("On an LRU list: the program's, the driver's", "yes, no", lru, _FLAGS),
            equal("Moving the program's", "done", said[0], _SOFT_OFFLINE),
            checks.other_frame(f"It has moved from {checks.pfn_text(ours.walk.pfn)} to", ours, moved),
            equal("Moving the driver's", "Input/output error", said[1], _SOFT_OFFLINE),
            equal("Of the driver's, still where they were", _SOME, sum(stayed), checks.TABLES),
        ),
    )
    desk.give_back(loan)


def _forgotten(desk: Desk) -> Generator[Event, str | None, None]:
    stage, guest = desk.stage, desk.guest
    yield Step(
        "Forgotten",
        f"A driver that leaks: it takes {_LOST} pages, and its release() does not free them. Then the module "
        "goes too.",
        ("close(fd);", "rmmod lender"),
        ("They stay in use, mapped by nobody, and nothing that the kernel keeps says whose they are: "
         "unmarked.",
         "What was written to them is still there."),
    )  # fmt: skip
    before = guest.owners().counts()[Owner.UNMARKED]
    desk.open("lost")
    loan = desk.map(desk.take("lost", "page", _LOST, FORGET), _LOST)
    desk.actor.poke(loan.va, _TEXT)
    mapped = desk.frame(loan)
    desk.give_back(loan)
    stage.unload("lender")
    owners = guest.owners()
    rows = owners.rows[list(loan.frames)]
    left = (rows["owner"] == Owner.UNMARKED) & (rows["refcount"] == 1) & (rows["mapcount"] == 0)
    known = [word & (_LRU | _BUDDY | _MMAP | _ANON) for word in desk.words(_FLAGS, loan.frames)]
    logged = stage.log(r"lender: loan \d+ forgets (\d+) pages")
    found = guest.read_phys(PhysAddr(loan.frames[0] * stage.page_size), len(_TEXT))
    row = Number("frames in use and unmarked", owners.counts()[Owner.UNMARKED], "", before)
    yield Seen(
        (FrameShown("the first", desk.frame(loan), mapped), NumbersShown("all of memory", (row,))),
        (
            equal("Pages that the driver forgets", _LOST, sum(int(each[1]) for each in logged), _LOG),
            equal("Of them unmarked, refcount 1, mapcount 0", _LOST, int(left.sum()), "all of memory"),
            equal("Entries that map them", 0, sum(desk.words(_COUNT, loan.frames)), _COUNT),
            equal("Not free, anonymous, mapped, on an LRU list", _LOST, known.count(0), _FLAGS),
            equal("What the first still holds", _TEXT.decode(), found.decode("ascii", "replace"), "RAM"),
        ),
    )


def _counts(desk: Desk, expected: str, *loans: Loan) -> Check:
    """Refcount and mapcount of each one's first page."""
    return equal("refcount/mapcount", expected, desk.counts(*loans), checks.FRAME)


def _grown(before: NumbersShown, after: NumbersShown, expected: int) -> Check:
    """By how much the program's RSS has grown, all counters together."""
    was, now = (sum(row.value for row in shown.rows) for shown in (before, after))
    return kib("RSS has grown by", expected, now - was, "rss_stat")


def _file(rss: NumbersShown) -> NumbersShown:
    """The counter of file pages alone."""
    return replace(rss, rows=rss.rows[:1])


def _charge(claim: str, expected: int, found: int, hint: str = "") -> Check:
    """A charge in KiB. Small objects' is taken by the page, of which a CPU keeps some (C: obj_stock_pcp)."""
    wanted = f"{expected:,} KiB, {_STOCK} more or less"
    return holds(claim, abs(found - expected) <= _STOCK, wanted, f"{found:,} KiB", _STAT, hint)


def _mapped(desk: Desk, loan: Loan) -> int:
    """How many addresses of processes lead to its first page."""
    return sum(alias.task is not None for alias in desk.guest.mapped_by(loan.frames[0]))


def _migrated(desk: Desk) -> int:
    """How many pages the kernel has migrated since it booted."""
    return int(desk.guest.run("sed -n 's/^pgmigrate_success //p' /proc/vmstat").check().stdout)


def _offline(desk: Desk, address: int) -> str:
    """Ask the kernel to move what is at a physical address away; `done`, or why not."""
    done = desk.guest.run(f"echo {address:#x} >{_SOFT_OFFLINE_PATH}")
    return done.stderr.strip().rpartition(": ")[2] if done.returncode else "done"


_CGROUP = "/sys/fs/cgroup/driver-page"
LAB = Lab(
    name="driver-page",
    question="Who pays for a driver's page?",
    answer="RSS counts it where it is mapped as a page, a cgroup pays where __GFP_ACCOUNT is said. Nobody "
    "moves it, and nobody but the driver frees it.",
    story=story,
    prepare=f"mkdir -p {_CGROUP} && echo 0 >{_CGROUP}/cgroup.procs",
    undo=f"i=20; until rmdir {_CGROUP} || [ $((i -= 1)) = 0 ]; do sleep 0.05; done",
)
