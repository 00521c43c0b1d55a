"""DMA buffers: which the kernel may move, which it may not, and where a transfer goes astray."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from inspector.errors import LabFailed
from inspector.kernel.frames import FrameState
from inspector.labs import checks, edu, prepare
from inspector.labs.checks import equal, holds, kib, pfn_text
from inspector.labs.edu import DMESG, DRIVER, KINDS, REGISTERS, Buffer, Engine, names
from inspector.labs.stage import Stage
from inspector.labs.story import (
    FrameShown,
    Lab,
    Number,
    NumbersShown,
    QuoteShown,
    Seen,
    Step,
    Story,
)
from inspector.units import Pfn, VirtAddr

_PIN = 1024  # GUP_PIN_COUNTING_BIAS (include/linux/mm.h): what a pin adds to the refcount
_GROUP = "/sys/fs/cgroup/dma"
_COMPACT, _UNEVICTABLE = "/proc/sys/vm/compact_memory", "/proc/sys/vm/compact_unevictable_allowed"
_OFFLINE = "/sys/devices/system/memory/soft_offline_page"
_VMSTAT, _KERNEL = "/proc/vmstat", "the kernel's answer"
_MOVED = "moved"
_STAY = KINDS[:-1]
_PARTS = 16
_LIST_FLAGS = ("lru", "unevictable")
_HEAD = f"  {'buffer':<9} {'frame':>8}  {'whose':<18} {'pageblock':<11} {'refcount':>8}  flags"


@dataclass(frozen=True, slots=True)
class _Others:
    """Other memory of the program's: where, how many pages, and the frames under them by address."""

    start: VirtAddr
    count: int


