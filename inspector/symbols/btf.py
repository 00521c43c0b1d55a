"""BTF, the BPF Type Format: the kernel's C types as the kernel itself carries them.

Source: include/uapi/linux/btf.h, Documentation/bpf/btf.rst. Since 7.1 ("bpf: Extend BTF UAPI vlen, kinds to
use unused bits") the kind takes 7 bits and vlen 24; the bits were zero before, so the wide masks read both.
7.1 also adds a layout section, which gives the sizes of kinds that a reader does not know.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, NoSuchType
from inspector.symbols.types import Kind, Member, Type, TypeTable

MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_LAYOUT_HEADER = struct.Struct("<II")  # layout_off, layout_len (7.1)
_MAX_CHAIN = 64  # typedefs, qualifiers and pointers in a row; the kernel's longest is 8
_INT_SIGNED = 1
_MAX_NAME = 1024  # C names of types; KSYM_NAME_LEN is 512
_MODULE_IDS = 32  # a module's own ids lie above this many bits, so that two modules' never meet


class BtfKind(IntEnum):
    """C: BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16  # 5.13, commit b1828f0b0482
    DECL_TAG = 17  # 5.16, commit b5ea834dde6b
    TYPE_TAG = 18  # 5.17, commit 8c42d2fa4eea
    ENUM64 = 19  # 6.0, commit 6089fb325cf7


# Words that follow a struct btf_type: a fixed number, and a number for each of vlen elements.
_TAIL = {
    BtfKind.INT: (1, 0),
    BtfKind.ARRAY: (3, 0),
    BtfKind.STRUCT: (0, 3),
    BtfKind.UNION: (0, 3),
    BtfKind.ENUM: (0, 2),
    BtfKind.FUNC_PROTO: (0, 2),
    BtfKind.VAR: (1, 0),
    BtfKind.DATASEC: (0, 3),
    BtfKind.DECL_TAG: (1, 0),
    BtfKind.ENUM64: (0, 3),
}
_TRANSPARENT = (BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG)
# What find() gives first where several kinds of type share a name.
_FINDABLE = (
    BtfKind.STRUCT,
    BtfKind.UNION,
    BtfKind.ENUM,
    BtfKind.ENUM64,
    BtfKind.TYPEDEF,
    BtfKind.INT,
    BtfKind.FLOAT,
)
_ENUMS = (BtfKind.ENUM, BtfKind.ENUM64)


@dataclass(frozen=True, slots=True)
class Function:
    """A function's C signature; `parameters` are pairs of name and type, in order."""

    name: str
    returns: Type
    parameters: tuple[tuple[str, Type], ...]


