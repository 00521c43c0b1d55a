"""Swap: where a page goes, what its entry then says, and how it comes back."""

from __future__ import annotations

import numpy as np

from inspector.kernel import ptes
from inspector.kernel.ptes import EntryUse, NonPresent
from inspector.kernel.swap_slots import slot_counts
from inspector.labs import checks, prepare
from inspector.labs.checks import equal, holds, kib
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import (
    EntryShown,
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

_OTHERS = 1024
_TRIES = 8


def story(stage: Stage) -> Story:
    """Write, push out, let others take the frame, read."""
    actor = stage.actor
    yield Step(
        "A page in memory",
        "The program writes 42 to a page of private memory. No file has a copy of it.",
        ("page[0] = 42;",),
        ("The entry is present and dirty: the 42 is in this frame, and nowhere else.",),
    )
    page = actor.map("page", 1)
    wrote = actor.write(page, 42)
    first = stage.look(page)
    yield Seen(
        (EntryShown(first), *frames_of(first)),
        (checks.flags(first, on="P RW D"), checks.owner(first, "anon"), checks.pagemap(first, wrote.pagemap)),
    )

    yield Step(
        "Push it out",
        "The program asks the kernel to reclaim the page now, as it does by itself when memory is short.",
        ("madvise(page, 4096, MADV_PAGEOUT);",),
        ("P is clear. The other bits say where the page is: type, the number of the swap area, "
         "and offset, the slot in it.",
         "The CPU looks at P alone: for it the page is just not present."),
    )  # fmt: skip
    word = actor.pagemap(page)
    for _ in range(_TRIES):
        if word.swap:
            break
        actor.ask(f"advise {page:#x} 1 pageout")
        word = actor.pagemap(page)
    out = stage.look(page)
    what = ptes.nonpresent(stage.guest.kernel, 0 if out.present else out.entry)
    hint = "" if stage.guest.swap_areas() else "this guest has no swap"
    fault = out.walk.fault
    yield Seen(
        (
            EntryShown(out, first),
            QuoteShown("what the MMU does on a use of it:", (fault.what if fault else "it finds a page",)),
            slot(stage, what),
        ),
        (
            checks.not_present(out, hint),
            holds(
                "The entry stands for", what.use is EntryUse.SWAP, "a swapped page", what.name, checks.TABLES
            ),
            equal(
                "Type and offset",
                f"{what.type}, {what.offset}",
                "{}, {}".format(*(word.swap or (None, None))),
                checks.PAGEMAP,
            ),
            kib("Swap of the mapping", 4, actor.smaps(page)["Swap"], checks.SMAPS),
        ),
    )

    yield Step(
        "The frame is free",
        "The frame that the page was in may be used for anything. The program touches other memory, to see "
        "that it is.",
        (f"for (int i = 0; i < {_OTHERS}; i++) other[i * 4096] = 1;",),
        ("The old frame is somebody else's, or waits in a free list.",
         "Our entry does not mind: it says where in swap."),
    )  # fmt: skip
    assert first.frame is not None
    old = first.frame
    for number in range(_TRIES):
        actor.touch(actor.map(f"other{number}", _OTHERS), _OTHERS)
        now = stage.frame(old.pfn)
        if "free" not in now.owner:
            break
    still = stage.look(page)
    users = [row.va for row in stage.aliases(old.pfn).rows if row.who.startswith("actor")]
    found = "free" if "free" in now.owner else f"at {users[0]:#x}" if users else now.owner
    yield Seen(
        (EntryShown(still, out), FrameShown("the old frame", now, old)),
        (
            holds("The old frame", page not in users, f"not at {page:#x}", found, "all page tables"),
            equal("The entry", f"{out.entry:#x}", f"{still.entry:#x}", checks.TABLES),
        ),
    )

    yield Step(
        "Read it",
        "The CPU faults: P is clear. Now the kernel reads the other bits, takes a frame, and fills it from "
        "the slot. To wait for a device is a major fault.",
        ("char c = page[0];",),
        ("42 is read, from another frame than before.", "One major fault, and the slot is free again."),
    )
    seen = stage.watch(lambda: actor.read(page), page)
    read = seen.access
    back = stage.look(page)
    freed = slot(stage, what, 1)
    yield Seen(
        (*seen.shown, EntryShown(back, still), *frames_of(back), freed),
        (
            equal("What is read", 42, read.value, "the program"),
            checks.faults(read, 0, 1),
            checks.kind(seen.faults, FaultKind.SWAP_IN),
            checks.other_frame("The frame is another", first, back),
            checks.pagemap(back, read.pagemap),
            equal("Entries for the slot", 0, freed.rows[0].value, "swap_map"),
            kib("Swap of the mapping", 0, actor.smaps(page)["Swap"], checks.SMAPS),
        ),
    )


def slot(stage: Stage, what: NonPresent, before: int | None = None) -> NumbersShown:
    """How many entries stand for a slot, beside an earlier count."""
    count = 0
    if what.use is EntryUse.SWAP and what.type is not None and what.offset is not None:
        types, offsets = np.array([what.type], np.uint8), np.array([what.offset], np.uint64)
        with stage.guest.paused():
            count = int(slot_counts(stage.guest.kernel, types, offsets)[0])
    area = next((area.path for area in stage.guest.swap_areas() if area.type == what.type), "no swap area")
    row = Number(f"entries for slot {what.offset}", count, "", before)
    return NumbersShown(f"the swap area {area}", (row,))


_PREPARE, _UNDO = prepare.SWAP
LAB = Lab(
    name="swap",
    question="Where does a page go that is swapped out, and what comes back?",
    answer="The entry keeps the place in swap, behind a clear P. What comes back is the data, in any frame.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
