"""What the screens of traces are about: what is to be traced, what is known of it, and the trace."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.owners import Owner
from inspector.kernel.zones import Zone
from inspector.tui.density import Resident
from inspector.units import Pfn

Record = TypeVar("Record", covariant=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A process by PID, a command that is started for it, or all tasks (None); `pfn`: only that frame."""

    who: int | str | None
    pfn: Pfn | None = None
    children: bool = False

    @property
    def pid(self) -> int:
        """The process's PID; 0 where it has none yet, or none is meant."""
        return self.who if isinstance(self.who, int) else 0

    @property
    def command(self) -> str:
        """The command; empty for none."""
        return self.who if isinstance(self.who, str) else ""


@dataclass(frozen=True, slots=True)
class Traceable:
    """A task whose faults may be traced, and how much of its address space is there; None: it is gone."""

    pid: int
    name: str
    resident: Resident | None


@dataclass(frozen=True, slots=True)
class Watched:
    """What a trace of allocations is about: a process, its name empty where it is gone; or a frame.

    `owner` and `label` say whose the frame is now. `blocks` has for each pageblock of 2**`block_order`
    frames its migratetype, an index into `migratetypes`.
    """

    pid: int
    name: str
    owner: Owner | None
    label: str
    zones: tuple[Zone, ...]
    blocks: NDArray[np.uint8]
    block_order: int
    migratetypes: tuple[str, ...]
    page_size: int

    def zone(self, pfn: Pfn) -> str:
        """The name of a frame's zone; empty for none."""
        return next((zone.name for zone in self.zones if zone.start_pfn <= pfn < zone.end_pfn), "")

    def kept_for(self, pfn: Pfn) -> str:
        """The migratetype of a frame's pageblock; empty where that is not known."""
        block = pfn >> self.block_order
        kind = int(self.blocks[block]) if block < self.blocks.size else len(self.migratetypes)
        return self.migratetypes[kind] if kind < len(self.migratetypes) else ""


class Tracing(Protocol[Record]):
    """A trace: what FaultTrace and AllocationTrace are. It is on while one is inside."""

    pid: int

    @property
    def others(self) -> int:
        """What other tasks did."""

    @property
    def lost(self) -> int:
        """What has no record."""

    @property
    def on(self) -> bool:
        """Whether it goes on."""

    def next(self, timeout: float | None = None) -> Record | None:
        """The next record, at which the guest stands still until the one after is asked for."""

    def __enter__(self) -> Self:
        """Begin. Raises NoSuchTask, UsageError, MachineError, GuestDied."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End: no breakpoint stays."""
