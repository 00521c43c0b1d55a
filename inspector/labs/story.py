"""What a lab tells: steps that say beforehand what will be seen, and what was then seen; data, no drawing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from inspector.arch import Walk
from inspector.kernel.vmas import Vma
from inspector.trace import Fault
from inspector.units import Pfn, PhysAddr, VirtAddr

if TYPE_CHECKING:
    from inspector.labs.stage import Stage


@dataclass(frozen=True, slots=True)
class Step:
    """Before anything happens: what the program will do, as C, and what will be seen; `number` from 1."""

    title: str
    words: str
    code: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()
    number: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What the struct page of a frame said; `owner` as guest text, `order` that of its folio."""

    pfn: Pfn
    phys: PhysAddr
    owner: str
    refcount: int
    mapcount: int | None
    flags: tuple[str, ...]
    order: int


@dataclass(frozen=True, slots=True)
class Look:
    """An address at one moment: the walk, what a not-present entry stands for, and the frame, if any."""

    who: str
    walk: Walk
    meaning: str
    frame: Frame | None

    @property
    def present(self) -> bool:
        """Whether the MMU would find a page."""
        return self.walk.phys is not None

    @property
    def entry(self) -> int:
        """The last raw entry that the walk came to."""
        return self.walk.steps[-1].entry if self.walk.steps else 0

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of that entry; none of one that is not present."""
        return self.walk.steps[-1].flags if self.walk.steps else ()

    @property
    def level(self) -> str:
        """The level of that entry."""
        return self.walk.steps[-1].level.name if self.walk.steps else ""


@dataclass(frozen=True, slots=True)
class EntryShown:
    """The last entry of a walk, beside what it was before."""

    now: Look
    before: Look | None = None


@dataclass(frozen=True, slots=True)
class WalkShown:
    """A whole walk."""

    look: Look


@dataclass(frozen=True, slots=True)
class FrameShown:
    """A frame, by a name for it, beside what it was before."""

    name: str
    now: Frame
    before: Frame | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its unit, beside what it was before."""

    name: str
    value: int
    unit: str
    before: int | None = None


@dataclass(frozen=True, slots=True)
class NumbersShown:
    """Numbers, and where they come from."""

    source: str
    rows: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class AliasRow:
    """One address of a frame: whose it is, and the flags of its entry."""

    who: str
    va: VirtAddr
    entry: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AliasesShown:
    """Every address of a frame."""

    pfn: Pfn
    rows: tuple[AliasRow, ...]


@dataclass(frozen=True, slots=True)
class VmaShown:
    """A mapping, beside what it was before."""

    now: Vma
    before: Vma | None = None


@dataclass(frozen=True, slots=True)
class PagesShown:
    """Pages in a row from `start` on, a letter each: `#` present, `.` nothing, `s` swapped out."""

    start: VirtAddr
    states: str


@dataclass(frozen=True, slots=True)
class BlockShown:
    """Frames in a row from `pfn` on, and of which moment. A letter each: `0` to `9` and `a` free, in a
    block of that order; `c` free, on a CPU's list; `#` the program's; `@` the one followed; `x` somebody's.
    """

    when: str
    pfn: Pfn
    states: str

    def rows(self, width: int) -> Iterator[tuple[str, int]]:
        """The letters in rows of so many, and how often each comes in a row: a block may have 1024 frames."""
        cut = (self.states[at : at + width] for at in range(0, len(self.states), width))
        return ((row, len(list(same))) for row, same in groupby(cut))


@dataclass(frozen=True, slots=True)
class FaultShown:
    """A page fault, as the tracer saw it."""

    fault: Fault


@dataclass(frozen=True, slots=True)
class QuoteShown:
    """Lines of the guest's own; untrusted text."""

    source: str
    lines: tuple[str, ...]


Exhibit = (
    EntryShown
    | WalkShown
    | FrameShown
    | NumbersShown
    | AliasesShown
    | VmaShown
    | PagesShown
    | BlockShown
    | FaultShown
    | QuoteShown
)


@dataclass(frozen=True, slots=True)
class Check:
    """A claim, what was found, and who says so. `hint`: what may be the matter where it fails."""

    claim: str
    passed: bool
    expected: str
    found: str
    witness: str
    hint: str = ""

    @property
    def complaint(self) -> str:
        """One line on a check that failed."""
        said = f"{self.claim}: expected {self.expected}, found {self.found} ({self.witness})"
        return f"{said}; {self.hint}" if self.hint else said


@dataclass(frozen=True, slots=True)
class Seen:
    """After it happened: what is in memory now, and what was checked."""

    exhibits: tuple[Exhibit, ...]
    checks: tuple[Check, ...]
    words: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """The reader is asked; the story goes on with what is sent to it. `answer` is what would be right."""

    prompt: str
    help: str
    answer: str


@dataclass(frozen=True, slots=True)
class Ending:
    """The end: whether all was as it was said to be, and why not, or what is to be remembered."""

    passed: bool
    words: str


Event = Step | Seen | Question | Ending
Story = Generator[Event, str | None, None]


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab: the question that it answers, what is needed for it, and its story.

    `prepare` is for /bin/sh in the guest, as root, in the very shell that then becomes the program, so that
    limits and cgroups hold for it; `undo` runs at the end. What either breaks, the story notices. `memory` is
    what a guest for it is booted with.
    """

    name: str
    question: str
    answer: str
    story: Callable[[Stage], Story]
    prepare: str = ""
    undo: str = ""
    memory: str = "512M"
