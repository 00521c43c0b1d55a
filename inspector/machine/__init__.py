"""A QEMU process and all that talks to it: command line, process, QMP, gdb, run control, in-guest shell."""

from __future__ import annotations

from inspector.machine.config import MachineConfig
from inspector.machine.local import LocalMachine, start
from inspector.machine.model import Completed, CpuRegisters, Machine, RamRange, RunState

__all__ = [
    "Completed",
    "CpuRegisters",
    "LocalMachine",
    "Machine",
    "MachineConfig",
    "RamRange",
    "RunState",
    "start",
]
