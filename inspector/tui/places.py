"""Where one can be in the UI, and how `/` understands what is typed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from inspector.errors import UsageError
from inspector.units import Pfn, VirtAddr, parse_address, parse_int

_PAGE_SHIFT = 12
_KERNEL_HALF = 1 << 63


class ViewName(StrEnum):
    """The views, in the order of their keys."""

    OVERVIEW = "overview"
    TASKS = "tasks"
    SPACE = "space"
    WALK = "walk"
    FRAMES = "frames"
    PAGE = "page"
    SLABS = "slabs"
    VMALLOC = "vmalloc"
    SWAP = "swap"
    MEMORY = "memory"
    DEVICES = "devices"
    CONSOLE = "console"
    FAULTS = "faults"
    ALLOCATIONS = "allocations"
    LABS = "labs"


@dataclass(frozen=True, slots=True)
class Place:
    """A view and what it shows. A walk starts in task `pid`, at CR3 of `cpu`, or in the kernel's tables.

    In the map of frames `owner` (an Owner) and `label` say what is to be lit, or `changed` what changed hands
    since the mark; among slabs `label` is a cache, among labs the one that is played, among devices one's
    address. Allocations are a task's (`pid`), or those of frame `pfn`, or with neither all.
    """

    view: ViewName
    pid: int | None = None
    cpu: int | None = None
    va: VirtAddr | None = None
    pfn: Pfn | None = None
    symbol: str | None = None
    owner: int | None = None
    label: str | None = None
    changed: bool = False


class Names(Protocol):
    """Symbols by name."""

    def symbol(self, name: str) -> VirtAddr:
        """The address of a symbol. Raises NoSuchSymbol."""


RULES = (
    ("1234", "the address space of the task with that PID"),
    ("0x7ffd1000", "walk that address; of the user half in PID {pid}"),
    ("7:0x7ffd1000", "walk that address in the task with PID 7"),
    ("cpu0:0x7ffd1000", "walk that address from the CR3 of CPU 0"),
    ("pfn 0x1a2b", "that page frame, decimal or 0x; also #0x1a2b"),
    ("pa 0x1a2b000", "the page frame of that physical address"),
    ("init_task+0x10", "walk a kernel symbol's address; Tab completes it"),
)
"""What may be typed behind `/`: an example and its meaning."""

_PREFIXED = re.compile(r"(pfn|pa|phys|pid)\s*[ :=]\s*(\S+)", re.IGNORECASE)
_IN_TASK = re.compile(r"(cpu)?(\d+):(\S+)", re.IGNORECASE)
_SYMBOL = re.compile(r"([A-Za-z_.$][\w.$]*)(?:\s*\+\s*(\S+))?")
_BARE_HEX = re.compile(r"(?=.*[a-f])[0-9a-f_]{9,}|[0-9a-f_]{12,}", re.IGNORECASE)


def parse(text: str, pid: int, names: Names) -> Place:
    """The place that `text` means; `pid` is the task that bare user addresses belong to.

    Raises UsageError where it means none, NoSuchSymbol where it is a name that the kernel does not have.
    """
    text = text.strip()
    if not text:
        raise UsageError("type an address, a PFN, a symbol or a PID")
    if text.startswith("#"):
        return Place(ViewName.PAGE, pfn=Pfn(parse_int(text[1:].strip(), "PFN")))
    if match := _PREFIXED.fullmatch(text):
        return _prefixed(match[1].lower(), match[2])
    if match := _IN_TASK.fullmatch(text):
        place = int(match[2])
        va = VirtAddr(parse_address(match[3]))
        return Place(ViewName.WALK, va=va, cpu=place) if match[1] else Place(ViewName.WALK, va=va, pid=place)
    if text.isascii() and text.isdigit() and len(text) < 12:
        return Place(ViewName.SPACE, pid=int(text))
    if text.lower().startswith("0x") or _BARE_HEX.fullmatch(text):
        va = VirtAddr(parse_address(text))
        return Place(ViewName.WALK, va=va, pid=None if va >= _KERNEL_HALF else pid)
    if match := _SYMBOL.fullmatch(text):
        offset = parse_int(match[2], "offset") if match[2] else 0
        va = VirtAddr(names.symbol(match[1]) + offset)
        return Place(ViewName.WALK, va=va, symbol=text)
    raise UsageError(f"not an address, PFN, symbol or PID: {text!r}")


def _prefixed(kind: str, number: str) -> Place:
    if kind == "pfn":
        return Place(ViewName.PAGE, pfn=Pfn(parse_int(number, "PFN")))
    if kind == "pid":
        return Place(ViewName.SPACE, pid=parse_int(number, "PID"))
    return Place(ViewName.PAGE, pfn=Pfn(parse_address(number) >> _PAGE_SHIFT))


def describe(place: Place) -> str:
    """A place in words, for the hint under the input and for titles."""
    match place:
        case Place(view=ViewName.PAGE, pfn=pfn) if pfn is not None:
            return f"page frame {pfn:#x}"
        case Place(view=ViewName.SPACE, pid=pid):
            return f"the address space of PID {pid}"
        case Place(view=ViewName.FAULTS, pid=pid) if pid is not None:
            return f"the page faults of PID {pid}"
        case Place(view=ViewName.ALLOCATIONS, pid=pid) if pid is not None:
            return f"the page allocations of PID {pid}"
        case Place(view=ViewName.ALLOCATIONS, pfn=pfn) if pfn is not None:
            return f"who takes and frees page frame {pfn:#x}"
        case Place(view=ViewName.WALK, va=va) if va is not None:
            where = f"in PID {place.pid}" if place.pid is not None else "in the kernel's page tables"
            where = f"from CR3 of CPU {place.cpu}" if place.cpu is not None else where
            return f"walk {place.symbol + ' = ' if place.symbol else ''}{va:#x} {where}"
    return str(place.view)
