"""Code and data addresses by name, as the kernel itself prints them with %pS (kernel/kallsyms.c)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel.bulk import columns
from inspector.kernel.modules import Module, modules
from inspector.symbols import Kernel, Symbol
from inspector.units import VirtAddr, printable

_MAX_SYMBOLS = 1 << 20  # of one module
_MAX_NAME = 512  # KSYM_NAME_LEN
_SHN_UNDEF = 0

_SYMBOL = np.dtype(
    [
        ("value", np.uint64),
        ("name", np.uint64),  # where it lies
        ("kind", np.uint8),
        ("label", np.bool_),  # the assembler's: is_mapping_symbol() passes it over
    ]
)


def symbolise(kernel: Kernel, addresses: Iterable[int], loaded: Sequence[Module] = ()) -> dict[int, str]:
    """`name+0xoffset/0xsize [module]` for each address; `0x...` where no symbol is near.

    Names come from the guest: show them through units.printable(). Raises CorruptGuest, PageFault.
    """
    found: dict[int, str] = {}
    for address in set(addresses):
        name = in_kernel(kernel, address)
        if name is None:
            owner = next((module for module in loaded if module.holds(VirtAddr(address))), None)
            name = _in_module(kernel, owner, address) if owner else None
        found[address] = name or f"{address:#x}"
    return found


def in_kernel(kernel: Kernel, address: int) -> str | None:
    """`name+0xoffset/0xsize` of an address in the kernel image; None outside it.

    Of several symbols at one place the table's first is taken, and the size reaches to the next place, as in
    get_symbol_pos().
    """
    arrays, offset = kernel.symbols.arrays, kernel.symbols.offset
    end = kernel.symbol("_end")
    if not kernel.symbol("_stext") <= address < end:
        return None
    link = np.uint64(address - offset)
    after = int(np.searchsorted(arrays.addresses, link, "right"))
    if not after:
        return None
    start = arrays.addresses[after - 1]
    first = int(np.searchsorted(arrays.addresses, start, "left"))
    size = (int(arrays.addresses[after]) if after < len(arrays.addresses) else end - offset) - int(start)
    low, high = int(arrays.bounds[first]), int(arrays.bounds[first + 1]) - 1
    name = arrays.names[low:high].tobytes().decode(errors="replace")
    return f"{name}+{int(link) - int(start):#x}/{size:#x}"


def symbol_at(kernel: Kernel, address: VirtAddr) -> tuple[Symbol, int] | None:
    """The symbol of the kernel or of a loaded module that an address lies in, and the offset in bytes.

    None where none is near. Raises CorruptGuest, PageFault.
    """
    if found := kernel.symbols.lookup(address):
        return found
    owner = next((module for module in modules(kernel) if module.holds(address)), None)
    nearest = _nearest(kernel, owner, address) if owner else None
    return None if nearest is None else (nearest[0], address - nearest[0].address)


def address_of(kernel: Kernel, name: str) -> VirtAddr:
    """The address of a symbol of the kernel, or else of a loaded module. Raises NoSuchSymbol."""
    if not kernel.symbols.has(name):
        for module in modules(kernel):
            for symbol in module_symbols(kernel, module):
                if symbol.name == name:
                    return symbol.address
    return kernel.symbol(name)


def module_symbols(kernel: Kernel, module: Module) -> list[Symbol]:
    """Every symbol of a module, in the order of /proc/kallsyms. Raises CorruptGuest, PageFault."""
    rows = _symbols(kernel, module)
    return [_symbol(kernel, module, row) for row in rows]


def _in_module(kernel: Kernel, module: Module, address: int) -> str | None:
    nearest = _nearest(kernel, module, VirtAddr(address))
    if nearest is None:
        return None
    symbol, size = nearest
    return f"{printable(symbol.name)}+{address - symbol.address:#x}/{size:#x} [{module.name}]"


def _nearest(kernel: Kernel, module: Module, address: VirtAddr) -> tuple[Symbol, int] | None:
    """The nearest symbol of the module's own table and its size, as find_kallsyms_symbol() takes it."""
    part = next((part for part in module.parts if part.holds(address)), None)
    rows = _symbols(kernel, module)
    rows = rows[~rows["label"]]
    values = rows["value"]
    below = values <= np.uint64(address)
    if part is None or not below.any() or (best := int(values[below].max())) < part.start:
        return None
    end = min([*values[values > np.uint64(address)].tolist(), part.symbols_end])
    return _symbol(kernel, module, rows[int(np.flatnonzero(values == best)[0])]), end - best


def _symbol(kernel: Kernel, module: Module, row: np.void) -> Symbol:
    name = kernel.space.cstring(VirtAddr(int(row["name"])), _MAX_NAME)
    return Symbol(name, VirtAddr(int(row["value"])), chr(row["kind"]), module.name)


def _symbols(kernel: Kernel, module: Module) -> NDArray[np.void]:
    """A module's defined and named symbols as _SYMBOL rows."""
    table = kernel.view("module", module.address).deref("kallsyms")
    count = table.int("num_symtab") if table else 0
    if table is None or not count:
        return np.empty(0, _SYMBOL)
    if count > _MAX_SYMBOLS:
        raise CorruptGuest(f"a module has {count} symbols")
    size = np.uint64(kernel.types.sizeof("elf64_sym"))
    index = np.arange(1, count, dtype=np.uint64)
    at = np.uint64(table.ptr("symtab")) + index * size
    values, section, offset = columns(kernel, "elf64_sym", at, "st_value", "st_shndx", "st_name")
    rows = np.zeros(len(index), _SYMBOL)
    rows["value"] = values
    rows["name"] = np.uint64(table.ptr("strtab")) + offset
    rows["kind"], _ = kernel.space.gather(np.uint64(table.ptr("typetab")) + index, np.dtype(np.uint8))
    start, _ = kernel.space.gather(rows["name"], np.dtype(np.uint8), 2)
    label = (start == (ord("."), ord("L"))).all(axis=1) | (start == (ord("L"), ord("0"))).all(axis=1)
    rows["label"] = label | (start[:, 0] == ord("$"))
    kept: NDArray[np.void] = rows[(section != _SHN_UNDEF) & (start[:, 0] != 0)]
    return kept
