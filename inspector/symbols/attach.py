"""Attach: from a guest's memory and the registers of its CPUs to a Kernel with names and types."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from inspector.arch import AddressSpace
from inspector.errors import BadFormat, CorruptGuest, NoSuchSymbol, OutsideRam, PageFault
from inspector.memory import PhysicalMemory
from inspector.symbols import profile as profiles
from inspector.symbols.btf import Btf
from inspector.symbols.finder import find_tables
from inspector.symbols.kallsyms import KallsymsTables, read_kallsyms
from inspector.symbols.kernel import Kernel
from inspector.symbols.locate import CpuState, KernelLocation, locate, locate_by
from inspector.symbols.modules import KernelTypes
from inspector.symbols.profile import Profile
from inspector.symbols.table import SymbolTable
from inspector.symbols.types import TypeTable
from inspector.symbols.vmcoreinfo import Vmcoreinfo
from inspector.units import printable


def attach(
    memory: PhysicalMemory,
    cpus: CpuState | Sequence[CpuState],
    *,
    cache: Path | None = None,
    vmlinux: Path | None = None,
    vmcoreinfo: bytes | None = None,
) -> Kernel:
    """The Linux kernel that the CPUs run: the first of them that leads to it is enough.

    `vmcoreinfo` is the text that a crash dump has beside its memory, for where no CPU's registers lead there.
    `cache` is a folder that keeps profiles; `vmlinux` an ELF file whose names and types are taken instead.
    The guest should stand still. Raises BadFormat where no kernel is found or it cannot be read, UsageError
    where the vmlinux is another kernel's.
    """
    clock = _Clock()
    place = _locate(memory, cpus, vmcoreinfo)
    clock.lap("locate")
    space = AddressSpace(memory, place.format, place.root)
    info = place.vmcoreinfo
    if vmlinux is not None:
        symbols, types = _from_vmlinux(place, space, vmlinux)
        clock.lap("vmlinux")
        return Kernel(memory, space, symbols, types, info, profile="vmlinux", phases=clock.laps)
    path = profiles.profile_path(cache, info.build_id) if cache and info.build_id else None
    kept = profiles.load(path) if path else None
    clock.lap("profile")
    if kept:
        try:
            symbols = SymbolTable(kept.symbols, info.kaslr_offset)
            btf = Btf(kept.btf, starts=kept.btf_starts, pointer_size=space.format.pointer_size)
            if symbols.address("_stext") == info.symbol("_stext"):
                clock.lap("index")
                types = KernelTypes(btf, space, symbols)
                return Kernel(memory, space, symbols, types, info, profile="warm", phases=clock.laps)
        except (BadFormat, NoSuchSymbol):
            pass  # the file is whole but wrong: build it anew
    symbols = _kallsyms(place, space)
    clock.lap("kallsyms")
    btf = _btf(symbols, space)
    clock.lap("BTF")
    if path:
        profiles.save(path, Profile(symbols.arrays, btf.data, btf.starts))
        clock.lap("save")
    types = KernelTypes(btf, space, symbols)
    return Kernel(memory, space, symbols, types, info, profile="cold", phases=clock.laps)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _locate(
    memory: PhysicalMemory, cpus: CpuState | Sequence[CpuState], vmcoreinfo: bytes | None
) -> KernelLocation:
    failure: BadFormat | None = None
    for cpu in cpus if isinstance(cpus, Sequence) else (cpus,):
        try:
            return locate(memory, cpu)
        except BadFormat as error:  # a CPU that the kernel has not brought up leads nowhere; another may
            failure = failure or error
    if vmcoreinfo is not None:
        return locate_by(memory, Vmcoreinfo.parse(vmcoreinfo))
    raise failure or BadFormat("no Linux kernel found: the guest has no CPU")


def _kallsyms(place: KernelLocation, space: AddressSpace) -> SymbolTable:
    info = place.vmcoreinfo
    failure: BadFormat | None = None
    try:
        for tables in _tables(place, space):
            try:
                arrays = read_kallsyms(space, tables, ("_stext", info.symbol("_stext")), info.kaslr_offset)
                return SymbolTable(arrays, info.kaslr_offset)
            except BadFormat as error:
                failure = error
    except (PageFault, OutsideRam, CorruptGuest, NoSuchSymbol) as error:
        raise BadFormat(f"the kernel's kallsyms cannot be read: {error}") from error
    raise failure or BadFormat(f"no kallsyms found in {printable(info.osrelease)}; give its vmlinux")


def _tables(place: KernelLocation, space: AddressSpace) -> Iterator[KallsymsTables]:
    """Where VMCOREINFO has kallsyms' tables, or before 6.0 what looks like them."""
    try:
        named = KallsymsTables.from_vmcoreinfo(place.vmcoreinfo)
    except NoSuchSymbol:
        yield from find_tables(space, place.image_start, place.image_end)
    else:
        yield named


def _btf(symbols: SymbolTable, space: AddressSpace) -> Btf:
    try:
        start, stop = symbols.address("__start_BTF"), symbols.address("__stop_BTF")
        # A copy: the types must outlive the mapping of the guest's RAM.
        return Btf(space.read(start, max(stop - start, 0)), pointer_size=space.format.pointer_size)
    except NoSuchSymbol as error:
        raise BadFormat("this kernel carries no BTF (CONFIG_DEBUG_INFO_BTF=n); give its vmlinux") from error
    except (PageFault, OutsideRam) as error:
        raise BadFormat(f"the kernel's BTF cannot be read: {error}") from error


def _from_vmlinux(place: KernelLocation, space: AddressSpace, path: Path) -> tuple[SymbolTable, TypeTable]:
    """Names and types of the file; what it lacks comes from the guest."""
    from inspector.symbols.elf import Vmlinux  # few need pyelftools

    info = place.vmcoreinfo
    file = Vmlinux(path)
    file.check_build_id(info.build_id)
    arrays = file.symbols()
    symbols = SymbolTable(arrays, info.kaslr_offset) if arrays else _kallsyms(place, space)
    if symbols.address("_stext") != info.symbol("_stext"):
        raise BadFormat(
            f"{path} puts _stext elsewhere than the running kernel: it is another kernel's vmlinux"
        )
    types = file.types()
    if types is None:
        types = _btf(symbols, space)
    return symbols, KernelTypes(types, space, symbols) if isinstance(types, Btf) else types
