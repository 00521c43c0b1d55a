"""What a trace's records say, in short words and as plain data: every face says it the same way."""

from __future__ import annotations

from typing import Any

from inspector.arch import Walk
from inspector.arch.compare import walk_data
from inspector.kernel.vmas import Vma
from inspector.trace.allocations import Allocation
from inspector.trace.kinds import Entry
from inspector.trace.records import ErrorCode, Fault, FrameState
from inspector.units import printable, word

# The page allocator's own, which say nothing of who wanted the page, or gave it back.
_INNER = (
    *("__alloc_", "alloc_pages", "__folio_alloc", "folio_alloc", "vma_alloc", "get_page_from"),
    *("__get_free_pages", "get_zeroed_page", "free_pcp_prepare", "free_unref_", "__free_", "free_frozen_"),
)


def kind_name(fault: Fault) -> str:
    """The kind as filters and JSON spell it: `cow_copy`."""
    return fault.kind.name.lower()


def access(fault: Fault) -> str:
    """`r`, `w` or `x`."""
    error = fault.error
    if error is None:
        return "w" if fault.evidence.write else "r"
    return "x" if ErrorCode.I in error else "w" if ErrorCode.W in error else "r"


def mode(fault: Fault) -> str:
    """Who wanted the page: `user` or `kernel` code that touched it; or the kernel `asked`, no access made."""
    if fault.error is None:
        return "asked"
    return "user" if fault.user else "kernel"


def mapped(walk: Walk, entry: Entry) -> str:
    """What a walk came to: a frame, what Linux keeps in an entry that is not present, or `-`."""
    if walk.pfn is not None:
        return f"{walk.pfn:#x}"
    return "-" if entry.use == "none" else entry.use


def frames(fault: Fault) -> str:
    """The frame mapped before and after: `- → 0x1a2b`."""
    before = mapped(fault.before, fault.evidence.before)
    after = mapped(fault.after, fault.evidence.after)
    return before if before == after else f"{before} → {after}"


def returned(fault: Fault) -> str:
    """What each call of handle_mm_fault() gave, VM_FAULT_ left out; `-` where it was never called."""
    return ", ".join("|".join(sorted(result)) or "0" for result in fault.returned) or "-"


def area(fault: Fault) -> str:
    """The VMA's name."""
    if fault.vma is None:
        return "no VMA"
    return printable(fault.vma.name) or "(anonymous)"


def state(frame: FrameState | None) -> str:
    """A frame's state: `free`, or `anonymous, refcount 1, mapcount 1`."""
    if frame is None:
        return "not known"
    if frame.use == "free":
        return frame.use
    count = "" if frame.mapcount is None else f", mapcount {frame.mapcount}"
    return f"{frame.use}, refcount {frame.refcount}{count}"


def fault_data(fault: Fault) -> dict[str, Any]:
    """A record as JSON has it: addresses and raw words in hexadecimal."""
    return {
        "number": fault.number,
        "kind": kind_name(fault),
        "pid": fault.pid,
        "tgid": fault.tgid,
        "comm": fault.comm,
        "cpu": fault.cpu,
        "address": word(fault.address),
        "access": {"r": "read", "w": "write", "x": "exec"}[access(fault)],
        "mode": mode(fault),
        "error": None if fault.error is None else [flag.name for flag in ErrorCode if flag in fault.error],
        "ip": word(fault.ip),
        "place": fault.place,
        "vma": _vma(fault.vma),
        "returned": [sorted(result) for result in fault.returned],
        "reason": fault.reason or None,
        "minor": fault.minor,
        "major": fault.major,
        "frame": fault.frame,
        "frame_before": _frame(fault.frame_before),
        "frame_after": _frame(fault.frame_after),
        "held_before": _held(fault.evidence.before),
        "held_after": _held(fault.evidence.after),
        "before": walk_data(fault.before),
        "after": walk_data(fault.after),
    }


def _vma(vma: Vma | None) -> dict[str, Any] | None:
    if vma is None:
        return None
    return {
        "start": word(vma.start),
        "end": word(vma.end),
        "permissions": vma.permissions,
        "flag_names": list(vma.flag_names),
        "name": printable(vma.name) or None,
    }


def _held(entry: Entry) -> str | None:
    """What Linux keeps in an entry that is not present."""
    return None if entry.present or entry.use == "none" else entry.use


def _frame(frame: FrameState | None) -> dict[str, Any] | None:
    if frame is None:
        return None
    return {"use": frame.use, "refcount": frame.refcount, "mapcount": frame.mapcount}


def inner(record: Allocation) -> int:
    """How many functions of the stack, from its begin on, are the page allocator's own; 0 if all are."""
    for index, frame in enumerate(record.stack):
        if not frame.place.startswith(_INNER):
            return index
    return 0


def callers(record: Allocation, depth: int) -> list[str]:
    """Who wanted the page, or gave it back, and who called that: the functions' names alone."""
    return [_function(frame.place) for frame in record.stack[inner(record) :][:depth]]


def caller(record: Allocation) -> str:
    """The function that wanted the page, or gave it back."""
    return next(iter(callers(record, 1)), "?")


def _function(place: str) -> str:
    return printable(place).split("+")[0]


def allocation_data(record: Allocation) -> dict[str, Any]:
    """A record as JSON has it: addresses and raw words in hexadecimal, PFNs and counts decimal."""
    return {
        "number": record.number,
        "freed": record.freed,
        "pfn": record.pfn,
        "order": record.order,
        "gfp": word(record.gfp),
        "gfp_names": list(record.gfp_names),
        "pid": record.pid,
        "tgid": record.tgid,
        "comm": record.comm,
        "cpu": record.cpu,
        "stack": [{"address": word(frame.address), "place": frame.place} for frame in record.stack],
    }
