"""The kernel as its readers see it: memory, the kernel's address space, names and types, in one place."""

from __future__ import annotations

from functools import cached_property

from inspector.arch import AddressSpace
from inspector.memory import PhysicalMemory
from inspector.symbols.table import SymbolTable
from inspector.symbols.types import Field, Type, TypeTable
from inspector.symbols.view import StructView
from inspector.symbols.vmcoreinfo import Vmcoreinfo
from inspector.units import VirtAddr


class Kernel:
    """What every reader of Linux objects takes. `space` walks the kernel's own page tables (swapper_pg_dir)."""

    def __init__(
        self,
        memory: PhysicalMemory,
        space: AddressSpace,
        symbols: SymbolTable,
        types: TypeTable,
        vmcoreinfo: Vmcoreinfo,
    ) -> None:
        self.memory = memory
        self.space = space
        self.symbols = symbols
        self.types = types
        self.vmcoreinfo = vmcoreinfo
        self._fields: dict[tuple[int, str], Field | None] = {}

    @cached_property
    def pointer_size(self) -> int:
        """Bytes in a pointer."""
        return self.space.format.pointer_size

    @cached_property
    def pointer_mask(self) -> int:
        """All ones in a pointer's width."""
        return (1 << 8 * self.pointer_size) - 1

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
        return int.from_bytes(self.space.read(self.symbol(symbol), self.pointer_size), "little")

    def field(self, type_: Type, path: str) -> Field | None:
        """The member at `path` of a type in hand, looked up once."""
        key = (type_.id, path)
        if key not in self._fields:
            self._fields[key] = self.types.field_of(type_, path)
        return self._fields[key]