class Btf(TypeTable):
    """The types of one BTF blob; with `base`, those that a module adds to the kernel's.

    `starts` is the word where each type begins, as an earlier Btf of the same data found it.
    Raises BadFormat.
    """

    def __init__(
        self,
        data: bytes | NDArray[np.uint8],
        base: Btf | None = None,
        *,
        starts: NDArray[np.uint32] | None = None,
        pointer_size: int = 8,
        serial: int = 0,
    ) -> None:
        super().__init__()
        self._constants: dict[str, int] = {}
        self.base = base
        self.pointer_size = pointer_size
        self.data = np.frombuffer(data, np.uint8)
        view = self.data.data
        types, strings, layout = _sections(view)
        self._words = np.frombuffer(view[types], "<u4")
        self._strings = bytes(view[strings])
        self.starts = _index(self._words, layout) if starts is None else starts
        if len(self.starts) and int(self.starts[-1]) + 3 > len(self._words):
            raise BadFormat("BTF: the index does not belong to this data")
        self._first_id: int = base._end_id if base else 1
        self._end_id: int = self._first_id + len(self.starts)
        self._first_string: int = base._end_string if base else 0
        self._end_string: int = self._first_string + len(self._strings)
        self._serial = serial << _MODULE_IDS
        self._name_offsets = self._words[self.starts]
        self._kinds = (self._words[self.starts + np.uint32(1)] >> np.uint32(24) & np.uint32(0x7F)).astype(
            np.uint8
        )
        self._types: dict[int, Type] = {}
        self._found: dict[str, Type | None] = {}

    def __len__(self) -> int:
        """How many types, without those of the base."""
        return len(self.starts)

    def find(self, name: str) -> Type:
        """The struct, union, enum, typedef or base type of that name, `struct x` too. Raises NoSuchType."""
        if name not in self._found:
            self._found[name] = self._find(name)
        found = self._found[name]
        if found is None:
            raise NoSuchType(f"the kernel has no type {name!r}")
        return found

    def members(self, type_: Type) -> tuple[Member, ...]:
        """What a struct or union declares; one without a body is looked up by name. Raises NoSuchType."""
        owner, kind, vlen, flag, at = self._head(type_.id)
        if kind is BtfKind.FWD:
            return self.members(self.find(f"{'union' if flag else 'struct'} {type_.name}"))
        if kind not in (BtfKind.STRUCT, BtfKind.UNION):
            return ()
        rows = owner._tail(at, vlen, 3)
        return tuple(owner._declared(name, id_, offset, flag) for name, id_, offset in rows)

    def enumerators(self, type_: Type) -> Mapping[str, int]:
        """The names and values of an enum, in order; empty for any other type."""
        owner, kind, vlen, signed, at = self._head(type_.id)
        if kind not in _ENUMS:
            return {}
        width = 2 if kind is BtfKind.ENUM else 3
        return {owner.string(row[0]): _value(row[1:], signed) for row in owner._tail(at, vlen, width)}

    def constant(self, enumerator: str) -> int:
        """The value of an enumerator of any enum; of several with that name, the first. Raises NoSuchType."""
        if enumerator not in self._constants:
            self._constants[enumerator] = self._find_constant(enumerator)
        return self._constants[enumerator]

    def _find_constant(self, enumerator: str) -> int:
        offsets = self._string_offsets(enumerator)
        for position in np.flatnonzero(np.isin(self._words, offsets)).tolist():
            row = int(np.searchsorted(self.starts, position, "right")) - 1
            kind = int(self._kinds[row])
            start = int(self.starts[row])
            width = 2 if kind == BtfKind.ENUM else 3
            if kind in _ENUMS and position >= start + 3 and (position - start - 3) % width == 0:
                info = int(self._words[start + 1])
                return _value(self._words[position + 1 : position + width].tolist(), bool(info >> 31))
        if self.base:
            return self.base.constant(enumerator)
        raise NoSuchType(f"the kernel has no enumerator {enumerator!r}")

    def function(self, name: str) -> Function:
        """The signature of a function that the kernel's BTF lists. Raises NoSuchType."""
        for id_ in self._ids(name, BtfKind.FUNC):
            owner, _, _, _, at = self._head(id_)
            prototype = int(owner._words[at + 2])
            owner, kind, vlen, _, at = self._head(prototype)
            if kind is BtfKind.FUNC_PROTO:
                rows = owner._tail(at, vlen, 2)
                parameters = tuple((owner.string(row[0]), owner.type(row[1])) for row in rows)
                return Function(name, owner.type(int(owner._words[at + 2])), parameters)
        raise NoSuchType(f"BTF has no function {name!r}")

    def variable(self, name: str) -> Type:
        """The type of a global variable; BTF lists the per-CPU ones. Raises NoSuchType."""
        for id_ in self._ids(name, BtfKind.VAR):
            owner, _, _, _, at = self._head(id_)
            return owner.type(int(owner._words[at + 2]))
        raise NoSuchType(f"BTF has no variable {name!r}")

    @staticmethod
    def serial_of(id_: int) -> int:
        """The `serial` of the Btf that made a Type's id."""
        return id_ >> _MODULE_IDS

    def string(self, offset: int) -> str:
        """A name by its offset. Raises BadFormat."""
        if offset < self._first_string and self.base:
            return self.base.string(offset)
        local = offset - self._first_string
        if not 0 <= local < len(self._strings):
            raise BadFormat(f"BTF: a name at {offset} lies outside the strings")
        return self._strings[local : self._strings.index(b"\0", local)].decode(errors="replace")

    def type(self, id_: int, depth: int = 0) -> Type:
        """A type by its id, typedefs and qualifiers taken off. Raises BadFormat."""
        if id_ not in self._types:
            self._types[id_] = self._build(id_, depth)
        return self._types[id_]

    def _build(self, id_: int, depth: int) -> Type:
        if depth > _MAX_CHAIN:
            raise BadFormat(f"BTF: type {id_} goes on for ever")
        owner, kind, _, flag, at = self._head(id_)
        if owner is not self:
            return owner.type(id_, depth)
        if kind is BtfKind.VOID:
            return Type(Kind.VOID, "", 0, 0)
        own = self._serial | id_
        name, _, size = self._words[at : at + 3].tolist()
        match kind:
            case _ if kind in _TRANSPARENT:
                return self.type(size, depth + 1)
            case BtfKind.INT:
                encoding = int(self._words[at + 3]) >> 24
                text = self.string(name)
                # pahole once overlooked DW_ATE_signed_char: Debian's 5.10 has an s8 without a sign.
                signed = bool(encoding & _INT_SIGNED) or text == "signed char"
                return Type(Kind.INT, text, size, own, signed=signed)
            case BtfKind.FLOAT:
                return Type(Kind.FLOAT, self.string(name), size, own)
            case BtfKind.PTR:
                return Type(Kind.POINTER, "", self.pointer_size, own, target=self.type(size, depth + 1))
            case BtfKind.ARRAY:
                element, _, count = self._words[at + 3 : at + 6].tolist()
                target = self.type(element, depth + 1)
                return Type(Kind.ARRAY, "", count * target.size, own, target=target, count=count)
            case BtfKind.STRUCT | BtfKind.UNION:
                return Type(Kind[kind.name], self.string(name), size, own)
            case BtfKind.FWD:
                return Type(Kind.UNION if flag else Kind.STRUCT, self.string(name), 0, own)
            case BtfKind.ENUM | BtfKind.ENUM64:
                return Type(Kind.ENUM, self.string(name), size, own, signed=flag)
            case BtfKind.FUNC | BtfKind.FUNC_PROTO:
                return Type(Kind.FUNCTION, self.string(name), 0, own)
        raise BadFormat(f"BTF: type {id_} is used as a C type, but its kind is {kind.name}")

    def _head(self, id_: int) -> tuple[Btf, BtfKind, int, bool, int]:
        """Of a type: the blob that has it, its kind, vlen and kflag, and the word where it begins."""
        id_ &= (1 << _MODULE_IDS) - 1
        if id_ == 0:
            return self, BtfKind.VOID, 0, False, 0
        if id_ < self._first_id and self.base:
            return self.base._head(id_)
        if id_ >= self._end_id:
            raise BadFormat(f"BTF: there is no type {id_}")
        at = int(self.starts[id_ - self._first_id])
        info = int(self._words[at + 1])
        try:
            return self, BtfKind(info >> 24 & 0x7F), info & 0xFFFFFF, bool(info >> 31), at
        except ValueError:
            raise BadFormat(f"BTF: type {id_} is of the unknown kind {info >> 24 & 0x7F}") from None

    def _tail(self, at: int, count: int, width: int) -> Iterator[list[int]]:
        words = self._words[at + 3 : at + 3 + count * width].tolist()
        return (words[i : i + width] for i in range(0, len(words), width))

    def _declared(self, name: int, id_: int, offset: int, bitfields: bool) -> Member:
        type_ = self.type(id_)
        if bitfields:
            return Member(self.string(name), type_, offset & 0xFFFFFF, offset >> 24)
        if type_.kind is Kind.INT:  # before kind_flag (4.21) the member's int type held the bitfield's size
            owner, _, _, _, at = self._head(type_.id)
            encoding = int(owner._words[at + 3])
            if (bits := encoding & 0xFF) != type_.size * 8:
                return Member(self.string(name), type_, offset + (encoding >> 16 & 0xFF), bits)
        return Member(self.string(name), type_, offset)

    def _find(self, name: str) -> Type | None:
        keyword, _, rest = name.partition(" ")
        kinds: tuple[BtfKind, ...] = _FINDABLE
        if rest and keyword in ("struct", "union", "enum"):
            kinds, name = tuple(k for k in kinds if k.name.lower().startswith(keyword)), rest
        ids = self._named(name.encode(), kinds)
        return self.type(min(ids, key=lambda id_: kinds.index(self._head(id_)[1]))) if ids else None

    def _named(self, name: bytes, kinds: tuple[BtfKind, ...]) -> list[int]:
        """The ids of the types of that name and of one of the kinds: this blob's, or else its base's."""
        ids = [id_ for id_ in self._by_name.get(name, ()) if self._head(id_)[1] in kinds]
        return self.base._named(name, kinds) if self.base and not ids else ids

    @cached_property
    def _by_name(self) -> dict[bytes, list[int]]:
        """The ids of this blob's types that find() knows."""
        found: dict[bytes, list[int]] = {}
        findable = np.zeros(1 << 8, np.bool_)
        findable[list(_FINDABLE)] = True
        rows = np.flatnonzero(findable[self._kinds] & (self._name_offsets != 0))
        for row, offset in zip(rows.tolist(), self._name_offsets[rows].tolist(), strict=True):
            owner = self.base if self.base and offset < self._first_string else self
            start = offset - owner._first_string
            end = owner._strings.find(b"\0", start, start + _MAX_NAME)
            if end >= 0:
                found.setdefault(owner._strings[start:end], []).append(self._first_id + row)
        return found

    def _ids(self, name: str, kind: BtfKind) -> list[int]:
        """The ids of the functions or variables of that name: this blob's, or else its base's."""
        offsets = self._string_offsets(name)
        rows = np.flatnonzero(np.isin(self._name_offsets, offsets) & (self._kinds == kind))
        if not len(rows) and self.base:
            return self.base._ids(name, kind)
        return [self._first_id + row for row in rows.tolist()]

    def _string_offsets(self, name: str) -> NDArray[np.uint32]:
        """Every offset at which a reader finds `name`, ends of longer strings included."""
        offsets = self.base._string_offsets(name).tolist() if self.base else []
        wanted = name.encode() + b"\0"
        at = self._strings.find(wanted) if name else -1
        while at >= 0:
            offsets.append(self._first_string + at)
            at = self._strings.find(wanted, at + 1)
        return np.array(offsets, np.uint32)


