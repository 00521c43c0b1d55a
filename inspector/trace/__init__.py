"""Stop and look: page faults and page allocations as they happen."""

from __future__ import annotations

from inspector.trace.allocations import Allocation, AllocationTrace
from inspector.trace.faults import FaultTrace
from inspector.trace.kinds import FaultKind
from inspector.trace.ledger import Holder, Holdings, Ledger
from inspector.trace.records import ErrorCode, Fault, FrameState
from inspector.trace.unwind import StackFrame

__all__ = [
    "Allocation",
    "AllocationTrace",
    "ErrorCode",
    "Fault",
    "FaultKind",
    "FaultTrace",
    "FrameState",
    "Holder",
    "Holdings",
    "Ledger",
    "StackFrame",
]
