"""Swiotlb made by hand, in its three forms (kernel/dma/swiotlb.c of 5.10, 6.1 and 6.12)."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.errors import CorruptGuest
from inspector.kernel import swiotlb
from inspector.kernel.swiotlb import SLOT, Bounce
from inspector.symbols import Kind, Member, Symbol, SymbolTable, Type
from inspector.units import VirtAddr

MEM, SLOTS, AREAS, START = 0x4000, 0x5000, 0x6000, 0x100000
FREE = (1 << 64) - 1
U8, U16 = Type(Kind.INT, "bool", 1, 5), Type(Kind.INT, "unsigned short", 2, 7)
U64 = Type(Kind.INT, "unsigned long", 8, 1)


def declare(tiny: Any, structs: dict[str, tuple[int, tuple[Member, ...]]]) -> None:
    tiny.types._structs |= structs
    tiny.types._ids |= {name: 7000 + i for i, name in enumerate(structs)}


def members(*names: str) -> tuple[Member, ...]:
    """Members of eight bytes each, in a row."""
    return tuple(Member(name, U64, 64 * i) for i, name in enumerate(names))


@pytest.fixture(params=["6.1", "6.12"])
def kernel(request: pytest.FixtureRequest, tiny: Any) -> Any:
    """Eight slots, all free, in one area; 6.12 has the memory in a pool and slots with padding."""
    area = Type(Kind.STRUCT, "io_tlb_area", 8, 7003)
    pointer = Type(Kind.POINTER, "", 8, 7100, target=area)
    pool = (
        *members("start", "end", "nslabs", "slots", "nareas"),
        Member("areas", pointer, 64 * 5),
    )
    forced = Member("force_bounce", U8, 64 * 6)
    stale = Member("used", U64, 64 * 7)  # 6.1's sum, that nobody adds to
    new = request.param == "6.12"
    inner = Type(Kind.STRUCT, "io_tlb_pool", 48, 7001)
    slot = members("orig_addr", "alloc_size") + ((Member("pad_slots", U16, 128),) if new else ())
    declare(
        tiny,
        {
            "io_tlb_mem": (64, (Member("defpool", inner, 0), forced) if new else (*pool, forced, stale)),
            "io_tlb_pool": (48, pool),
            "io_tlb_slot": (24, slot),
            "io_tlb_area": (8, members("used")),
        },
    )
    tiny.symbols = SymbolTable.of([Symbol("io_tlb_default_mem", VirtAddr(MEM), "D")])
    tiny.put(MEM, START, START + 8 * SLOT, 8, SLOTS, 1, AREAS, 1, 0)
    tiny.put(AREAS, 0)
    for index in range(8):
        put(tiny, index, FREE, 0)
    return tiny


def put(tiny: Any, index: int, origin: int, size: int, pad: int = 0) -> None:
    tiny.put(SLOTS + 24 * index, origin, size & FREE, pad)


def test_free(kernel: Any) -> None:
    found = swiotlb.swiotlb(kernel)
    assert found
    assert (found.buffer.start, found.buffer.end, found.buffer.slots, found.buffer.used) == (
        START, START + 8 * SLOT, 8, 0,
    )  # fmt: skip
    assert (found.forced, found.bounces) == (True, ())


def test_runs_by_origin_and_what_is_left(kernel: Any) -> None:
    """Slots 1 and 2 are one mapping of 3000 bytes; 3 adjoins it in both places, and is another of 100."""
    put(kernel, 1, 0x9000, 3000)
    put(kernel, 2, 0x9000 + SLOT, 3000 - SLOT)
    put(kernel, 3, 0x9000 + 2 * SLOT, 100)
    put(kernel, 7, 0x20010, 16)
    kernel.put(AREAS, 4)
    found = swiotlb.swiotlb(kernel)
    assert found
    assert found.buffer.used == 4
    assert [(each.start, each.slots, each.origin, each.size) for each in found.bounces] == [
        (START + SLOT, 2, 0x9000, 3000),
        (START + 3 * SLOT, 1, 0x9000 + 2 * SLOT, 100),
        (START + 7 * SLOT, 1, 0x20010, 16),
    ]
    assert found.bounces[0].end == START + 3 * SLOT


def test_what_is_left_may_be_less_than_nothing(kernel: Any) -> None:
    """With min_align_mask the last of the slots is for what the first has no room for: the kernel wraps."""
    put(kernel, 0, 0x9700, 2000)
    put(kernel, 1, 0x9700 + SLOT, 2000 - SLOT)
    found = swiotlb.swiotlb(kernel)
    assert found
    assert [(each.slots, each.size) for each in found.bounces] == [(2, 2000)]


def test_padding_is_not_data(kernel: Any) -> None:
    """As 6.12 aligns a mapping: swiotlb_tbl_map_single() gives no origin to the slots before it."""
    put(kernel, 2, FREE, 1000 + SLOT)
    put(kernel, 3, 0x9800, 1000, pad=1)
    found = swiotlb.swiotlb(kernel)
    assert found
    assert [(each.start, each.slots, each.size) for each in found.bounces] == [(START + 3 * SLOT, 1, 1000)]


def test_none_was_taken(kernel: Any) -> None:
    kernel.put(MEM, 0, 0, 0)
    assert swiotlb.swiotlb(kernel) is None


def test_too_many_slots(kernel: Any) -> None:
    kernel.put(MEM + 16, 1 << 40)
    with pytest.raises(CorruptGuest, match="slots"):
        swiotlb.swiotlb(kernel)


def test_globals_of_old(tiny: Any) -> None:
    """5.10: what adjoins cannot be told apart, and sizes are not kept."""
    names = (
        "io_tlb_start",
        "io_tlb_end",
        "io_tlb_nslabs",
        "io_tlb_used",
        "io_tlb_orig_addr",
        "swiotlb_force",
    )
    tiny.symbols = SymbolTable.of([Symbol(name, VirtAddr(MEM + 8 * i), "b") for i, name in enumerate(names)])
    tiny.types._enums["swiotlb_force"] = {"SWIOTLB_NORMAL": 0, "SWIOTLB_FORCE": 1, "SWIOTLB_NO_FORCE": 2}
    tiny.types._ids["swiotlb_force"] = 7200
    tiny.put(MEM, START, START + 4 * SLOT, 4, 3, SLOTS, 0)
    tiny.put(SLOTS, 0x9000, 0x9000 + SLOT, FREE, 0x9000)
    found = swiotlb.swiotlb(tiny)
    assert found
    assert (found.buffer.used, found.forced) == (3, False)
    assert found.bounces == (
        Bounce(found.buffer.start, 2, found.bounces[0].origin, None),
        Bounce(found.bounces[1].start, 1, found.bounces[0].origin, None),
    )
    assert (found.bounces[0].origin, found.bounces[1].start) == (0x9000, START + 3 * SLOT)


def test_a_kernel_without(tiny: Any) -> None:
    assert swiotlb.swiotlb(tiny) is None
