"""A guest's memory and registers into a memory image, and out of one again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from inspector.errors import InspectorError, UsageError
from inspector.machine import CpuRegisters, Machine, Segment, StillMachine
from inspector.memory import PhysicalMemory, core
from inspector.memory.core import MemoryImage, SavedCpu
from inspector.progress import Reporter
from inspector.symbols import Kernel
from inspector.units import VirtAddr

Format = Literal["elf", "kdump"]

_NO_SEGMENT = Segment(0, 0, 0, 0)
_UTSNAME_FIELDS, _UTSNAME_LENGTH = 6, 65  # C: struct new_utsname
_EFER_LONG_MODE = 0xD01  # SCE, LME, LMA, NXE: all that x86-64 Linux sets (SDM vol. 4, IA32_EFER)
_CR0_PG, _CR4_PAE = 1 << 31, 1 << 5


def check(path: Path, format: str, level: int, overwrite: bool) -> None:
    """Raise UsageError where an image cannot be saved so."""
    if format not in get_args(Format):
        raise UsageError(f"no format {format!r}; there are {', '.join(get_args(Format))}")
    if not 1 <= level <= 9:
        raise UsageError(f"no compression level {level}; zlib has 1 (fast) to 9 (small)")
    core.check_target(path, overwrite)


def save(
    machine: Machine,
    memory: PhysicalMemory,
    kernel: Kernel,
    path: Path,
    *,
    format: Format,
    level: int,
    overwrite: bool,
    reporter: Reporter,
) -> None:
    """Write the image; the machine stands still meanwhile. See Guest.save()."""
    check(path, format, level, overwrite)
    content = core.Machine(
        memory=memory,
        ram_fd=machine.ram_fd,
        cpus=tuple(_saved(registers) for registers in machine.registers()),
        vmcoreinfo=kernel.vmcoreinfo.text.encode("ascii", "replace"),
        page_offset=kernel.page_offset,
        phys_base=_phys_base(kernel),
        utsname=_utsname(kernel),
    )
    with (
        core.new_file(path, overwrite) as fd,
        reporter.task(f"Saving {path.name}", total=content.size, unit="B") as progress,
    ):
        if format == "elf":
            core.write_elf(fd, content, progress)
        else:
            core.write_kdump(fd, content, level, progress)


def still_machine(path: Path, image: MemoryImage) -> StillMachine:
    """The machine that an open image is; it closes the image's file."""
    blocks = [(int(block.start), block.size, block.offset) for block in image.blocks]
    registers = [_registers(number, cpu) for number, cpu in enumerate(image.cpus)]
    return StillMachine(path, image.form, image.fd, blocks, registers, image.remarks)


def _saved(registers: CpuRegisters) -> SavedCpu:
    control = (registers.cr0, 0, int(registers.cr2), registers.cr3, registers.cr4)
    return SavedCpu(
        general=registers.general | {"rip": registers.rip, "rflags": registers.rflags},
        segments=dict(registers.segments),
        control=control if registers.has_control else None,
        kernel_gs_base=registers.kernel_gs_base,
    )


def _registers(number: int, cpu: SavedCpu) -> CpuRegisters:
    cr0, _, cr2, cr3, cr4 = cpu.control or (0,) * 5
    # No note has EFER; only in long mode is there an x86-64 image with paging on.
    long_mode = cr0 & _CR0_PG and cr4 & _CR4_PAE
    segments = {name: Segment(*words) for name, words in cpu.segments.items()}
    return CpuRegisters(
        cpu=number,
        rip=VirtAddr(cpu.general["rip"]),
        rsp=VirtAddr(cpu.general["rsp"]),
        rflags=cpu.general["rflags"],
        cr0=cr0,
        cr2=VirtAddr(cr2),
        cr3=cr3,
        cr4=cr4,
        efer=_EFER_LONG_MODE if long_mode else 0,
        gs_base=VirtAddr(segments.get("gs", _NO_SEGMENT).base),
        kernel_gs_base=VirtAddr(cpu.kernel_gs_base) if cpu.kernel_gs_base is not None else None,
        idt_base=VirtAddr(segments.get("idt", _NO_SEGMENT).base),
        cpl=segments.get("cs", _NO_SEGMENT).selector & 3,
        halted=False,  # nothing tells
        general={name: value for name, value in cpu.general.items() if name not in ("rip", "rflags")},
        segments=segments,
    )


def _phys_base(kernel: Kernel) -> int:
    """How much further on the image lies than it was linked for (C: phys_base); 0 where nothing tells."""
    try:
        return kernel.vmcoreinfo.number("phys_base")
    except InspectorError:
        return 0


def _utsname(kernel: Kernel) -> bytes:
    """C: init_uts_ns.name."""
    try:
        name = kernel.variable("uts_namespace", "init_uts_ns").bytes("name")
        return name[: _UTSNAME_FIELDS * _UTSNAME_LENGTH]
    except InspectorError:
        texts = (b"Linux", b"", kernel.release.encode("ascii", "replace"), b"", b"x86_64", b"")
        return b"".join(text[: _UTSNAME_LENGTH - 1].ljust(_UTSNAME_LENGTH, b"\0") for text in texts)
