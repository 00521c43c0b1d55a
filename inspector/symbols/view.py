"""Typed views: a struct in guest memory, its members read by path when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspector.errors import BadFormat, NoSuchField
from inspector.symbols.types import Field, Kind, Type
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from inspector.symbols.kernel import Kernel

_SCALARS = (Kind.INT, Kind.ENUM, Kind.POINTER)
_MAX_BITS = 128  # C's __int128


class StructView:
    """A value of type `type` at `address` in the kernel's address space; nothing is read until asked for.

    Members are named by path (`mm_mt.ma_root`, `zone[2].name`); those of unnamed unions and structs are found
    as C finds them. Every reader raises NoSuchField for a path that this kernel lacks and PageFault for an
    address that it does not map.
    """

    __slots__ = ("address", "kernel", "type")

    def __init__(self, kernel: Kernel, type_: Type, address: VirtAddr) -> None:
        self.kernel = kernel
        self.type = type_
        self.address = address

    def __repr__(self) -> str:
        return f"<{self.type} at {self.address:#x}>"

    def has(self, path: str) -> bool:
        """Whether this kernel's type has such a member."""
        return self._find(path) is not None

    def addr(self, path: str) -> VirtAddr:
        """Where the member lies (C: &view->path)."""
        return VirtAddr(self.address + self._field(path).offset)

    def int(self, path: str) -> int:
        """An integer, enum, pointer or bitfield member, sign as declared (C: view->path)."""
        field = self._field(path)
        if field.type.kind not in _SCALARS:
            raise NoSuchField(f"{self.type}.{path} is {field.type}, not a number")
        bits = field.bit_size or field.type.size * 8
        if not 0 < bits <= _MAX_BITS:
            raise BadFormat(f"the types are corrupt: {self.type}.{path} is a number of {bits} bits")
        raw = self.kernel.space.read(VirtAddr(self.address + field.offset), (field.bit_shift + bits + 7) // 8)
        value = int.from_bytes(raw, "little")
        value = value >> field.bit_shift & (1 << bits) - 1
        return value - (1 << bits) if field.type.signed and value >> bits - 1 else value

    def ptr(self, path: str) -> VirtAddr:
        """A pointer member's value, or an unsigned long used as one."""
        return VirtAddr(self.int(path) & self.kernel.pointer_mask)

    def at(self, path: str) -> StructView:
        """A struct or union member, in place (C: &view->path)."""
        field = self._field(path)
        return StructView(self.kernel, field.type, VirtAddr(self.address + field.offset))

    def deref(self, path: str) -> StructView | None:
        """What a pointer member points to (C: view->path); None where it is NULL."""
        field = self._field(path)
        if field.type.kind is not Kind.POINTER or field.type.target is None:
            raise NoSuchField(f"{self.type}.{path} is {field.type}, not a pointer to a type")
        address = self.ptr(path)
        return StructView(self.kernel, field.type.target, address) if address else None

    def text(self, path: str) -> str:
        """A char array member up to its NUL, as untrusted text."""
        field = self._field(path)
        raw = self.kernel.space.read(VirtAddr(self.address + field.offset), field.type.size)
        return raw.split(b"\0", 1)[0].decode(errors="replace")

    def bytes(self, path: str = "") -> bytes:
        """The member's raw bytes; the whole value without a path."""
        field = self._field(path) if path else Field(self.type, 0)
        return self.kernel.space.read(VirtAddr(self.address + field.offset), field.type.size)

    def _find(self, path: str) -> Field | None:
        return self.kernel.field(self.type, path)

    def _field(self, path: str) -> Field:
        field = self._find(path)
        if field is None:
            raise NoSuchField(f"{self.type} has no member {path!r} in this kernel")
        return field
