"""A page's life: how the kernel knows which frame is free, hands it out, and gets it back."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import LabFailed
from inspector.kernel.frames import FrameState
from inspector.labs import checks, prepare
from inspector.labs.checks import equal, holds
from inspector.labs.free_lists import BUDDYINFO, ZONEINFO, Block, FreeLists, witnessed
from inspector.labs.stage import Stage
from inspector.labs.story import (
    BlockShown,
    EntryShown,
    Frame,
    FrameShown,
    Lab,
    Number,
    NumbersShown,
    QuoteShown,
    Seen,
    Step,
    Story,
)
from inspector.trace import Allocation
from inspector.units import Pfn, PhysAddr, VirtAddr

_FRACTION = "/proc/sys/vm/percpu_pagelist_high_fraction"
_KPAGEFLAGS, _KPAGECOUNT = "/proc/kpageflags", "/proc/kpagecount"
_KPF_BUDDY, _KPF_ANON = 1 << 10, 1 << 12  # include/uapi/linux/kernel-page-flags.h
_LISTS = "the free lists"
_PAGES = 256
_MANY = 768  # more than a CPU's list may have
_OTHERS = 8
_AROUND = 16  # pages freed before and after ours: those freed last go to who asks next
_LEAST = 3  # the order of a block that is worth following
_TRIES = 8
_LARGEST = 8  # of one that fits a terminal
_LINE = 76


@dataclass(frozen=True, slots=True)
class Followed:
    """A page of the program's, whose frame was in `block`: `pfns` are all that it touched from `start` on."""

    start: VirtAddr
    address: VirtAddr
    pfn: Pfn
    pfns: frozenset[int]
    block: Block
    was: FreeLists
    now: FreeLists