def story(stage: Stage) -> Story:
    """Take the five, use them; reclaim, compact, migrate; use them again, and let go."""
    actor, guest = stage.actor, stage.guest
    stage.load("edu", mask=32)
    stage.require_type("struct edu_buffer")  # the driver's book of its buffers
    engine = Engine(stage)
    yield Step(
        "Five buffers",
        "A driver takes memory for a device, in four ways; and in a wrong one: it looks up where a locked "
        "page lies, and lets go of the page.",
        ("__get_free_pages(GFP_KERNEL, 0);  kmalloc(1024, GFP_KERNEL);",
         "dma_alloc_coherent(dev, 1024, &bus, GFP_KERNEL);",
         "pin_user_pages_fast(va, 1, FOLL_WRITE | FOLL_LONGTERM, &page);",
         "get_user_pages_fast(va, 1, FOLL_WRITE, &page); put_page(page); /* stale */"),
        (f"A pin is {_PIN} references: that is all that tells it.",
         "The locked page is unevictable. Nobody but its entry holds it."),
    )  # fmt: skip
    own = dict(zip(("stale", "pinned", "plain"), _low_pages(stage), strict=True))
    actor.lock(own["stale"], 1)
    pins = _vmstat(stage, "nr_foll_pin_acquired")
    buffers = [engine.take(kind, own.get(kind)) for kind in KINDS]
    by_kind = {buffer.kind: buffer for buffer in buffers}
    stale, pinned = by_kind["stale"], by_kind["pinned"]
    frames = {kind: stage.frame(by_kind[kind].pfn) for kind in KINDS}
    paged = [kind for kind in ("pinned", "stale") if actor.pagemap(own[kind]).pfn == by_kind[kind].pfn]
    yield Seen(
        (_table(stage, buffers),),
        (
            names("They lie where the driver says", KINDS, _kept(engine, buffers), DMESG),
            names("And where pagemap says", ("pinned", "stale"), paged, checks.PAGEMAP),
            equal(
                "refcount, pinned and stale",
                f"{_PIN + 1}, 1",
                f"{frames['pinned'].refcount}, {frames['stale'].refcount}",
                checks.FRAME,
            ),
            equal("Pins taken", 1, _vmstat(stage, "nr_foll_pin_acquired") - pins, _VMSTAT),
            kib("Locked", 4, actor.smaps(own["stale"])["Locked"], checks.SMAPS),
        ),
    )

    yield Step(
        "There and back",
        "Each buffer gets a text of its own, by the CPU. The device copies it to its own memory. The CPU "
        "wipes the buffer, and the device copies the text back.",
        ("ioctl(fd, EDU_SEND);   memset(buffer, 0, 1024);   ioctl(fd, EDU_RECEIVE);",),
        ("The text is in guest RAM, in the frames of step 1.",
         "The device was told a physical address: there is no IOMMU between."),
    )  # fmt: skip
    before = _interrupts(stage)
    for buffer in buffers:
        engine.fill(buffer, _text(buffer.kind))
        engine.ask((buffer,), edu.SEND)
        engine.fill(buffer, b"\0")
        engine.ask((buffer,), edu.RECEIVE)
    found = {b.kind: guest.read_phys(b.place, 24) for b in buffers}
    source, target, count = engine.registers()
    bounced = [buffer.kind for buffer in buffers if int(buffer.bus) != buffer.place]
    hint = f"out of the device's reach: {', '.join(bounced)}; 512 MiB of memory is enough" if bounced else ""
    yield Seen(
        (
            QuoteShown(
                f"  {'buffer':<9} {'bus address':>12}  in RAM there, now",
                tuple(
                    f"{b.kind:<9} {b.bus:#12x}  {found[b.kind].decode('ascii', 'replace')}" for b in buffers
                ),
            ),
        ),
        (
            names("The text is in RAM", KINDS, _with(found, _text), "guest RAM", hint),
            names("And the CPU reads it", KINDS, _with(_seen(engine, buffers), _text), "the program"),
            equal(
                "The last transfer: from, to, bytes",
                f"0x40000, {stale.bus:#x}, {edu.SIZE}",
                f"{source:#x}, {target:#x}, {count}",
                REGISTERS,
            ),
            equal("Interrupts", 2 * len(KINDS), _interrupts(stage) - before, "/proc/interrupts"),
        ),
    )

    yield Step(
        "Reclaim",
        "The kernel is told to get memory back from the program, and there is swap. The program has a "
        "sixth page, an ordinary one.",
        (f"echo 64M >{_GROUP}/memory.reclaim",),
        ("The ordinary page goes. The pinned one stays; the locked one too: that is mlock().",
         "Reclaim does not see the driver's own pages: they are on none of its lists (lru)."),
    )  # fmt: skip
    guest.run(f"for i in 1 2 3 4; do echo 64M >{_GROUP}/memory.reclaim; done")
    lists = [kind for kind in KINDS if "lru" in stage.frame(by_kind[kind].pfn).flags]
    plain = stage.look(own["plain"])
    swapped = actor.pagemap(own["plain"]).swap is not None
    hint = "" if guest.swap_areas() else "this guest has no swap"
    stat = guest.run(f"grep unevictable {_GROUP}/memory.stat").stdout.split()
    yield Seen(
        (_table(stage, buffers),),
        (
            holds("The ordinary page", swapped, "swapped out", plain.meaning or "in memory",
                  checks.PAGEMAP, hint),
            names("Still in their frames", KINDS, _kept(engine, buffers), checks.TABLES),
            names("On reclaim's lists", ("pinned", "stale"), lists, checks.FRAME),
            equal("Unevictable bytes", "4096", stat[-1] if stat else "unknown", "memory.stat"),
        ),
    )  # fmt: skip

    yield Step(
        "Compaction",
        "The program fills half of the free memory and gives parts of it back: holes. The kernel is "
        "told to compact, as it does by itself for a huge page: from low frames into high holes.",
        (f"echo 1 >{_COMPACT}",),
        ("Thousands of ordinary pages move, and the locked one with them.",
         "The driver's do not: they are on no list. Nor the pinned one: too many references."),
    )  # fmt: skip
    others = _Others(*_half_of_memory(stage, "others"))
    actor.thin(others.start, others.count)
    was, migrated = _frames_under(stage, others), _vmstat(stage, "pgmigrate_success")
    guest.run(f"echo 1 >{_COMPACT}").check()
    now = _frames_under(stage, others)
    moved = sum(now.get(va) != pfn for va, pfn in was.items())
    migrated = _vmstat(stage, "pgmigrate_success") - migrated
    place, word = stage.look(own["stale"]), actor.pagemap(own["stale"])
    allowed = guest.run(f"cat {_UNEVICTABLE}").stdout.strip()
    hint = f"{_UNEVICTABLE} is {allowed}" if allowed != "1" else "compaction came to an end before it"
    yield Seen(
        (
            _table(stage, buffers, engine),
            NumbersShown(
                "the page tables", (Number("ordinary pages that moved", moved, f"of {len(was):,}"),)
            ),
        ),
        (
            names("Still in their frames", _STAY, _kept(engine, buffers), checks.TABLES, hint),
            checks.pagemap(place, word),
            holds("Ordinary pages that moved", moved > 0, "some", f"{moved:,}", checks.TABLES),
            holds("Pages that migrated", migrated > moved, f"more than {moved:,}", f"{migrated:,}", _VMSTAT),
        ),
    )

    yield Step(
        "Migration, by name",
        "Frame by frame, the kernel is told to move the page away, as it does for memory that goes bad, is "
        "taken out, or is nearer to another CPU.",
        (f"echo 0xADDRESS >{_OFFLINE}",),
        ("EIO for the driver's: the kernel does not know what they are for.",
         f"EBUSY for the pinned page: its entry accounts for 1 reference, and there are {_PIN + 1}.",
         "The locked page moves."),
    )  # fmt: skip
    at = {kind: engine.now(by_kind[kind]) for kind in KINDS}
    answers = {kind: _move_away(stage, pfn) for kind, pfn in at.items()}
    said = [found[1] for found in stage.log(r"(0x\w+: page migration failed)")[-1:]]

    def who(answer: str) -> list[str]:
        return [kind for kind in KINDS if answers[kind] == answer]

    yield Seen(
        (
            QuoteShown(
                f"  {'buffer':<9} {'frame':>8}  the kernel's answer",
                tuple(f"{kind:<9} {at[kind] or 0:#8x}  {answer}" for kind, answer in answers.items()),
            ),
            QuoteShown("dmesg:", tuple(said)),
        ),
        (
            names("Not movable", ("pages", "kmalloc", "coherent"), who("Input/output error"), _KERNEL),
            names("Held by more than entries", ("pinned",), who("Device or resource busy"), _KERNEL),
            names("Moved", ("stale",), who(_MOVED), _KERNEL),
            names("Still in their frames", _STAY, _kept(engine, buffers), checks.TABLES),
        ),
    )

    yield Step(
        "The device writes once more",
        "The program touches memory until a page gets the frame that the stale buffer was in, and writes "
        "`mine` to it. Then the buffers are wiped, and the device writes to all five.",
        ("ioctl(fd, EDU_RECEIVE);   /* five times */",),
        ("Four have the text. The stale one has not: nobody told the device that it moved.",
         "The text is in the page that has the frame now, which no driver was ever given."),
    )  # fmt: skip
    victim = _heir(stage, others, stale.pfn)
    actor.poke(victim, b"mine " * 200)
    engine.fill(pinned, _text("device"))
    engine.ask((pinned,), edu.SEND)
    for buffer in buffers:
        engine.fill(buffer, b"\0")
    engine.ask(buffers, edu.RECEIVE)
    read, hit = _seen(engine, buffers), actor.peek(victim, 24)
    lines = [f"{whose:<16} {_shown(data)}" for whose, data in (*read.items(), ("somebody's page", hit))]
    yield Seen(
        (
            FrameShown("somebody's page", stage.frame(stale.pfn)),
            QuoteShown("what the CPU reads:", tuple(lines)),
        ),
        (
            names("The text has come", _STAY, _with(read, lambda _: _text("device")), "the program"),
            equal(
                "Where the device wrote last", f"{stale.place:#x}", f"{engine.registers()[1]:#x}", REGISTERS
            ),
            equal(
                "That frame's page", pfn_text(stale.pfn), pfn_text(actor.pagemap(victim).pfn), checks.PAGEMAP
            ),
            equal("It held `mine`, and now", _shown(_text("device")), _shown(hit), "the program"),
        ),
    )

    yield Step(
        "Let go",
        "The program closes the device. The driver unmaps, unpins, and frees.",
        ("close(fd);",),
        ("The pin is gone: the page may move again. Nothing holds the module.",),
    )
    for kind in KINDS:
        actor.close_device(kind)
    frame = stage.frame(pinned.pfn)
    users = guest.run("cat /sys/module/edu/refcnt").stdout.strip()
    acquired, released = (_vmstat(stage, f"nr_foll_pin_{what}") for what in ("acquired", "released"))
    yield Seen(
        (FrameShown("the pinned page's frame", frame, frames["pinned"]),),
        (
            equal("Buffers on the driver's list", 0, len(engine.book()), DRIVER),
            equal("refcount of the pinned page", 1, frame.refcount, checks.FRAME),
            equal("Pins that are left", 0, acquired - released, _VMSTAT),
            equal("Users of the module", "0", users, "/sys/module/edu/refcnt"),
        ),
    )


