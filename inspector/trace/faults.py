"""The tracer of page faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from inspector.machine.stoploop import Hit
from inspector.symbols import Kernel
from inspector.trace import stops
from inspector.trace.follow import Followed
from inspector.trace.handling import Handling
from inspector.trace.kinds import FaultKind
from inspector.trace.records import Fault
from inspector.trace.session import Trace, Traceable
from inspector.units import VirtAddr


class FaultTrace(Trace[Fault]):
    """The page faults of a process, as they happen: see Trace.

    `kinds`, and `start` and `end` (exclusive) of the faulting address, choose what is recorded. Each page
    fault of any task stops the guest at its begin, its end, and around handle_mm_fault(); those of other
    tasks leave no trace.
    """

    def __init__(
        self,
        kernel: Kernel,
        machine: Traceable,
        target: int | str,
        *,
        kinds: Iterable[FaultKind] | None = None,
        start: VirtAddr | None = None,
        end: VirtAddr | None = None,
        limit: int | None = None,
        children: bool = False,
        step: bool = False,
    ) -> None:
        """Raises NoSuchSymbol and SymbolsError for a kernel that cannot be traced, UsageError."""
        super().__init__(kernel, machine, target, limit=limit, children=children, step=step)
        self._stops = stops.fault_points(kernel)
        self._kinds = frozenset(kinds) if kinds is not None else None
        self._start, self._end = start or 0, end if end is not None else 1 << 64
        self._handling: Handling | None = None
        self._filtered = 0
        self.counts: Counter[FaultKind] = Counter()
        """How many of each kind were recorded."""
        self.minor = self.major = 0
        """What the tasks' min_flt and maj_flt went up by in all recorded faults."""

    @property
    def passed(self) -> int:
        """Faults of the traced tasks that the filters left out."""
        return self._filtered + (self._handling.passed if self._handling else 0)

    @property
    def others(self) -> int:
        """Faults of other tasks that ran through."""
        return self._handling.others if self._handling else 0

    @property
    def lost(self) -> int:
        """Faults without a record: the task or the trace ended before they did, or memory was unreadable."""
        return self._unreadable + (self._handling.lost + self._handling.unfinished if self._handling else 0)

    def _points(self) -> Iterable[VirtAddr]:
        return (self._stops.entry, self._stops.call, self._stops.exit, *self._stops.returns)

    def _prepare(self, followed: Followed | None, command: bool) -> None:
        assert followed is not None
        self._handling = Handling(self._reader, self._stops, followed, self._chosen)
        if command:  # what the shell does before its exec is not told
            self._handling.skip_mm = followed.mm

    def _chosen(self, address: VirtAddr) -> bool:
        return self._start <= address < self._end

    def _at_hit(self, hit: Hit) -> tuple[Sequence[Fault], VirtAddr | None]:
        assert self._handling is not None
        fault, asker = self._handling.at_stop(hit)
        if fault and self._kinds is not None and fault.kind not in self._kinds:
            self._filtered += 1
            fault = None
        if fault is None:
            return (), asker
        self.counts[fault.kind] += 1
        self.minor += fault.minor
        self.major += fault.major
        return (fault,), asker
