"""A kernel made by hand: some pages of RAM mapped one to one, and the few types that a test needs."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from inspector.arch import X86_64_4LEVEL, AddressSpace
from inspector.errors import NoSuchType
from inspector.memory import MappedRam, RamBlock
from inspector.symbols import Kernel, Kind, Member, SymbolTable, Type, TypeTable, Vmcoreinfo
from inspector.units import PhysAddr

_RAM = 1 << 20
_PUD, _PMD = 0x1000, 0x2000
_TABLE, _LARGE = 0x3, 0x83  # P RW, and PS

U64 = Type(Kind.INT, "unsigned long", 8, 1)
NODE = Type(Kind.STRUCT, "maple_node", 256, 2)


def array(target: Type, count: int) -> Type:
    """The C type target[count]."""
    return Type(Kind.ARRAY, "", target.size * count, 100 + count, target=target, count=count)


class HandTypes(TypeTable):
    """Types that a test declares: name -> (size, members), and enums."""

    def __init__(
        self, structs: Mapping[str, tuple[int, tuple[Member, ...]]], enums: Mapping[str, Mapping[str, int]]
    ) -> None:
        super().__init__()
        self._structs = structs
        self._enums = enums
        self._ids = {name: 1000 + i for i, name in enumerate([*structs, *enums])}

    def find(self, name: str) -> Type:
        if name in self._structs:
            return Type(Kind.STRUCT, name, self._structs[name][0], self._ids[name])
        if name in self._enums:
            return Type(Kind.ENUM, name, 4, self._ids[name])
        raise NoSuchType(name)

    def members(self, type_: Type) -> tuple[Member, ...]:
        return self._structs[type_.name][1]

    def enumerators(self, type_: Type) -> Mapping[str, int]:
        return self._enums[type_.name]

    def constant(self, enumerator: str) -> int:
        for names in self._enums.values():
            if enumerator in names:
                return names[enumerator]
        raise NoSuchType(enumerator)


class TinyKernel(Kernel):
    """A Kernel over RAM that a test writes into; virtual addresses are physical ones."""

    def __init__(self) -> None:
        self.ram = bytearray(_RAM)
        root = PhysAddr(0)
        memory = MappedRam(self.ram, [RamBlock(PhysAddr(0), _RAM, 0)])
        types = HandTypes(
            {
                "item": (
                    32,
                    (Member("value", U64, 0), Member("links", Type(Kind.STRUCT, "list_head", 16, 3), 64)),
                ),
                "list_head": (16, (Member("next", U64, 0), Member("prev", U64, 64))),
                "maple_tree": (16, (Member("ma_root", U64, 0),)),
                # lib/maple_tree.c: 16 slots without gaps, 10 with.
                "maple_range_64": (
                    256,
                    (Member("pivot", array(U64, 15), 64), Member("slot", array(U64, 16), 8 * 128)),
                ),
                "maple_arange_64": (
                    256,
                    (Member("pivot", array(U64, 9), 64), Member("slot", array(U64, 10), 8 * 80)),
                ),
            },
            {"maple_type": {"maple_dense": 0, "maple_leaf_64": 1, "maple_range_64": 2, "maple_arange_64": 3}},
        )
        space = AddressSpace(memory, X86_64_4LEVEL, root)
        super().__init__(memory, space, SymbolTable.of([]), types, Vmcoreinfo.parse(b"OSRELEASE=tiny\n"))
        self.put(0, _PUD | _TABLE)
        self.put(_PUD, _PMD | _TABLE)
        self.put(_PMD, _LARGE)

    def put(self, address: int, *words: int) -> int:
        """Write 64-bit words; gives the address."""
        struct.pack_into(f"<{len(words)}Q", self.ram, address, *words)
        return address


@pytest.fixture
def tiny() -> TinyKernel:
    """A kernel with nothing in it yet; RAM from 0x4000 on is free."""
    return TinyKernel()


@pytest.fixture(scope="session")
def tiny_factory() -> type[TinyKernel]:
    """For property tests, which need a new kernel for each example."""
    return TinyKernel
