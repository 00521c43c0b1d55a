"""Device pools made by hand, in the old form and the new (mm/dmapool.c)."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.kernel import dma
from inspector.symbols import Kind, Member, Symbol, SymbolTable, Type
from inspector.units import VirtAddr

KSET, DEVICE, POOL, PAGES = 0x4100, 0x5000, 0x6000, (0x7000, 0x7100)
VECTORS = (0x9000, 0xA000)
BUSES = (0x109000, 0x10A000)  # as behind an IOMMU
U32, U64 = Type(Kind.INT, "unsigned int", 4, 6), Type(Kind.INT, "unsigned long", 8, 1)
LIST = Type(Kind.STRUCT, "list_head", 16, 3)
CHARS = Type(Kind.ARRAY, "", 32, 8, target=Type(Kind.INT, "char", 1, 9), count=32)


def declare(tiny: Any, old: bool) -> None:
    """The types: counts in each page before 6.4, in the pool since."""
    counts = [] if old else [Member("nr_blocks", U64, 64 * 7), Member("nr_active", U64, 64 * 8)]
    structs = {
        "kobject": (64, (Member("name", U64, 0), Member("entry", LIST, 64))),
        "kset": (32, (Member("list", LIST, 0),)),
        "device": (
            128,
            (Member("kobj", Type(Kind.STRUCT, "kobject", 64, 7000), 0), Member("dma_pools", LIST, 64 * 8)),
        ),
        "dma_pool": (
            128,
            (
                Member("page_list", LIST, 0),
                Member("size", U32, 64 * 2),
                Member("allocation", U32, 64 * 3),
                Member("name", CHARS, 64 * 10),
                Member("pools", LIST, 64 * 4),
                *counts,
            ),
        ),
        "dma_page": (
            64,
            (
                Member("page_list", LIST, 0),
                Member("vaddr", U64, 128),
                Member("in_use", U32, 192),
                Member("dma", U64, 256),
            ),
        ),
    }
    tiny.types._structs |= structs
    tiny.types._ids |= {name: 7000 + i for i, name in enumerate(structs)}


@pytest.mark.parametrize("old", [True, False])
def test_pools(tiny: Any, old: bool) -> None:
    declare(tiny, old)
    tiny.symbols = SymbolTable.of([Symbol("devices_kset", VirtAddr(0x4000), "b")])
    tiny.put(0x4000, KSET)
    tiny.put(KSET, DEVICE + 8, DEVICE + 8)
    tiny.put(DEVICE, 0x8000, KSET, KSET)
    tiny.ram[0x8000:0x800D] = b"0000:00:04.0\0"
    tiny.put(DEVICE + 64, POOL + 32, POOL + 32)
    first, second = PAGES
    tiny.put(POOL, first, second, 256, 4096, DEVICE + 64, DEVICE + 64, 0, 32, 5)
    tiny.ram[POOL + 80 : POOL + 89] = b"prp list\0"
    tiny.put(first, second, POOL, VECTORS[0], 2, BUSES[0])
    tiny.put(second, POOL, first, VECTORS[1], 3, BUSES[1])
    (pool,) = dma.device_pools(tiny)
    assert (pool.device, pool.name, pool.size, pool.allocation) == ("0000:00:04.0", "prp list", 256, 4096)
    assert (pool.blocks, pool.used) == (32, 5)
    assert (pool.pages, pool.addresses) == (VECTORS, VECTORS)  # mapped one to one here
    assert pool.buses == BUSES


def test_a_device_without_pools(tiny: Any) -> None:
    declare(tiny, old=False)
    tiny.symbols = SymbolTable.of([Symbol("devices_kset", VirtAddr(0x4000), "b")])
    tiny.put(0x4000, KSET)
    tiny.put(KSET, DEVICE + 8, DEVICE + 8)
    tiny.put(DEVICE, 0, KSET, KSET)
    assert dma.device_pools(tiny) == []  # a list_head that nobody set up
    tiny.put(DEVICE + 64, DEVICE + 64, DEVICE + 64)
    assert dma.device_pools(tiny) == []
