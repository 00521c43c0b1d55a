"""Stop and look: page faults as they happen."""

from __future__ import annotations

from inspector.trace.faults import FaultTrace
from inspector.trace.kinds import FaultKind
from inspector.trace.records import ErrorCode, Fault, FrameState

__all__ = ["ErrorCode", "Fault", "FaultKind", "FaultTrace", "FrameState"]