def story(stage: Stage) -> Story:
    """Look at what is free, touch pages, give some back, give all back."""
    actor, guest = stage.actor, stage.guest
    _spill(stage)
    for number in range(_OTHERS):
        actor.touch(actor.map(f"others{number}", _MANY), _MANY)
    actor.open("flags", _KPAGEFLAGS)
    actor.open("count", _KPAGECOUNT)

    yield Step(
        "Which frames are free",
        "mem_map has a struct page for each frame, but nobody searches it. Free frames are on lists: the "
        "buddy allocator's, in blocks of 1, 2, 4, ... frames; and each CPU has one of single frames.",
        (f"cat {BUDDYINFO} {ZONEINFO}",),
        ("The lists, followed link by link, hold what the kernel counts.",
         "A block's first struct page says `buddy`, and its order in `private`."),
    )  # fmt: skip
    free, said = witnessed(guest)
    zone = max(free.zones, key=lambda zone: zone.managed)
    orders, theirs = free.by_order(zone), said.orders.get(zone.name, ())
    yield Seen(
        (_numbers(free),),
        (
            equal(f"{zone.name}, blocks of order 0, 1, ...", _words(theirs), _words(orders), BUDDYINFO),
            equal(f"{zone.name}, on CPUs' lists", said.on_lists.get(zone.name), zone.per_cpu_free, ZONEINFO),
            equal("All zones, on CPUs' lists", sum(each.per_cpu_free for each in free.zones),
                  free.count(FrameState.PER_CPU), "pcp->count"),
            equal("Blocks whose struct page has the order", len(free.blocks), free.marked, checks.FRAME),
        ),
    )  # fmt: skip

    yield Step(
        "Out of a block",
        f"The program touches {_PAGES} pages. The CPU's list is filled up out of the smallest block there "
        "is: half of it goes to the list of the next lower order, half of the rest below, and so on.",
        (f"for (i = 0; i < {_PAGES}; i++) page[i * 4096] = 1;",),
        ("Before, our frame @ was in a free block: a digit is the order of it.",
         "Now the block is in pieces, each on the list of its own order."),
    )  # fmt: skip
    ours, asked = _follow(stage)
    block, pfn = ours.block, ours.pfn
    left = max((ours.now.order(Pfn(other)) for other in block.pfns), default=-1)
    first = stage.look(ours.address)
    assert first.frame is not None
    yield Seen(
        (
            BlockShown("before", block.start, ours.was.letters(block, (), pfn)),
            BlockShown("now", block.start, ours.now.letters(block, ours.pfns, pfn)),
            QuoteShown("asked for by:", (_callers(asked),)),
        ),
        (
            holds("The largest piece that is left", left < block.order, f"below order {block.order}",
                  _order(left), _LISTS),
            holds("GFP flags", "GFP_HIGHUSER_MOVABLE" in asked.gfp_names, "GFP_HIGHUSER_MOVABLE",
                  "|".join(asked.gfp_names), checks.TRACER),
            equal("Frames asked for", 1, 1 << asked.order, checks.TRACER),
            checks.pagemap(first, actor.pagemap(ours.address)),
        ),
    )  # fmt: skip

    yield Step(
        "In use",
        "No list has it now. Whose it is stands in its struct page, and a page table leads to it.",
        expect=(
            "refcount goes from 0 to 1, and mapcount is 1.",
            "The kernel's own word, too, is that it is in no free block.",
        ),
    )
    flags, count = _kpage(stage, pfn)
    yield Seen(
        (EntryShown(first), FrameShown("our frame", first.frame, _before(ours, stage.page_size))),
        (
            checks.owner(first, "anon"),
            checks.mapcount(first, 1),
            equal("refcount of the frame", 1, first.frame.refcount, checks.FRAME),
            equal("Entries that map it", 1, count, _KPAGECOUNT),
            equal("Anonymous, in a free block", "yes, no", _yes(flags & _KPF_ANON, flags & _KPF_BUDDY),
                  _KPAGEFLAGS),
        ),
    )  # fmt: skip

    yield Step(
        "Freed, to the CPU's list",
        f"The program gives {2 * _AROUND} pages back, ours in their midst. They are not merged yet: they are "
        "likely to be asked for soon, and this CPU's cache may still have their bytes.",
        (f"madvise(page + n, {2 * _AROUND} * 4096, MADV_DONTNEED);",),
        ("refcount is 0. Nothing in the struct page tells a frame on a CPU's list (c).",
         "For the buddy allocator it is not free."),
    )  # fmt: skip
    start = VirtAddr(ours.address - _AROUND * stage.page_size)
    with guest.trace_allocations(actor.pid, pfn=pfn) as trace:
        actor.ask(f"advise {start:#x} {2 * _AROUND} drop")
    records = [record for record in trace if record.freed]
    with guest.paused():
        lists, frame = FreeLists.read(guest), stage.frame(pfn)
    flags, count = _kpage(stage, pfn)
    gone = actor.pagemap(ours.address).pfn
    yield Seen(
        (
            BlockShown("now", block.start, lists.letters(block, ours.pfns, pfn)),
            QuoteShown("given back by:", tuple(_callers(record) for record in records[-1:])),
            FrameShown("our frame", frame, first.frame),
        ),
        (
            equal("It is", _STATES[FrameState.PER_CPU], _state(lists, pfn), _LISTS),
            equal("refcount of the frame", 0, frame.refcount, checks.FRAME),
            equal("The program has there", "no frame", checks.pfn_text(gone), checks.PAGEMAP),
            equal("Mapped, in a free block", "no, no", _yes(count, flags & _KPF_BUDDY), _KPAGEFLAGS),
        ),
    )  # fmt: skip

    yield Step(
        "Merged",
        "The program frees all it has. The CPU's list grows too long, and the oldest frames go back to the "
        "buddy allocator. Where a frame's buddy is free too, the two become one block; and so on.",
        ("munmap(page, ...);", "munmap(others, ...);"),
        (
            "Our frame is in a free block again. It is not merged further: the block's buddy, its neighbour "
            "of the same size, is not free as a whole.",
            "The block's first struct page says so.",
        ),
    )
    actor.unmap(ours.start, len(ours.pfns))
    for number in range(_OTHERS):
        _renew(stage)
        actor.ask(f"unmap others{number} {_MANY}")
        with guest.paused():
            lists, last = FreeLists.read(guest), stage.frame(pfn)
            whole = lists.block(pfn)
            head = guest.page(whole.start if whole else pfn)
        if lists.order(pfn) >= block.order:
            break
    flags, count = _kpage(stage, pfn)
    yield Seen(
        (
            BlockShown("now", block.start, lists.letters(block, (), pfn)),
            FrameShown("our frame", last, frame),
        ),
        (
            holds("It is in a free block", lists.order(pfn) > 0, "of two frames or more",
                  _order(lists.order(pfn)) if whole else f"it is {_state(lists, pfn)}", _LISTS, _hint(stage)),
            equal("The block's buddy", "not free as a whole", _buddy(lists, whole), _LISTS),
            equal("The block's first struct page", f"buddy, private {lists.order(pfn)}",
                  f"{head.page_type}, private {head.private}", checks.FRAME),
            equal("Mapped, in a free block", "no, yes", _yes(count, flags & _KPF_BUDDY), _KPAGEFLAGS),
        ),
    )  # fmt: skip


_STATES = {FrameState.FREE: "in a free block", FrameState.PER_CPU: "on a CPU's list"}


def _state(lists: FreeLists, pfn: Pfn) -> str:
    return _STATES.get(lists.state(pfn), "in use")


def _buddy(lists: FreeLists, block: Block | None) -> str:
    """Whether the frames that a block would be merged with are a free block (C: __find_buddy_pfn())."""
    if block is None or block.order == lists.largest:
        return "not free as a whole"
    other = lists.block(Pfn(block.start ^ (1 << block.order)))
    free = other is not None and other.order == block.order
    return f"free, of order {block.order}" if free else "not free as a whole"


def _order(order: int) -> str:
    return "none" if order < 0 else f"order {order}"


def _yes(*values: int) -> str:
    return ", ".join("yes" if value else "no" for value in values)


def _words(counts: tuple[int, ...]) -> str:
    return " ".join(map(str, counts))


def _spill(stage: Stage) -> None:
    """Take many pages and free them: a CPU's list then gives its oldest ones back."""
    start = stage.actor.map("spill", _MANY)
    stage.actor.touch(start, _MANY)
    stage.actor.unmap(start, _MANY)