def _text(kind: str) -> bytes:
    return f"{kind} was here, ".encode()


def _shown(data: bytes) -> str:
    text = data[:16].rstrip(b"\0").decode("ascii", "replace")
    return text or "zeros"


def _seen(engine: Engine, buffers: Iterable[Buffer]) -> dict[str, bytes]:
    return {buffer.kind: engine.seen(buffer, 24) for buffer in buffers}


def _kept(engine: Engine, buffers: Iterable[Buffer]) -> list[str]:
    """Those whose memory is in the frame where it was when they were taken."""
    return [buffer.kind for buffer in buffers if engine.now(buffer) == buffer.pfn]


def _with(found: Mapping[str, bytes], text: Callable[[str], bytes]) -> list[str]:
    """Those whose bytes begin with their text."""
    return [kind for kind, data in found.items() if data.startswith(text(kind))]


def _table(stage: Stage, buffers: Iterable[Buffer], engine: Engine | None = None) -> QuoteShown:
    """The frames of the buffers when they were taken; with an engine also where they are now."""
    lines = []
    for buffer in buffers:
        page = stage.guest.page(buffer.pfn)
        holders = stage.guest.page(page.head).refcount
        flags = " ".join(flag for flag in _LIST_FLAGS if flag in page.flag_names)
        lines.append(
            f"{buffer.kind:<9} {buffer.pfn:#8x}  {stage.frame(buffer.pfn).owner:<18.18} "
            f"{page.migratetype or '':<11} {holders:>8}  "
            + (edu.move_text(buffer.pfn, engine.now(buffer)) if engine else flags)
        )
    return QuoteShown(_HEAD.replace("flags", "its buffer") if engine else _HEAD, tuple(lines))