def _value(words: list[int], signed: bool) -> int:
    value = sum(word << 32 * i for i, word in enumerate(words))
    bits = 32 * len(words)
    return value - (1 << bits) if signed and value >> bits - 1 else value


def _sections(view: memoryview) -> tuple[slice, slice, dict[int, tuple[int, int]]]:
    """Where the types and strings are, and the sizes of kinds that the layout section adds."""
    if len(view) < _HEADER.size:
        raise BadFormat("BTF: too short for its header")
    magic, version, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(view)
    if magic != MAGIC or version != 1:
        raise BadFormat(f"not BTF of version 1 (magic {magic:#x}, version {version})")
    if header < _HEADER.size or max(type_off + type_len, str_off + str_len) > len(view) - header:
        raise BadFormat("BTF: a section lies outside the data")
    if type_off % 4 or type_len % 4:
        raise BadFormat("BTF: the types are not aligned to 4 bytes")
    strings = slice(header + str_off, header + str_off + str_len)
    if str_len and view[strings.stop - 1]:
        raise BadFormat("BTF: the strings do not end with a NUL")
    layout: dict[int, tuple[int, int]] = {}
    if header >= _HEADER.size + _LAYOUT_HEADER.size:
        layout_off, layout_len = _LAYOUT_HEADER.unpack_from(view, _HEADER.size)
        if layout_off + layout_len > len(view) - header:
            raise BadFormat("BTF: the layout section lies outside the data")
        entries = view[header + layout_off : header + layout_off + layout_len // 4 * 4]
        for kind, (fixed, element, _) in enumerate(struct.iter_unpack("<BBH", entries)):
            layout[kind] = (fixed, element)
    return slice(header + type_off, header + type_off + type_len), strings, layout


def _index(words: NDArray[Any], layout: dict[int, tuple[int, int]]) -> NDArray[np.uint32]:
    """The word at which each type begins. Raises BadFormat."""
    fixed = [-1] * 128
    element = [0] * 128
    for kind, (fixed_bytes, element_bytes) in layout.items():
        if kind < 128 and fixed_bytes % 4 == 0 and element_bytes % 4 == 0:
            fixed[kind], element[kind] = fixed_bytes // 4, element_bytes // 4
    for known in BtfKind:
        fixed[known], element[known] = _TAIL.get(known, (0, 0))
    fixed[BtfKind.VOID] = -1
    values = words.tolist()
    end = len(values)
    starts: list[int] = []
    at = 0
    while at + 3 <= end:
        starts.append(at)
        info = values[at + 1]
        kind = info >> 24 & 0x7F
        if fixed[kind] < 0:
            raise BadFormat(
                f"BTF: type {len(starts)} is of the unknown kind {kind}, whose size nothing tells"
            )
        at += 3 + fixed[kind] + element[kind] * (info & 0xFFFFFF)
    if at != end:
        raise BadFormat("BTF: the last type runs past the end of the types")
    return np.array(starts, np.uint32)
