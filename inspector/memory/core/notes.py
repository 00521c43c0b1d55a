"""ELF notes of a memory image: each CPU's registers, and VMCOREINFO.

Sources: include/uapi/linux/elfcore.h and arch/x86/include/asm/user_64.h (NT_PRSTATUS, struct elf_prstatus);
QEMU target/i386/arch_dump.c (QEMUCPUState; from 2.12 on kernel_gs_base follows).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from inspector.errors import BadFormat
from inspector.memory.core.model import SavedCpu, SegmentWords

MOST = 64 << 20
"""Bytes of notes that are read: some 80,000 CPUs."""

_HEADER = struct.Struct("<III")
_NT_PRSTATUS = 1
_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_PRSTATUS = struct.Struct(f"<32xI76x{len(_REGISTERS)}Q8x")
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_QEMU = struct.Struct("<II" + "18Q" + "IIIIQ" * len(_SEGMENTS) + "5Q")
_QEMU_VERSION = 1


def parse(data: bytes) -> tuple[list[SavedCpu], bytes | None]:
    """The CPUs in order, and VMCOREINFO's text. Raises BadFormat where a note reaches past the end."""
    kernels: list[SavedCpu] = []
    qemus: list[SavedCpu] = []
    info: bytes | None = None
    for name, type_, body in _notes(data):
        if name == b"CORE" and type_ == _NT_PRSTATUS:
            kernels.append(_prstatus(body))
        elif name == b"QEMU":
            qemus.append(_qemu(body))
        elif name == b"VMCOREINFO" and info is None:
            info = body
    # QEMU writes both kinds for every CPU; its own has all that the other has.
    return (qemus if len(qemus) >= len(kernels) else kernels), info


def build(cpus: Sequence[SavedCpu], vmcoreinfo: bytes) -> tuple[bytes, int]:
    """Notes of each CPU as QEMU writes them, then VMCOREINFO; and where in them its text begins."""
    parts = [_note(b"CORE", _NT_PRSTATUS, _build_prstatus(number, cpu)) for number, cpu in enumerate(cpus)]
    parts += [_note(b"QEMU", 0, _build_qemu(cpu)) for cpu in cpus if cpu.control]
    before = b"".join(parts)
    last = _note(b"VMCOREINFO", 0, vmcoreinfo)
    return before + last, len(before) + last.index(vmcoreinfo)


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        name_size, size, type_ = _HEADER.unpack_from(data, at)
        if not (name_size or size or type_):
            return  # the kernel leaves room behind its notes
        name_at = at + _HEADER.size
        body_at = name_at + _round4(name_size)
        if body_at + size > len(data):
            raise BadFormat(f"the image's notes are corrupt: one at {at:#x} reaches past their end")
        yield data[name_at : name_at + name_size].rstrip(b"\0"), type_, data[body_at : body_at + size]
        at = body_at + _round4(size)


def _prstatus(body: bytes) -> SavedCpu:
    if len(body) < _PRSTATUS.size:
        raise BadFormat(f"the image's notes are corrupt: an NT_PRSTATUS of {len(body)} bytes is not x86-64's")
    values = dict(zip(_REGISTERS, _PRSTATUS.unpack_from(body)[1:], strict=True))
    segments: dict[str, SegmentWords] = {
        name: (values[name] & 0xFFFF, values.get(f"{name}_base", 0), 0, 0)
        for name in ("cs", "ds", "es", "fs", "gs", "ss")
    }
    return SavedCpu({name: values[name] for name in _GENERAL}, segments)


def _qemu(body: bytes) -> SavedCpu:
    if len(body) < _QEMU.size:
        raise BadFormat(f"the image's notes are corrupt: QEMU's of a CPU has only {len(body)} bytes")
    _, _, *words = _QEMU.unpack_from(body)
    general = dict(zip(_GENERAL, words, strict=False))
    segments: dict[str, SegmentWords] = {}
    for index, name in enumerate(_SEGMENTS):
        selector, limit, flags, _, base = words[len(_GENERAL) + 5 * index :][:5]
        segments[name] = (selector, base, limit, flags)
    cr0, cr1, cr2, cr3, cr4 = words[-5:]
    behind = body[_QEMU.size :][:8]
    gs = int.from_bytes(behind, "little") if len(behind) == 8 else None
    return SavedCpu(general, segments, (cr0, cr1, cr2, cr3, cr4), gs)


def _build_prstatus(number: int, cpu: SavedCpu) -> bytes:
    values = {name: words[0] for name, words in cpu.segments.items()} | dict(cpu.general)
    values |= {f"{name}_base": cpu.segments.get(name, (0, 0))[1] for name in ("fs", "gs")}
    return _PRSTATUS.pack(number + 1, *(values.get(name, 0) for name in _REGISTERS))


def _build_qemu(cpu: SavedCpu) -> bytes:
    words = [cpu.general.get(name, 0) for name in _GENERAL]
    for name in _SEGMENTS:
        selector, base, limit, flags = cpu.segments.get(name, (0, 0, 0, 0))
        words += [selector, limit, flags, 0, base]
    words += cpu.control or ()
    if cpu.kernel_gs_base is None:
        return _QEMU.pack(_QEMU_VERSION, _QEMU.size, *words)
    return _QEMU.pack(_QEMU_VERSION, _QEMU.size + 8, *words) + cpu.kernel_gs_base.to_bytes(8, "little")


def _note(name: bytes, type_: int, body: bytes) -> bytes:
    name += b"\0"
    padded = name.ljust(_round4(len(name)), b"\0") + body.ljust(_round4(len(body)), b"\0")
    return _HEADER.pack(len(name), len(body), type_) + padded


def _round4(size: int) -> int:
    return (size + 3) & ~3