def _half_of_memory(stage: Stage, name: str) -> tuple[VirtAddr, int]:
    """Half of what is free, mapped and touched: where, and how many pages."""
    count = stage.guest.meminfo()["MemFree"] * 1024 // stage.page_size // 2
    start = stage.actor.map(name, count)
    stage.actor.touch(start, count)
    return start, count


def _frames_under(stage: Stage, others: _Others) -> dict[int, int]:
    """The frames of those that are present, by address."""
    rows = stage.task().mappings()
    end = others.start + others.count * stage.page_size
    rows = rows[(rows["va"] >= others.start) & (rows["va"] < end)]
    return dict(zip(rows["va"].tolist(), (rows["pa"] // stage.page_size).tolist(), strict=True))


def _low_pages(stage: Stage) -> list[VirtAddr]:
    """Three pages of the program's in low frames: compaction begins there."""
    many = _Others(*_half_of_memory(stage, "many"))
    frames = _frames_under(stage, many)
    low = sorted(sorted(frames, key=lambda va: frames[va])[:3])
    at = many.start
    for va in (*low, many.start + many.count * stage.page_size):
        if va > at:
            stage.actor.unmap(at, (va - at) // stage.page_size)
        at = VirtAddr(va + stage.page_size)
    return [VirtAddr(va) for va in low]


def _drain(stage: Stage) -> None:
    """Have the CPUs' lists emptied: a frame may wait there in a larger block, for which no program asks.

    The kernel does so to soft-offline a free frame, which is lost to it (mm/memory-failure.c,
    __page_handle_poison(): zone_pcp_disable()).
    """
    rows = stage.guest.frames()
    free = rows["pfn"][rows["state"] == FrameState.FREE]
    _move_away(stage, Pfn(int(free[-1])))


def _heir(stage: Stage, others: _Others, pfn: Pfn) -> VirtAddr:
    """Touch memory until the frame is under a page of the program's; where. Raises LabFailed."""
    part = others.count // _PARTS
    for number in range(2 * _PARTS):
        if number == _PARTS:
            stage.actor.thin(others.start, others.count)  # once more from the start
            _drain(stage)
        # The frames on top of the CPU's list are those of the shells that talk to the program: mix them.
        stage.guest.run("sleep 0 | sleep 0 | sleep 0 | sleep 0")
        stage.actor.touch(others.start + number % _PARTS * part * stage.page_size, part)
        for va, frame in _frames_under(stage, others).items():
            if frame == pfn:
                return VirtAddr(va)
    raise LabFailed(f"{pfn_text(pfn)} did not come to the program, it is {stage.frame(pfn).owner}")


def _move_away(stage: Stage, pfn: Pfn | None) -> str:
    """Have the kernel migrate a page; its answer."""
    address = (pfn or 0) * stage.page_size
    done = stage.guest.run(f"echo {address:#x} >{_OFFLINE}")
    return _MOVED if not done.returncode else done.stderr.strip().rpartition(": ")[2]


def _vmstat(stage: Stage, name: str) -> int:
    # CPUs keep some of each count to themselves (mm/vmstat.c: stat_refresh adds them).
    command = f"echo 1 >/proc/sys/vm/stat_refresh; grep '^{name} ' {_VMSTAT}"
    return int(stage.guest.run(command).check().stdout.split()[1])


def _interrupts(stage: Stage) -> int:
    lines = re.findall(r"^ *\w+:((?: +\d+)+) .*\bedu$", stage.guest.run("cat /proc/interrupts").stdout, re.M)
    return sum(int(count) for counts in lines for count in counts.split())


_SWAP, _NO_SWAP = prepare.SWAP
_ALLOW, _AS_BEFORE = prepare.setting(_UNEVICTABLE, "1")
LAB = Lab(
    name="dma-buffer",
    question="Does my DMA buffer move?",
    answer=(
        "A driver's own pages and pinned ones stay; what is only locked moves, and a device that was told "
        "where it lay writes into somebody else's page."
    ),
    story=story,
    prepare=f"{_SWAP} && mkdir -p {_GROUP} && echo 0 >{_GROUP}/cgroup.procs && {_ALLOW}",
    undo=f"{_AS_BEFORE}; {_NO_SWAP}; rmdir {_GROUP}",
)
