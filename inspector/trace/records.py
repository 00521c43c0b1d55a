"""What is known of a page fault when it has been handled."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

from inspector.arch import Walk
from inspector.kernel.vmas import Vma
from inspector.trace.kinds import Evidence, FaultKind
from inspector.units import Pfn, VirtAddr


class ErrorCode(IntFlag):
    """The error code of a #PF (SDM vol. 3, 4.7)."""

    P = 1 << 0
    """The page was present: a right was missing."""
    W = 1 << 1
    """A write."""
    U = 1 << 2
    """From user mode."""
    RSVD = 1 << 3
    """A reserved bit was set in an entry."""
    I = 1 << 4  # noqa: E741
    """An instruction fetch."""
    PK = 1 << 5
    """A protection key forbade it."""
    SS = 1 << 6
    """A shadow-stack access."""

    def __str__(self) -> str:
        return "|".join(flag.name or "" for flag in ErrorCode if flag in self) or "0"


@dataclass(frozen=True, slots=True)
class FrameState:
    """What a frame's struct page said: `use` in a word or two (`free`, `anonymous`, `page cache`, ...)."""

    pfn: Pfn
    use: str
    refcount: int
    mapcount: int | None
    """User entries for it; None where the struct page does not count them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One page fault, from the exception to the end of its handling.

    `error` is None where the kernel itself asked for the page without an exception (get_user_pages, mlock):
    then `place` is who asked. `before` and `after` are walks of `address`. `returned` holds the names of
    what each call of handle_mm_fault() returned, VM_FAULT_ left out: an empty one is 0. `frame` is the frame
    that was put in (another than before), with its state before the fault, where that is known, and after.
    """

    number: int
    pid: int
    tgid: int
    comm: str
    cpu: int
    """Where it began."""
    address: VirtAddr
    error: ErrorCode | None
    user: bool
    """Whether user code made the access; False: the kernel, as in copy_from_user()."""
    ip: VirtAddr
    place: str
    """`symbol+0xoffset` in the kernel, `file+0xoffset` in user code; untrusted text."""
    vma: Vma | None
    before: Walk
    after: Walk
    returned: tuple[frozenset[str], ...]
    frame: Pfn | None
    frame_before: FrameState | None
    frame_after: FrameState | None
    kind: FaultKind
    reason: str
    """Why a signal was sent; empty without one."""
    minor: int
    """What the task's min_flt went up by."""
    major: int
    """What the task's maj_flt went up by."""
    evidence: Evidence = field(repr=False)
