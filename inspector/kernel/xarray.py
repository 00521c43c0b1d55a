"""An entry of an xarray by its index (include/linux/xarray.h, lib/xarray.c: xa_load())."""

from __future__ import annotations

from inspector.errors import CorruptGuest
from inspector.symbols import StructView
from inspector.units import VirtAddr

_INTERNAL, _VALUE = 2, 1  # the low two bits of an entry; a pointer has neither
_FIRST_NODE = 4096  # an internal entry below is no node
_MAX_SHIFT = 64


def load(xarray: StructView, index: int) -> int:
    """The entry (C: void *, a pointer or a value) at an index; 0 where there is none. Raises CorruptGuest.

    Entries of several indexes are not known to it.
    """
    kernel = xarray.kernel
    entry, above = int(xarray.ptr("xa_head")), _MAX_SHIFT
    slots = kernel.types.field("xa_node", "slots")
    count = slots.type.count
    if entry & 3 != _INTERNAL:
        return 0 if index else entry
    while entry & 3 == _INTERNAL and entry > _FIRST_NODE:
        at = VirtAddr(entry - _INTERNAL)
        shift = kernel.view("xa_node", at).int("shift")
        if shift >= above:
            raise CorruptGuest(f"the xarray at {xarray.address:#x} is no tree")
        if above == _MAX_SHIFT and index >> shift >= count:
            return 0  # beyond all that it has
        place = index >> shift & count - 1
        entry, above = kernel.space.pointer(VirtAddr(at + slots.offset + place * kernel.pointer_size)), shift
    return entry


def is_value(entry: int) -> bool:
    """Whether an entry is a number, not a pointer (C: xa_is_value())."""
    return bool(entry & _VALUE)
