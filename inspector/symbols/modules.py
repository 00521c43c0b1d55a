"""The types that only a module has, out of the kernel's list of modules' BTF.

Source: kernel/bpf/btf.c, btf_modules (5.11, commit 36e68442d1af; CONFIG_DEBUG_INFO_BTF_MODULES).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inspector.arch import AddressSpace
from inspector.errors import BadFormat, NoSuchType, OutsideRam, PageFault, SymbolsError
from inspector.symbols.btf import Btf, Function
from inspector.symbols.table import SymbolTable
from inspector.symbols.types import Member, Type, TypeTable
from inspector.units import VirtAddr

_MAX_MODULES = 4096
_MAX_BTF = 16 << 20  # bytes of one module's BTF; the largest stock one has 500 KiB


class KernelTypes(TypeTable):
    """The kernel's own types, and behind them those of the modules loaded when a name is asked for."""

    def __init__(self, base: Btf, space: AddressSpace, symbols: SymbolTable) -> None:
        super().__init__()
        self.base = base
        self._space = space
        self._symbols = symbols
        self._modules: dict[tuple[VirtAddr, int], Btf] = {}  # by struct btf and its number
        self._by_serial = {0: base}
        self._misses: dict[str, bytes] = {}

    def find(self, name: str) -> Type:
        """The kernel's type of that name, or else a module's. Raises NoSuchType."""
        try:
            return self.base.find(name)
        except NoSuchType:
            state = self._list_state()
            if self._misses.get(name) == state:
                raise
            for module in self._load():
                try:
                    return module.find(name)
                except NoSuchType:
                    continue
            self._misses[name] = state
            raise

    def members(self, type_: Type) -> tuple[Member, ...]:
        """What a struct or union declares; one without a body is looked up by name. Raises NoSuchType."""
        try:
            return self._owner(type_).members(type_)
        except NoSuchType:  # the kernel only declares it, as it does for what a module keeps to itself
            return self.members(self.find(f"{type_.kind.name.lower()} {type_.name}"))

    def enumerators(self, type_: Type) -> Mapping[str, int]:
        """The names and values of an enum, in order; empty for any other type."""
        return self._owner(type_).enumerators(type_)

    def constant(self, enumerator: str) -> int:
        """The value of an enumerator of any of the kernel's own enums. Raises NoSuchType."""
        return self.base.constant(enumerator)

    def function(self, name: str) -> Function:
        """The signature of one of the kernel's own functions. Raises NoSuchType."""
        return self.base.function(name)

    def _owner(self, type_: Type) -> Btf:
        return self._by_serial[Btf.serial_of(type_.id)]

    def _list_state(self) -> bytes:
        """Both ends of the list, and the number of the module that came last, which is the first: one that
        comes or goes changes one of them, or was there before.
        """
        try:
            head = self._symbols.address("btf_modules")
            newest = next((number for _, number in self._numbered()), 0)
            return self._space.read(head, 2 * self.base.pointer_size) + newest.to_bytes(4, "little")
        except (SymbolsError, PageFault, OutsideRam):
            return b""

    def _load(self) -> Iterator[Btf]:
        """The BTF of every module; what cannot be read is left out."""
        try:
            numbered = list(self._numbered())
        except (SymbolsError, PageFault, OutsideRam):
            return
        for address, number in numbered:
            if (address, number) not in self._modules:
                try:
                    self._modules[address, number] = self._read(address)
                except (SymbolsError, PageFault, OutsideRam):
                    continue
            yield self._modules[address, number]

    def _numbered(self) -> Iterator[tuple[VirtAddr, int]]:
        """Every struct btf with its number, which no other has: a module's memory may be the next one's."""
        number = self.base.offsetof("btf", "id")
        for address in self._addresses():
            yield address, self._space.u32(VirtAddr(address + number))

    def _addresses(self) -> Iterator[VirtAddr]:
        """Every struct btf on the list btf_modules."""
        head = self._symbols.address("btf_modules")
        link = self.base.offsetof("btf_module", "list")
        btf = self.base.offsetof("btf_module", "btf")
        node = self._space.pointer(head)
        for _ in range(_MAX_MODULES):
            if node == head:
                return
            yield self._space.pointer(VirtAddr(node - link + btf))
            node = self._space.pointer(node)

    def _read(self, address: VirtAddr) -> Btf:
        data = self._space.pointer(VirtAddr(address + self.base.offsetof("btf", "data")))
        size = self._space.u32(VirtAddr(address + self.base.offsetof("btf", "data_size")))
        if not 0 < size <= _MAX_BTF:
            raise BadFormat(f"a module's BTF claims {size} bytes")
        serial = len(self._by_serial)
        blob = self._space.read(data, size)
        module = Btf(blob, self.base, pointer_size=self.base.pointer_size, serial=serial)
        self._by_serial[serial] = module
        return module
