"""What QEMU's human monitor prints about CPUs and RAM, as data."""

from __future__ import annotations

import re

from inspector.errors import MachineError
from inspector.machine.model import CpuRegisters, RamRange, Segment
from inspector.units import VirtAddr

_CPU = re.compile(r"^CPU#(\d+)\s*$", re.MULTILINE)
_REGISTER = re.compile(r"\b([A-Z][A-Z0-9]{1,4}) ?=\s?([0-9a-f]+)\b")
_SEGMENT = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) ?=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE
)
_TABLE = re.compile(r"^(GDT|IDT)=\s+([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE)
_GENERAL = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_REGION = re.compile(
    r"^\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (\w[\w/-]*)\): (\S+)(?: @([0-9a-f]+))?", re.MULTILINE
)


def parse_registers(text: str) -> list[CpuRegisters]:
    """`info registers -a` of an x86 machine (QEMU target/i386/cpu-dump.c). Raises MachineError.

    Code in 64-bit mode prints RAX and 16 digits, anything else EAX and 8.
    """
    parts = _CPU.split(text)
    if len(parts) < 3:
        raise MachineError("QEMU's `info registers -a` names no CPU: is this an x86 machine?")
    return [_one(int(parts[i]), parts[i + 1]) for i in range(1, len(parts), 2)]


def _one(cpu: int, text: str) -> CpuRegisters:
    values = {name: int(value, 16) for name, value in _REGISTER.findall(text)}
    segments = {
        name.lower(): Segment(*(int(word, 16) for word in words)) for name, *words in _SEGMENT.findall(text)
    }
    for name, base, limit in _TABLE.findall(text):
        segments[name.lower()] = Segment(0, int(base, 16), int(limit, 16), 0)
    wide = "RIP" in values
    general = {f"r{name}": values[("R" if wide else "E") + name.upper()] for name in _GENERAL}
    if wide:
        general |= {f"r{n}": values[f"R{n}"] for n in range(8, 16)}
    return CpuRegisters(
        cpu=cpu,
        rip=VirtAddr(values["RIP" if wide else "EIP"]),
        rsp=VirtAddr(general["rsp"]),
        rflags=values["RFL" if wide else "EFL"],
        cr0=values["CR0"],
        cr2=VirtAddr(values["CR2"]),
        cr3=values["CR3"],
        cr4=values["CR4"],
        efer=values["EFER"],
        gs_base=VirtAddr(segments["gs"].base),
        kernel_gs_base=None,
        idt_base=VirtAddr(segments["idt"].base),
        cpl=values["CPL"],
        halted=bool(values["HLT"]),
        general=general,
        segments=segments,
    )


def parse_ram(text: str, backend: str = "ram") -> list[RamRange]:
    """Where the backend's bytes lie, from `info mtree -f` (QEMU softmmu/memory.c). Raises MachineError.

    The view of the address space "memory" counts. What it calls rom and is the backend's is RAM that the
    chipset write-protects (PAM registers, 0xc0000..0xfffff). Runs that join in both spaces become one.
    """
    for view in re.split(r"^FlatView #\d+", text, flags=re.MULTILINE):
        if re.search(r'^ AS "memory"', view, re.MULTILINE):
            break
    else:
        raise MachineError('QEMU\'s `info mtree -f` shows no address space "memory"')
    blocks: list[RamRange] = []
    for first, last, kind, name, at in sorted(_REGION.findall(view)):
        if name != backend or kind not in ("ram", "rom"):
            continue
        start, size, offset = int(first, 16), int(last, 16) - int(first, 16) + 1, int(at or "0", 16)
        if blocks and sum(blocks[-1][:2]) == start and blocks[-1][2] + blocks[-1][1] == offset:
            blocks[-1] = (blocks[-1][0], blocks[-1][1] + size, blocks[-1][2])
        else:
            blocks.append((start, size, offset))
    if not blocks:
        raise MachineError(f"QEMU's `info mtree -f` shows no RAM of the backend {backend!r}")
    return blocks
