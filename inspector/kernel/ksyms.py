"""Code and data addresses by name, as the kernel itself prints them with %pS (kernel/kallsyms.c)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from inspector.errors import CorruptGuest
from inspector.kernel.bulk import columns
from inspector.kernel.modules import Module
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr, printable

_MAX_SYMBOLS = 1 << 20  # of one module
_MAX_NAME = 512  # KSYM_NAME_LEN
_SHN_UNDEF = 0


def symbolise(kernel: Kernel, addresses: Iterable[int], modules: Sequence[Module] = ()) -> dict[int, str]:
    """`name+0xoffset/0xsize [module]` for each address; `0x...` where no symbol is near.

    Names come from the guest: show them through units.printable(). Raises CorruptGuest, PageFault.
    """
    found: dict[int, str] = {}
    for address in set(addresses):
        name = in_kernel(kernel, address)
        if name is None:
            owner = next((module for module in modules if module.holds(VirtAddr(address))), None)
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


def _in_module(kernel: Kernel, module: Module, address: int) -> str | None:
    """The nearest symbol of the module's own table, as find_kallsyms_symbol() takes it."""
    table = kernel.view("module", module.address).deref("kallsyms")
    part = next((part for part in module.parts if part.holds(VirtAddr(address))), None)
    if table is None or part is None:
        return None
    values, names = _symbols(table)
    below = values <= np.uint64(address)
    if not below.any():
        return None
    best = int(values[below].max())
    after = values[values > np.uint64(address)]
    end = min([*after.tolist(), part.symbols_end])
    name = names[int(np.flatnonzero(values == best)[0])]
    text = kernel.space.cstring(VirtAddr(name), _MAX_NAME)
    return f"{printable(text)}+{address - best:#x}/{end - best:#x} [{module.name}]"


def _symbols(table: StructView) -> tuple[np.ndarray, list[int]]:
    """The values of a module's defined and named symbols, and where their names lie."""
    kernel = table.kernel
    count = table.int("num_symtab")
    if count > _MAX_SYMBOLS:
        raise CorruptGuest(f"a module has {count} symbols")
    size = np.uint64(kernel.types.sizeof("elf64_sym"))
    at = np.uint64(table.ptr("symtab")) + np.arange(1, count, dtype=np.uint64) * size
    values, section, offset = columns(kernel, "elf64_sym", at, "st_value", "st_shndx", "st_name")
    names = np.uint64(table.ptr("strtab")) + offset
    start, _ = kernel.space.gather(names, np.dtype(np.uint8), 2)
    # Labels of the assembler and unnamed symbols are passed over: is_mapping_symbol().
    label = (start == (ord("."), ord("L"))).all(axis=1) | (start == (ord("L"), ord("0"))).all(axis=1)
    kept = (section != _SHN_UNDEF) & (start[:, 0] != 0) & (start[:, 0] != ord("$")) & ~label
    return values[kept], names[kept].tolist()