def _renew(stage: Stage) -> None:
    """Have the guest's shells use other frames than so far.

    Each takes what is on top of the CPU's list and puts it there again. Another process gets these frames
    and gives them back below those that the shells then use: what is freed later pushes them out.
    """
    pid = stage.guest.spawn("exec sleep 1000")
    stage.guest.run(f"kill {pid}; while [ -d /proc/{pid} ]; do sleep 0.02; done")


def _numbers(free: FreeLists) -> NumbersShown:
    states = {
        "free, in blocks of the buddy allocator": FrameState.FREE,
        "free, on a CPU's list": FrameState.PER_CPU,
        "never given to the allocator": FrameState.RESERVED,
    }
    rows = [Number(name, free.count(state), "frames") for name, state in states.items()]
    used = len(free.frames.state) - free.count(FrameState.HOLE) - sum(row.value for row in rows)
    return NumbersShown("mem_map and the lists", (*rows, Number("in use", used, "frames")))


def _follow(stage: Stage) -> tuple[Followed, Allocation]:
    """Touch pages until one comes out of a free block of some size that nobody else has a frame of."""
    actor, guest = stage.actor, stage.guest
    for number in range(_TRIES):
        start = actor.map(f"page{number}", _PAGES)
        was = FreeLists.read(guest)
        with guest.trace_allocations(actor.pid) as trace:
            actor.touch(start, _PAGES)
        records = {record.pfn: record for record in trace if not record.freed}
        with guest.paused():
            now = FreeLists.read(guest)
            rows = stage.task().space.scan(start, VirtAddr(start + _PAGES * stage.page_size))
        found = [page for page in _candidates(rows, start, was, now) if page.pfn in records]
        if found:
            best = max(map(_worth, found))
            chosen = [page for page in found if _worth(page) == best]
            middle = chosen[len(chosen) // 2]
            return middle, records[middle.pfn]
    raise LabFailed(f"of {_TRIES * _PAGES} pages none came from a block that strangers left alone")


def _candidates(
    rows: NDArray[np.void], start: VirtAddr, was: FreeLists, now: FreeLists
) -> Iterator[Followed]:
    """The pages whose frames were in a free block that strangers have nothing of now."""
    taken = (rows["pa"] >> np.uint64(12)).tolist()
    pfns = frozenset(taken)
    for row, pfn in list(zip(rows["va"].tolist(), taken, strict=True))[_AROUND:-_AROUND]:
        block = was.block(Pfn(pfn))
        if block and block.order >= _LEAST and "x" not in now.letters(block, pfns, Pfn(pfn)):
            yield Followed(start, VirtAddr(row), Pfn(pfn), pfns, block, was, now)


def _worth(page: Followed) -> tuple[bool, bool, int]:
    """A block that fits a terminal, of which a piece is left, and a large one."""
    left = any(page.now.order(Pfn(pfn)) >= 0 for pfn in page.block.pfns)
    return page.block.order <= _LARGEST, left, page.block.order


def _before(ours: Followed, page_size: int) -> Frame:
    """What the frame was in the picture of before."""
    refcount = int(ours.was.frames.refcount[ours.pfn])
    return Frame(ours.pfn, PhysAddr(ours.pfn * page_size), "free", refcount, None, (), ours.block.order)


def _callers(record: Allocation) -> str:
    """Who asked, innermost first, as many as fit a line."""
    names = [frame.place.split("+")[0] for frame in record.stack]
    return textwrap.wrap(" < ".join(names), _LINE, break_on_hyphens=False)[0].removesuffix(" <")


def _kpage(stage: Stage, pfn: Pfn) -> tuple[int, int]:
    """A frame's words in /proc/kpageflags and /proc/kpagecount."""
    flags, count = (
        int.from_bytes(stage.actor.pread(name, pfn * 8, 8), "little") for name in ("flags", "count")
    )
    return flags, count


def _hint(stage: Stage) -> str:
    value = stage.guest.run(f"cat {_FRACTION}").stdout.strip()
    return f"is the CPU's list as long as that? {_FRACTION} is {value}" if value else ""


# A CPU's list has some 400 pages at most, not thousands: kB / 4 / 400. Where that cannot be set (until commit
# 74f44822097c, 5.14) it has no more by itself. And one CPU has a list, not several.
_SET, _RESET = prepare.setting(_FRACTION, "$(($(sed -n 's/[^0-9]//g; 1p' /proc/meminfo) / 1600))")
_CPUS = "for c in /sys/devices/system/cpu/cpu[1-9]*/online; do [ ! -f $c ] || echo {} >$c; done"
LAB = Lab(
    name="page-life",
    question="How does the kernel know which page is free?",
    answer="It has lists: blocks of 2^n frames, split and merged, and for each CPU single frames.",
    story=story,
    prepare=f"{_CPUS.format(0)}; [ ! -f {_FRACTION} ] || {{ {_SET}; }}",
    undo=f"{_CPUS.format(1)}; {_RESET}",
)
