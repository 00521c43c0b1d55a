"""Checks that many labs make: what memory says against what was said before, and against a witness."""

from __future__ import annotations

from inspector.labs.actor import Access, PagemapWord
from inspector.labs.story import Check, Look
from inspector.trace import Fault, FaultKind
from inspector.units import Pfn

TABLES, FRAME = "the page tables", "struct page"
TRACER = "the tracer"
PAGEMAP, RUSAGE, SMAPS = "/proc/self/pagemap", "getrusage()", "/proc/self/smaps"


def pfn_text(pfn: Pfn | None) -> str:
    """A frame's number as all labs write it."""
    return "no frame" if pfn is None else f"PFN {pfn:#x}"


def holds(claim: str, passed: bool, expected: str, found: str, witness: str, hint: str = "") -> Check:
    """A claim that holds or not."""
    return Check(claim, passed, expected, found, witness, hint)


def equal(claim: str, expected: object, found: object, witness: str, hint: str = "") -> Check:
    """Two things that are to be equal."""
    return Check(claim, expected == found, str(expected), str(found), witness, hint)


def kib(claim: str, expected: int, found: int | None, witness: str, hint: str = "") -> Check:
    """Two sizes in KiB that are to be equal."""
    text = "nothing" if found is None else f"{found:,} KiB"
    return Check(claim, expected == found, f"{expected:,} KiB", text, witness, hint)


def flags(look: Look, on: str = "", off: str = "", hint: str = "") -> Check:
    """Which flags the entry has, and which it has not; names in a row, as `P RW`."""
    wanted, unwanted = on.split(), off.split()
    passed = look.present and all(flag in look.flags for flag in wanted)
    passed = passed and not any(flag in look.flags for flag in unwanted)
    expected = ", ".join([*(f"{flag} set" for flag in wanted), *(f"{flag} clear" for flag in unwanted)])
    found = " ".join(look.flags) if look.present else "an entry that is not present"
    return Check(f"The {look.who}'s entry", passed, expected, expected if passed else found, TABLES, hint)


def not_present(look: Look, hint: str = "") -> Check:
    """The MMU finds no page."""
    found = f"{pfn_text(look.walk.pfn)} is mapped" if look.present else "P clear"
    return Check("The entry is not present", not look.present, "P clear", found, TABLES, hint)


def same_frame(claim: str, one: Look, other: Look, hint: str = "") -> Check:
    """Two looks find the same frame."""
    passed = one.present and one.walk.pfn == other.walk.pfn
    return Check(claim, passed, pfn_text(one.walk.pfn), pfn_text(other.walk.pfn), TABLES, hint)


def other_frame(claim: str, one: Look, other: Look, hint: str = "") -> Check:
    """Two looks find different frames."""
    passed = one.present and other.present and one.walk.pfn != other.walk.pfn
    expected = f"not {pfn_text(one.walk.pfn)}"
    return Check(claim, passed, expected, pfn_text(other.walk.pfn), TABLES, hint)


def pagemap(look: Look, word: PagemapWord) -> Check:
    """The program's own pagemap names the frame that the walk found."""
    claim = f"The {look.who}'s pagemap names the same frame"
    ours = look.walk.pfn
    return Check(claim, word.pfn == ours, pfn_text(ours), pfn_text(word.pfn), PAGEMAP)


def faults(access: Access, minor: int, major: int = 0, hint: str = "") -> Check:
    """How many page faults the access took."""

    def text(minor: int, major: int) -> str:
        return f"{minor} minor, {major} major"

    passed = (access.minor, access.major, access.signal) == (minor, major, 0)
    found = text(access.minor, access.major) + (f", signal {access.signal}" if access.signal else "")
    return Check("Page faults that it took", passed, text(minor, major), found, RUSAGE, hint)


def kind(faults: tuple[Fault, ...], expected: FaultKind, hint: str = "") -> Check:
    """What kind of page fault the tracer saw."""
    found = ", ".join(fault.kind.value for fault in faults) or "no page fault"
    return Check("The kind of fault", found == expected.value, expected.value, found, TRACER, hint)


def mapcount(look: Look, expected: int, hint: str = "") -> Check:
    """How many entries map the frame."""
    found = look.frame.mapcount if look.frame else None
    return Check("mapcount of the frame", found == expected, str(expected), str(found), FRAME, hint)


def owner(look: Look, expected: str, hint: str = "") -> Check:
    """What class of owner the frame has."""
    found = look.frame.owner if look.frame else "no frame"
    passed = found.split(":")[0] == expected
    return Check("The frame's owner", passed, expected, found, "all of memory", hint)
