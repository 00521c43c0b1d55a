"""The type model: what BTF and DWARF both say of a C type, and how a member is found by its path."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from inspector.errors import BadFormat, NoSuchField, NoSuchType

_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")
_MAX_DEPTH = 32  # of members nested without a name; the kernel's deepest is 6
_MAX_SIZE = 1 << 22  # bytes; the kernel's largest struct, rcu_state, has 360 KB


class Kind(Enum):
    """What sort of C type it is, typedefs and qualifiers taken off."""

    VOID = auto()
    INT = auto()
    FLOAT = auto()
    ENUM = auto()
    POINTER = auto()
    ARRAY = auto()
    STRUCT = auto()
    UNION = auto()
    FUNCTION = auto()


@dataclass(frozen=True, slots=True)
class Type:
    """A C type, `size` in bytes; `target` is what a pointer or an array is of; `id` the table's own."""

    kind: Kind
    name: str
    size: int
    id: int
    signed: bool = False
    target: Type | None = None
    count: int = 0

    @property
    def is_composite(self) -> bool:
        """True for a struct or a union."""
        return self.kind in (Kind.STRUCT, Kind.UNION)

    def __str__(self) -> str:
        match self.kind:
            case Kind.POINTER:
                return f"{self.target or 'void'} *"
            case Kind.ARRAY:
                return f"{self.target}[{self.count}]"
            case Kind.STRUCT | Kind.UNION | Kind.ENUM:
                return f"{self.kind.name.lower()} {self.name or '{...}'}"
            case _:
                return self.name or self.kind.name.lower()


@dataclass(frozen=True, slots=True)
class Member:
    """A member as declared. `bit_offset` counts from the struct's start; `bit_size` is for bitfields."""

    name: str
    type: Type
    bit_offset: int
    bit_size: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """A member reached by a path, `offset` bytes into the outermost type.

    A bitfield is the `bit_size` bits from bit `bit_shift` of the value there; otherwise `bit_size` is 0.
    """

    type: Type
    offset: int
    bit_shift: int = 0
    bit_size: int = 0

    @property
    def width(self) -> int:
        """Bytes of the number that it is, as numpy has them. Raises BadFormat where it can be none."""
        bits = 8 * self.type.size
        if bits not in (8, 16, 32, 64) or not 0 <= self.bit_shift <= bits - self.bit_size <= bits:
            raise BadFormat(f"the types are corrupt: a number of {self.type.size} bytes at {self.offset:#x}")
        return self.type.size


class Enumerators(dict[str, int]):
    """An enum that tells which of its names is missing."""

    def __missing__(self, name: str) -> int:
        raise NoSuchType(f"the kernel has no enumerator {name!r} where it should be")


class TypeTable(ABC):
    """Types by name. BTF and DWARF fill in the three abstract questions; the rest follows from them."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str], Field | None] = {}
        self._enum_values: dict[str, Mapping[str, int]] = {}

    @abstractmethod
    def find(self, name: str) -> Type:
        """The struct, union, enum or typedef of that name. Raises NoSuchType."""

    @abstractmethod
    def members(self, type_: Type) -> tuple[Member, ...]:
        """What a struct or union declares, in order; members without a name have an empty one."""

    @abstractmethod
    def enumerators(self, type_: Type) -> Mapping[str, int]:
        """The names and values of an enum, in order."""

    @abstractmethod
    def constant(self, enumerator: str) -> int:
        """The value of an enumerator of any enum. Raises NoSuchType."""

    def sizeof(self, name: str) -> int:
        """Bytes. Raises NoSuchType, and BadFormat where no such type can be."""
        size = self.find(name).size
        if not 0 < size <= _MAX_SIZE:
            raise BadFormat(f"the types are corrupt: {name} has {size} bytes")
        return size

    def enum(self, name: str) -> Mapping[str, int]:
        """The names and values of the enum called `name`. Raises NoSuchType."""
        if name not in self._enum_values:
            self._enum_values[name] = Enumerators(self.enumerators(self.find(name)))
        return self._enum_values[name]

    def has(self, name: str, path: str = "") -> bool:
        """Whether the type exists, and with `path` whether it has that member."""
        try:
            self.find(name) if not path else self.field(name, path)
        except (NoSuchType, NoSuchField):
            return False
        return True

    def offsetof(self, name: str, path: str) -> int:
        """Bytes from the start of type `name` to the member at `path`. Raises NoSuchType, NoSuchField."""
        return self.field(name, path).offset

    def field(self, name: str, path: str) -> Field:
        """The member at `path` (`a.b`, `a[2].c`) of type `name`. Raises NoSuchType, NoSuchField."""
        key = (name, path)
        if key not in self._fields:
            self._fields[key] = self.field_of(self.find(name), path)
        found = self._fields[key]
        if found is None:
            raise NoSuchField(f"{name} has no member {path!r} in this kernel")
        return found

    def field_of(self, type_: Type, path: str) -> Field | None:
        """The member at `path` of a type in hand, or None."""
        at = Field(type_, 0)
        for step in self._steps(path):
            found = self._element(at, step) if isinstance(step, int) else self._member(at, step)
            if found is None:
                return None
            at = found
        return at

    @staticmethod
    def _steps(path: str) -> Iterator[str | int]:
        position = 0
        while position < len(path):
            match = _STEP.match(path, position)
            if not match:
                raise NoSuchField(f"not a member path: {path!r}; write it like a.b or a[2].c")
            yield match[1] if match[1] is not None else int(match[2])
            position = match.end()

    @staticmethod
    def _element(at: Field, index: int) -> Field | None:
        if at.type.kind is not Kind.ARRAY or at.type.target is None:
            return None
        return Field(at.type.target, at.offset + index * at.type.target.size)

    def _member(self, at: Field, name: str, depth: int = 0) -> Field | None:
        if not at.type.is_composite or depth > _MAX_DEPTH:
            return None
        members = self.members(at.type)
        for member in members:
            if member.name == name:
                return _checked(at, _field(at, member))
        for member in members:
            if not member.name and (inner := self._member(_field(at, member), name, depth + 1)):
                return inner
        return None


def _checked(outer: Field, member: Field) -> Field:
    """The member, where it lies inside of its struct. Raises BadFormat."""
    start = member.offset - outer.offset
    end = start + (-(-(member.bit_shift + member.bit_size) // 8) if member.bit_size else member.type.size)
    size = outer.type.size  # 0 of one that is only declared here: its members are another's
    if size > _MAX_SIZE or (size and end > size):
        raise BadFormat(f"the types are corrupt: a member of {outer.type} lies outside of it")
    return member


def _field(outer: Field, member: Member) -> Field:
    if not member.bit_size:
        return Field(member.type, outer.offset + member.bit_offset // 8)
    # A bitfield is read as the storage unit of its declared type that holds its first bit.
    unit = max(member.type.size, 1) * 8
    start = member.bit_offset // unit * unit
    if member.bit_offset + member.bit_size > start + unit:  # packed: it straddles two units
        start = member.bit_offset // 8 * 8
    return Field(member.type, outer.offset + start // 8, member.bit_offset - start, member.bit_size)
