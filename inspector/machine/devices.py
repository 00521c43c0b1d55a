"""The state of QEMU's devices, taken out of one QEMU and put into another by QMP; RAM stays where it is.

QEMU docs: devel/migration; qapi/migration.json. With the capability x-ignore-shared a migration leaves out
memory that is a shared file: the guest's RAM and the window.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from inspector.errors import MachineError
from inspector.machine.qmp import Qmp

_TIMEOUT = 30.0
_TICK = 0.002
# PCI configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2)
_ADDRESS, _DATA, _ENABLE = 0xCF8, 0xCFC, 1 << 31
# edu (hw/misc/edu.c) has no vmstate: nothing of it is migrated, its PCI configuration neither. ivshmem's is,
# but a shared file must lie where it lay before RAM's turn comes (migration/ram.c: "Mismatched GPAs").
_SET_BEFORE = {(0x1234, 0x11E8), (0x1AF4, 0x1110)}
# Cache line, BARs, interrupt line, MSI; the command register last: it lets the device answer.
_KEPT = (0x0C, *range(0x10, 0x28, 4), 0x3C, *range(0x40, 0x50, 4), 0x04)
_COMMAND = 0x04
_VALUE = re.compile(r"=\s*(0x[0-9a-f]+)")

PciConfig = dict[str, dict[str, int]]
"""By `bus:slot.function`, the 32-bit words by their offset in hexadecimal."""


def take(qmp: Qmp) -> bytes:
    """The devices' state of a guest that stands still. Raises QmpError, MachineError, GuestDied."""
    fd = os.memfd_create("kmi-devices")
    try:
        _ignore_shared(qmp)
        qmp.send_fd("kmi-devices", fd)
        qmp.execute("migrate", {"uri": "fd:kmi-devices"})
        _migrated(qmp, "save")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def give(qmp: Qmp, devices: bytes) -> None:
    """Load the state into a QEMU that was started for it; the guest stands still. Raises as `take`."""
    fd = os.memfd_create("kmi-devices")
    try:
        os.pwrite(fd, devices, 0)
        _ignore_shared(qmp)
        qmp.send_fd("kmi-devices", fd)
        qmp.execute("migrate-incoming", {"uri": "fd:kmi-devices"})
        _migrated(qmp, "load")
    finally:
        os.close(fd)


def _ignore_shared(qmp: Qmp) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    qmp.execute("migrate-set-capabilities", {"capabilities": [capability]})


def _migrated(qmp: Qmp, what: str) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        about = qmp.execute("query-migrate")
        if about.get("status") == "completed":
            return
        if about.get("status") in ("failed", "cancelled"):
            reason = about.get("error-desc", "it does not say why")
            raise MachineError(f"QEMU did not {what} its devices' state: {reason}")
        time.sleep(_TICK)
    raise MachineError(f"QEMU did not {what} its devices' state within {_TIMEOUT:g} s")


def pci_config(qmp: Qmp) -> PciConfig:
    """The PCI configuration that must be there before `give`, of a guest that stands still.

    Raises QmpError.
    """
    selected = _in(qmp, _ADDRESS)
    found = {}
    for name, base in _to_set(qmp):
        words = {}
        for offset in _KEPT:
            _out(qmp, _ADDRESS, base | offset)
            words[f"{offset:x}"] = _in(qmp, _DATA)
        found[name] = {offset: word for offset, word in words.items() if word}
    _out(qmp, _ADDRESS, selected)  # the guest may be between its two accesses
    return found


def set_pci_config(qmp: Qmp, config: PciConfig) -> None:
    """Write what `pci_config` gave into a QEMU that was just started. Raises QmpError."""
    for name, base in _to_set(qmp):
        for offset, value in ((int(key, 16), value) for key, value in config.get(name, {}).items()):
            _out(qmp, _ADDRESS, base | offset)
            # the status register is the upper half: ones written there clear bits
            _out(qmp, _DATA, value & 0xFFFF if offset == _COMMAND else value)


def _to_set(qmp: Qmp) -> list[tuple[str, int]]:
    """The devices whose configuration we set: their names, and their address for mechanism #1."""
    found = []
    for bus in qmp.execute("query-pci"):
        device: dict[str, Any]
        for device in bus["devices"]:
            if (device["id"]["vendor"], device["id"]["device"]) in _SET_BEFORE:
                number, slot, function = bus["bus"], device["slot"], device["function"]
                base = _ENABLE | number << 16 | slot << 11 | function << 8
                found.append((f"{number:02x}:{slot:02x}.{function}", base))
    return found


def _in(qmp: Qmp, port: int) -> int:
    said = qmp.hmp(f"i /w {port:#x}")
    value = _VALUE.search(said)
    if not value:
        raise MachineError(f"QEMU's monitor does not read port {port:#x}: {said.strip()}")
    return int(value[1], 16)


def _out(qmp: Qmp, port: int, value: int) -> None:
    qmp.hmp(f"o /w {port:#x} {value:#x}")
