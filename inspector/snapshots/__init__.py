"""All of a guest's memory at one moment as plain data: kept in a file, compared with another moment."""

from __future__ import annotations

from inspector.snapshots.diff import Diff, diff
from inspector.snapshots.frames import FrameDiff, Held, compare
from inspector.snapshots.leaks import Leak, Leaks
from inspector.snapshots.records import (
    AreaChange,
    Balance,
    CacheChange,
    Handover,
    Holder,
    ModuleChange,
    SpaceChange,
    TaskChange,
    ZoneChange,
)
from inspector.snapshots.snapshot import CacheState, Snapshot, TaskState
from inspector.snapshots.taking import take

__all__ = [
    "AreaChange",
    "Balance",
    "CacheChange",
    "CacheState",
    "Diff",
    "FrameDiff",
    "Handover",
    "Held",
    "Holder",
    "Leak",
    "Leaks",
    "ModuleChange",
    "Snapshot",
    "SpaceChange",
    "TaskChange",
    "TaskState",
    "ZoneChange",
    "compare",
    "diff",
    "take",
]
