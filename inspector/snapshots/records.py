"""What a diff is made of: who gained and lost frames, and what came, went and grew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.modules import Module
from inspector.kernel.owners import Owner
from inspector.kernel.vmalloc import VmallocArea

if TYPE_CHECKING:
    from inspector.snapshots.snapshot import CacheState, TaskState

IDLE = (Owner.NO_PAGE, Owner.FREE, Owner.PER_CPU_FREE)
"""The owners of frames that nobody uses."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has frames: the class, and which task, cache, caller, file or module; the label may be empty."""

    owner: Owner
    label: str = ""

    def __str__(self) -> str:
        return f"{self.owner.name.lower().replace('_', ' ')} {self.label}".rstrip()

    @property
    def used(self) -> bool:
        """Whether its frames are in use: neither free nor without a struct page."""
        return self.owner not in IDLE


@dataclass(frozen=True, slots=True)
class Balance:
    """A holder's frames: how many before and after, and of these how many came to it and left it."""

    holder: Holder
    before: int
    after: int
    gained: int
    lost: int

    @property
    def net(self) -> int:
        """Frames more than before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Handover:
    """Frames that one holder had and another has now; `pfns` are sorted, u8."""

    was: Holder
    now: Holder
    pfns: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TaskChange:
    """A process that came (`before` is None), went (`after` is None) or whose memory or name changed."""

    before: TaskState | None
    after: TaskState | None

    @property
    def task(self) -> TaskState:
        """The process as it is, or was last."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def rss(self) -> int:
        """Resident pages more than before."""
        return (self.after.rss if self.after else 0) - (self.before.rss if self.before else 0)


@dataclass(frozen=True, slots=True)
class CacheChange:
    """A slab cache whose objects or slabs are other in number; None where there was, or is, no such cache."""

    before: CacheState | None
    after: CacheState | None

    @property
    def cache(self) -> CacheState:
        """The cache as it is, or was last."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def objects(self) -> int:
        """Allocated objects more than before."""
        return (self.after.allocated if self.after else 0) - (self.before.allocated if self.before else 0)

    @property
    def slabs(self) -> int:
        """Slabs more than before."""
        return (self.after.slabs if self.after else 0) - (self.before.slabs if self.before else 0)


@dataclass(frozen=True, slots=True)
class AreaChange:
    """A vmalloc area in use that came or went."""

    area: VmallocArea
    came: bool


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """A module that was loaded or unloaded."""

    module: Module
    came: bool


@dataclass(frozen=True, slots=True)
class SpaceChange:
    """What an address space maps anew and no longer, as kernel.rmap.ROW; `task` is one that has it.

    A page whose frame, size or rights are others is in both; that it was accessed or written is no change.
    The `owner` of the rows indexes the tasks of the snapshot that they are from.
    """

    task: TaskState
    gained: NDArray[np.void]
    lost: NDArray[np.void]

    @property
    def gained_bytes(self) -> int:
        """Bytes of the mappings gained."""
        return int(self.gained["size"].sum())

    @property
    def lost_bytes(self) -> int:
        """Bytes of the mappings lost."""
        return int(self.lost["size"].sum())


@dataclass(frozen=True, slots=True)
class ZoneChange:
    """Free pages of a zone, without those on per-CPU lists."""

    node: int
    name: str
    before: int
    after: int
