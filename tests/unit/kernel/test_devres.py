"""A device's managed resources made by hand, as they were before 7.2 and since (drivers/base/devres.c)."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.errors import CorruptGuest
from inspector.kernel import devres
from inspector.kernel.devres import Managed, ManagedDma
from inspector.symbols import Kind, Member, Symbol, SymbolTable, Type
from inspector.units import BusAddr, VirtAddr

DEVICE, KERNEL = 0x4000, 0x8000
NODES = (0x5000, 0x5100, 0x5200)
NAMES = ("_stext", "pcim_release", "dmam_release", "dr_node_release", "group_open_release", "_end")
AT = {name: KERNEL + 0x100 * i for i, name in enumerate(NAMES)}
U64 = Type(Kind.INT, "unsigned long", 8, 1)
NOTHING = Type(Kind.ARRAY, "", 0, 9, target=U64)  # u8 data[]
LIST = Type(Kind.STRUCT, "list_head", 16, 3)


def declare(tiny: Any, new: bool) -> None:
    node = Type(Kind.STRUCT, "devres_node", 40, 7001)
    own = (Member("release", U64, 64 * 5),) if new else ()
    structs: dict[str, tuple[int, tuple[Member, ...]]] = {
        "device": (64, (Member("devres_head", LIST, 64),)),
        "devres_node": (
            40,
            (Member("entry", LIST, 0), Member("release", U64, 128), Member("size", U64, 256)),
        ),
        "devres": (64, (Member("node", node, 0), *own, Member("data", NOTHING, 64 * 8))),
        "dma_devres": (
            32,
            tuple(Member(n, U64, 64 * i) for i, n in enumerate(("size", "vaddr", "dma_handle"))),
        ),
    }
    tiny.types._structs |= structs
    tiny.types._ids |= {name: 7000 + i for i, name in enumerate(structs)}
    tiny.symbols = SymbolTable.of([Symbol(name, VirtAddr(at), "t") for name, at in AT.items()])


@pytest.fixture(params=[False, True], ids=["before 7.2", "7.2"])
def new(request: pytest.FixtureRequest, tiny: Any) -> bool:
    """A device with a mapping table, coherent memory, and a group's mark."""
    found: bool = request.param
    declare(tiny, found)
    head, (first, second, third) = DEVICE + 8, NODES
    tiny.put(head, first, third)
    releases = ("pcim_release", "dmam_release", "group_open_release")
    links = ((second, head, 8), (third, first, 32), (head, second, 0))
    for at, name, (following, before, size) in zip(NODES, releases, links, strict=True):
        # Since 7.2 what has data is released by one function that calls the entry's own.
        shared = found and name != "group_open_release"
        tiny.put(at, following, before, AT["dr_node_release" if shared else name], 0, size)
        tiny.put(at + 40, AT[name])
    tiny.put(second + 64, 0x3000, 0xABC000, 0x120000)
    return found


def test_managed(tiny: Any, new: bool) -> None:
    found = devres.managed(tiny, tiny.view("device", VirtAddr(DEVICE)), [])
    mark = None if new else VirtAddr(NODES[2] + 64)  # of an entry that has none nobody asks
    assert found == [
        Managed("pcim_release", VirtAddr(NODES[0] + 64), 8),
        Managed("dmam_release", VirtAddr(NODES[1] + 64), 32),
        Managed("group_open_release", mark, 0),
    ]
    assert devres.managed_dma(tiny, found) == [ManagedDma(VirtAddr(0xABC000), BusAddr(0x120000), 0x3000)]


def test_a_loop(tiny: Any, new: bool) -> None:
    tiny.put(NODES[2], NODES[0])
    with pytest.raises(CorruptGuest, match="does not end"):
        devres.managed(tiny, tiny.view("device", VirtAddr(DEVICE)), [])
