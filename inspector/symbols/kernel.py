"""The kernel as its readers see it: memory, the kernel's address space, names and types, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from inspector.arch import AddressSpace
from inspector.errors import CorruptGuest, NoSuchSymbol, PageFault, UsageError
from inspector.memory import PhysicalMemory
from inspector.symbols.table import SymbolTable
from inspector.symbols.types import Field, Type, TypeTable
from inspector.symbols.view import StructView
from inspector.symbols.vmcoreinfo import Vmcoreinfo
from inspector.units import PhysAddr, VirtAddr

Layout = TypeVar("Layout")

# Where x86-64 keeps its regions without CONFIG_RANDOMIZE_MEMORY, by paging levels: the direct map, vmalloc
# and vmemmap (Documentation/arch/x86/x86_64/mm.rst).
_FIXED_BASES = {
    "page_offset_base": {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000},
    "vmalloc_base": {4: 0xFFFF_C900_0000_0000, 5: 0xFFA0_0000_0000_0000},
    "vmemmap_base": {4: 0xFFFF_EA00_0000_0000, 5: 0xFFD4_0000_0000_0000},
}


class Kernel:
    """What every reader of Linux objects takes. `space` walks the kernel's own page tables (swapper_pg_dir).

    `profile` says where names and types came from: `warm` (the cached profile), `cold` (guest memory) or
    `vmlinux`; `phases` how long each step of attaching took, in seconds.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        space: AddressSpace,
        symbols: SymbolTable,
        types: TypeTable,
        vmcoreinfo: Vmcoreinfo,
        *,
        profile: str = "cold",
        phases: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.memory = memory
        self.space = space
        self.symbols = symbols
        self.types = types
        self.vmcoreinfo = vmcoreinfo
        # How to make memory stand still for a compound answer; whoever runs the guest puts it here.
        self.still: Callable[[], AbstractContextManager[None]] = nullcontext
        self.profile = profile
        self.phases = phases
        self.recalled: dict[Any, Any] = {}
        """What kernel.recall keeps."""
        self.confirmed: dict[Any, Any] = {}
        """What of it holds at the moment that a copy of a Kernel is for."""
        self._fields: dict[tuple[int, str], Field | None] = {}
        self._layouts: dict[Callable[[Kernel], Any], Any] = {}

    @property
    def release(self) -> str:
        """What `uname -r` prints."""
        return self.vmcoreinfo.osrelease

    @property
    def build_id(self) -> str:
        """The GNU build id in hexadecimal; empty before 5.9, whose VMCOREINFO lacks it."""
        return self.vmcoreinfo.build_id or ""

    @property
    def kaslr_offset(self) -> int:
        """Bytes between where the kernel image runs and where it was linked."""
        return self.vmcoreinfo.kaslr_offset

    @cached_property
    def pointer_size(self) -> int:
        """Bytes in a pointer."""
        return self.space.format.pointer_size

    @cached_property
    def pointer_mask(self) -> int:
        """All ones in a pointer's width."""
        return (1 << 8 * self.pointer_size) - 1

    # Names and types

    def symbol(self, name: str) -> VirtAddr:
        """The address of a symbol, KASLR included. Raises NoSuchSymbol."""
        return self.symbols.address(name)

    def view(self, type_name: str, address: VirtAddr) -> StructView:
        """A struct at an address. Raises NoSuchType."""
        return StructView(self, self.types.find(type_name), address)

    def variable(self, type_name: str, symbol: str) -> StructView:
        """A global struct by its symbol (C: &symbol). Raises NoSuchType, NoSuchSymbol."""
        return self.view(type_name, self.symbol(symbol))

    def word(self, symbol: str) -> int:
        """A global unsigned long by its symbol. Raises NoSuchSymbol, PageFault."""
        return self.space.pointer(self.symbol(symbol))

    def field(self, type_: Type, path: str) -> Field | None:
        """The member at `path` of a type in hand, looked up once."""
        key = (type_.id, path)
        if key not in self._fields:
            self._fields[key] = self.types.field_of(type_, path)
        return self._fields[key]

    def layout(self, question: Callable[[Kernel], Layout]) -> Layout:
        """question(self), asked once: the answer must hang on the kernel's own types and symbols alone."""
        if question not in self._layouts:
            self._layouts[question] = question(self)
        found: Layout = self._layouts[question]
        return found

    # CPUs

    @cached_property
    def possible_cpus(self) -> tuple[int, ...]:
        """The CPUs that the kernel made room for at boot (C: cpu_possible_mask)."""
        return self._cpu_mask("__cpu_possible_mask")

    def online_cpus(self) -> tuple[int, ...]:
        """The CPUs that run now (C: cpu_online_mask). Raises CorruptGuest."""
        online = self._cpu_mask("__cpu_online_mask")
        if not set(online) <= set(self.possible_cpus):
            raise CorruptGuest("the kernel says that CPUs run which it made no room for (__cpu_online_mask)")
        return online

    def per_cpu(self, symbol: str, cpu: int) -> VirtAddr:
        """One CPU's copy of a per-CPU variable (C: &per_cpu(x, cpu)). Raises NoSuchSymbol, UsageError."""
        return self.per_cpu_address(self.symbol(symbol), cpu)

    def per_cpu_address(self, base: VirtAddr, cpu: int) -> VirtAddr:
        """One CPU's copy of what a __percpu pointer names (C: per_cpu_ptr(base, cpu)). Raises UsageError."""
        if cpu not in self._per_cpu_offsets:
            raise UsageError(
                f"there is no CPU {cpu}; this guest has {', '.join(map(str, self.possible_cpus))}"
            )
        return VirtAddr(base + self._per_cpu_offsets[cpu] & self.pointer_mask)

    @cached_property
    def _per_cpu_offsets(self) -> dict[int, int]:
        if "__per_cpu_offset" not in self.symbols:  # a kernel for one CPU (CONFIG_SMP=n)
            return dict.fromkeys(self.possible_cpus, 0)
        table, size = self.symbol("__per_cpu_offset"), self.pointer_size
        return {cpu: self.space.pointer(VirtAddr(table + cpu * size)) for cpu in self.possible_cpus}

    def _cpu_mask(self, symbol: str) -> tuple[int, ...]:
        if symbol not in self.symbols:  # CONFIG_SMP=n
            return (0,)
        raw = self.space.array(self.symbol(symbol), self.types.sizeof("cpumask"))
        return tuple(np.flatnonzero(np.unpackbits(raw, bitorder="little")).tolist())

    # Where memory is mapped

    @cached_property
    def page_offset(self) -> VirtAddr:
        """Where the direct map of physical memory begins (C: PAGE_OFFSET, page_offset_base)."""
        return self._base("page_offset_base")

    @cached_property
    def vmalloc_base(self) -> VirtAddr:
        """Where vmalloc's region begins (C: VMALLOC_START)."""
        return self._base("vmalloc_base")

    @cached_property
    def vmemmap_base(self) -> VirtAddr:
        """Where the array of struct page begins (C: vmemmap)."""
        return self._base("vmemmap_base")

    def phys_to_virt(self, address: PhysAddr) -> VirtAddr:
        """Where the direct map has, or would have, a physical address (C: __va)."""
        return VirtAddr(address + self.page_offset)

    def virt_to_phys(self, address: VirtAddr) -> PhysAddr:
        """The physical address behind any kernel address, by the kernel's page tables. Raises PageFault."""
        found = self.space.translate(address)
        if found is None:
            raise PageFault(f"{address:#x} is not mapped in the kernel", self.space.walk(address))
        return found

    def _base(self, symbol: str) -> VirtAddr:
        if symbol in self.symbols:
            return VirtAddr(self.word(symbol))
        levels = len(self.space.format.levels)
        if levels not in _FIXED_BASES[symbol]:
            raise NoSuchSymbol(
                f"the kernel has no symbol {symbol!r}, and {self.space.format.name} no fixed place"
            )
        return VirtAddr(_FIXED_BASES[symbol][levels])
