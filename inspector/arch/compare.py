"""Two walks of one address, an entry beside its like; and a walk as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from inspector.arch.format import Level
from inspector.arch.walker import Walk, WalkStep
from inspector.units import word


@dataclass(frozen=True, slots=True)
class Pair:
    """A level's entries in two walks; None where a walk did not get so far down."""

    level: Level
    index: int
    before: WalkStep | None
    after: WalkStep | None

    @property
    def changed(self) -> bool:
        """Whether the entry holds another value, or is another entry."""
        return self.before is None or self.after is None or _place(self.before) != _place(self.after)


def side_by_side(before: Walk, after: Walk) -> list[Pair]:
    """The entries of two walks of one address, level by level from the top."""
    return [
        Pair((one or other).level, (one or other).index, one, other)
        for one, other in zip_longest(before.steps, after.steps)
    ]


def _place(step: WalkStep) -> tuple[int, int]:
    return step.entry_address, step.entry


def walk_data(walk: Walk) -> dict[str, Any]:
    """A walk as JSON has it: addresses and raw words in hexadecimal, units in the keys."""
    fault = walk.fault
    return {
        "paging": walk.format.name,
        "root": word(walk.root),
        "va": word(walk.va),
        "steps": [
            {
                "level": step.level.name,
                "manual_name": step.level.manual,
                "index": step.index,
                "entry_address": word(step.entry_address),
                "entry": word(step.entry),
                "flags": list(step.flags),
                "leaf": step.leaf,
                "target": word(step.target),
            }
            for step in walk.steps
        ],
        "phys": word(walk.phys),
        "pfn": walk.pfn,
        "page_size_bytes": walk.page_size,
        "writable": walk.writable,
        "user": walk.user,
        "executable": walk.executable,
        "memory_type": walk.memory_type,
        "pkey": walk.pkey,
        "fault": None
        if fault is None
        else {
            "kind": fault.kind.name.lower(),
            "level": fault.level.name if fault.level else None,
            "entry_address": word(fault.entry_address),
            "entry": word(fault.entry),
            "what": fault.what,
        },
    }
