"""A QEMU process and all that talks to it: command line, process, QMP, gdb, run control, in-guest shell."""

from __future__ import annotations

from inspector.machine.address import Address, parse_address
from inspector.machine.config import MachineConfig
from inspector.machine.foreign import ForeignMachine
from inspector.machine.gdb import Gdb, Stop
from inspector.machine.local import LocalMachine
from inspector.machine.model import Completed, CpuRegisters, Machine, RamRange, RunState, Segment
from inspector.machine.names import list_guests
from inspector.machine.remote import RemoteMachine, connect
from inspector.machine.share import Server, serve
from inspector.machine.starting import start
from inspector.machine.still import StillMachine

__all__ = [
    "Address",
    "Completed",
    "CpuRegisters",
    "ForeignMachine",
    "Gdb",
    "LocalMachine",
    "Machine",
    "MachineConfig",
    "RamRange",
    "RemoteMachine",
    "RunState",
    "Segment",
    "Server",
    "StillMachine",
    "Stop",
    "connect",
    "list_guests",
    "parse_address",
    "serve",
    "start",
]
