"""Translate an address by hand: the reader walks, the lab checks each step."""

from __future__ import annotations

from collections.abc import Generator

from inspector.errors import LabFailed, OutsideRam
from inspector.labs import checks
from inspector.labs.checks import equal
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import Event, Lab, Look, Question, QuoteShown, Seen, Step, Story, WalkShown
from inspector.units import PhysAddr

_BYTE = 0x2A
_TRIES = 3
_OFFSET = 0x123


def story(stage: Stage) -> Story:
    """An index and an entry a level, then the byte."""
    actor = stage.actor
    start = actor.map("page", 1)
    va = type(start)(start + _OFFSET)
    wrote = actor.write(va, _BYTE)
    look = stage.look(va)
    walk = look.walk
    if walk.phys is None:
        raise LabFailed(f"{va:#x} does not translate: the program has not touched it")
    levels = len(walk.steps)
    bits = f"{va:0{walk.format.va_bits}b}"
    yield Step(
        "The address",
        f"The program has written {_BYTE:#x} to an address. You find the byte in physical memory. The CPU "
        f"cuts the address into {levels} indices of 9 bits and an offset of 12. Register CR3 says where the "
        "first table is. Entry number N of a table lies 8 * N bytes into it.",
        (f"*(char *){va:#x} = {_BYTE:#x};",),
        (f"You need {levels} entries. Answer in decimal, or in hexadecimal with 0x.",),
    )
    groups = [bits[at : at + 9] for at in range(0, 9 * levels, 9)]
    yield Seen(
        (
            QuoteShown(f"{va:#x} in bits:", (" ".join([*groups, bits[9 * levels :]]),)),
            QuoteShown("CR3, without its low 12 bits:", (f"{walk.root:#x}",)),
        ),
        (equal("The program's byte", _BYTE, actor.read(va).value, "the program"),),
    )

    table = walk.root
    for step in walk.steps:
        name, high = step.level.name, step.level.shift + 8
        yield Step(
            f"The {name}",
            f"The table is at {table:#x}. Its index is in bits {high} to {step.level.shift} of {va:#x}.",
            (f"index = ({va:#x} >> {step.level.shift}) & 0x1ff;", f"entry at {table:#x} + 8 * index"),
            (f"The {name} entry: P is set, and its address bits (51 to 12) lead on.",),
        )  # fmt: skip
        said = yield from _ask("index =", step.index, f"bits {high} to {step.level.shift} as a number")
        place = yield from _ask(
            "the entry lies at", step.entry_address, f"{table:#x} + 8 * {step.index}", True
        )
        raw = _u64(stage, PhysAddr(place))
        target = step.target or 0
        yield Seen(
            (QuoteShown(f"the entry at {place:#x}:", (f"{raw:#018x}  {' '.join(step.flags)}",)),),
            (
                equal("Your index", step.index, said, "you"),
                equal("Your entry's place", f"{step.entry_address:#x}", f"{place:#x}", "you"),
                equal("What is there", f"{step.entry:#x}", f"{raw:#x}", "physical memory"),
            ),
        )
        where = yield from _ask("it leads to", target, "bits 51 to 12 of the entry, the others as 0", True)
        yield Seen((), (equal("Where it leads", f"{target:#x}", f"{where:#x}", "you"),))
        table = PhysAddr(where)

    yield from _finish(stage, look, wrote.pagemap.pfn, table)


def _finish(stage: Stage, look: Look, pfn: int | None, page: PhysAddr) -> Story:
    walk = look.walk
    assert walk.phys is not None
    offset = walk.phys - page
    yield Step(
        "The byte",
        f"The page begins at {page:#x}. The offset is what no level used: the low bits of {walk.va:#x}.",
        ("physical = page + offset;",),
        (f"There is the {_BYTE:#x}.",),
    )
    said = yield from _ask("the physical address =", walk.phys, f"{page:#x} + {offset:#x}", True)
    found = _byte(stage, PhysAddr(said))
    yield Seen(
        (WalkShown(look), *frames_of(look)),
        (
            equal("Your physical address", f"{walk.phys:#x}", f"{said:#x}", "you"),
            equal("The byte there", f"{_BYTE:#x}", found, "physical memory"),
            equal(
                "Its frame", checks.pfn_text(walk.pfn), f"PFN {pfn:#x}" if pfn else "no frame", checks.PAGEMAP
            ),
        ),
    )


def _ask(what: str, right: int, help: str, hexadecimal: bool = False) -> Generator[Event, str | None, int]:
    """The reader's number: the first right one, or the last of three."""
    answer = f"{right:#x}" if hexadecimal else str(right)
    prompt, said = what, -1
    for _ in range(_TRIES):
        text = (yield Question(prompt, help, answer)) or ""
        try:
            said = int(text, 16 if hexadecimal else 0)
        except ValueError:
            said = -1
        if said == right:
            break
        prompt = f"No: it is {help}. {what}"
    return said


def _u64(stage: Stage, address: PhysAddr) -> int:
    try:
        return int.from_bytes(stage.guest.read_phys(address, 8), "little")
    except (OutsideRam, OverflowError, ValueError):
        return 0


def _byte(stage: Stage, address: PhysAddr) -> str:
    try:
        return f"{stage.guest.read_phys(address, 1)[0]:#x}"
    except (OutsideRam, OverflowError, ValueError):
        return "no memory"


LAB = Lab(
    name="translate",
    question="How does the CPU get from a virtual address to a byte of memory?",
    answer="One entry a level, found by 9 bits of the address; the last one and the offset give the byte.",
    story=story,
)
