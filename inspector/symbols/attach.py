"""Attach: from a guest's memory and one CPU's registers to a Kernel with names and types."""

from __future__ import annotations

from pathlib import Path

from inspector.arch import AddressSpace
from inspector.errors import BadFormat, NoSuchSymbol
from inspector.memory import PhysicalMemory
from inspector.symbols.btf import Btf
from inspector.symbols.kallsyms import KallsymsTables, read_kallsyms
from inspector.symbols.kernel import Kernel
from inspector.symbols.locate import CpuState, locate
from inspector.symbols.table import SymbolTable
from inspector.units import VirtAddr


def attach(
    memory: PhysicalMemory, cpu: CpuState, *, cache: Path | None = None, vmlinux: Path | None = None
) -> Kernel:
    """The Linux kernel that `cpu` runs. Raises BadFormat where there is none to be found or read."""
    place = locate(memory, cpu)
    info = place.vmcoreinfo
    space = AddressSpace(memory, place.format, place.root)
    tables = KallsymsTables.from_vmcoreinfo(info)
    symbols = SymbolTable(
        read_kallsyms(space, tables, ("_stext", info.symbol("_stext")), info.kaslr_offset), info.kaslr_offset
    )
    start, stop = symbols.address("__start_BTF"), symbols.address("__stop_BTF")
    types = Btf(space.array(start, stop - start), pointer_size=space.format.pointer_size)
    return Kernel(memory, space, symbols, types, info)
