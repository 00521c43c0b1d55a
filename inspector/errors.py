"""Every error that the inspector raises on purpose.

The tree, and what each stands for:

    InspectorError                  its text is one line for the user; `kmi` prints it and exits 2
    ├── UsageError                  what was asked for makes no sense
    ├── SetupError                  something that the host must have is missing or broken
    │   └── ImageError              a kernel or guest image cannot be fetched, built or used
    ├── MachineError                QEMU or what talks to it
    │   ├── BootError               the guest did not come up
    │   ├── GuestDied               QEMU is gone
    │   ├── QmpError                QMP refused a command
    │   ├── GdbError                gdb or the gdbstub refused a command
    │   └── CommandTimeout          a command in the guest took too long and was killed
    ├── OutsideRam                  a physical address that no RAM answers
    ├── PageFault                   a virtual address that does not translate; carries the walk
    ├── SymbolsError                names and types
    │   ├── NoSuchSymbol
    │   ├── NoSuchType
    │   ├── NoSuchField
    │   └── BadFormat               kallsyms, BTF, VMCOREINFO, ELF or a memory image that cannot be read
    ├── BadSnapshot                 a file that holds no snapshot, or a damaged one
    ├── LabFailed                   a lab's premise is missing: the lab ends, and kmi exits 1
    └── KernelError                 Linux objects
        ├── NoSuchTask
        ├── NoSuchFrame             a PFN without a struct page
        └── CorruptGuest            a list, tree or table that loops, or grows past its bound
"""

from __future__ import annotations

from typing import Any


class InspectorError(Exception):
    """The root: catch this to catch everything that the inspector raises on purpose."""


class UsageError(InspectorError):
    """What was asked for makes no sense: a bad number, size, name or combination."""


class SetupError(InspectorError):
    """Something that the host must have is missing or broken."""


class ImageError(SetupError):
    """A kernel or a guest image cannot be fetched, built or used."""


class MachineError(InspectorError):
    """QEMU, or what talks to it, failed."""


class BootError(MachineError):
    """The guest did not come up: a panic, a bad kernel, no answer in time."""


class GuestDied(MachineError):
    """QEMU is gone."""


class QmpError(MachineError):
    """QMP refused a command."""


class GdbError(MachineError):
    """Gdb, or QEMU's gdbstub, refused a command."""


class CommandTimeout(MachineError):
    """A command in the guest took too long; it was killed, the channel is in order."""


class OutsideRam(InspectorError):
    """A physical address that no RAM answers."""

    def __init__(self, address: int, size: int = 1) -> None:
        super().__init__(f"no RAM at physical address {address:#x} ({size} bytes)")
        self.address = address
        self.size = size


class PageFault(InspectorError):
    """A virtual address that does not translate; `walk` tells where it ended and why."""

    def __init__(self, message: str, walk: Any) -> None:
        super().__init__(message)
        self.walk = walk


class SymbolsError(InspectorError):
    """Names or types could not be found or read."""


class NoSuchSymbol(SymbolsError):
    """The kernel has no symbol of that name."""


class NoSuchType(SymbolsError):
    """The kernel has no type of that name."""


class NoSuchField(SymbolsError):
    """The type has no such member in this kernel."""


class BadFormat(SymbolsError):
    """Kallsyms, BTF, VMCOREINFO, ELF or a memory image that cannot be read."""


class BadSnapshot(InspectorError):
    """A file that holds no snapshot, or a damaged one."""


class LabFailed(InspectorError):
    """A lab cannot be done on this guest: its premise is missing."""


class KernelError(InspectorError):
    """A Linux object could not be found or read."""


class NoSuchTask(KernelError):
    """No task has that PID."""


class NoSuchFrame(KernelError):
    """That PFN has no struct page."""


class CorruptGuest(KernelError):
    """A list, tree or table in the guest loops or grows past its bound."""
