"""Slabs made by hand: two caches, three slabs, and free objects in every place where one can wait."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.errors import CorruptGuest, InspectorError, NoSuchField, UsageError
from inspector.kernel.memmap import MemMap
from inspector.kernel.slab_caches import NO_CACHE
from inspector.kernel.slab_objects import ObjectState, allocated_count, object_at, objects
from inspector.kernel.slabs import SlabCache, slab_pages, slabs
from inspector.symbols import Kind, Member, Symbol, SymbolTable, Type, Vmcoreinfo
from inspector.units import Pfn, VirtAddr

PAGES = 256
VMEMMAP, STRUCT_PAGE = 0x8000, 64
CACHES = (0x10000, 0x11000)
NODES = (0x12000, 0x12100)
CPU_SLABS = (0x13000, 0x13100)
LIST, NAMES = 0x14000, (0x14100, 0x14200)
SHEAVES, BARN = (0x15000, 0x15100), 0x16000
SLAB_MARK = 0xF5000000
RANDOM = 0x1234_5678_9ABC_DEF1
# A slab's PFN, its cache, and the size and number of its objects; the third is two pages.
FIRST, SECOND, THIRD = 0x40, 0x42, 0x50
SIZES, COUNTS, ORDERS, OFFSET = (512, 1024), (8, 8), (0, 1), 64

U8, U16, U32, U64 = (Type(Kind.INT, f"u{8 * size}", size, size) for size in (1, 2, 4, 8))
LIST_HEAD = Type(Kind.STRUCT, "list_head", 16, 3)
ORDER_OBJECTS = Type(Kind.STRUCT, "kmem_cache_order_objects", 4, 4)
COUNTER = Type(Kind.STRUCT, "atomic_long_t", 8, 5)
NO_LENGTH = Type(Kind.ARRAY, "", 0, 8, target=U64)
NODE_POINTER = Type(Kind.POINTER, "", 8, 6)


def members(**places: tuple[Type, int]) -> tuple[Member, ...]:
    """Members by name: their type and the byte that they begin at."""
    return tuple(Member(name, type_, 8 * offset) for name, (type_, offset) in places.items())


STRUCTS = {
    "list_head": (16, members(next=(U64, 0), prev=(U64, 8))),
    "kmem_cache_order_objects": (4, members(x=(U32, 0))),
    "atomic_long_t": (8, members(counter=(U64, 0))),
    "page": (STRUCT_PAGE, members(flags=(U64, 0), page_type=(U32, 48))),
    "slab": (
        STRUCT_PAGE,
        (
            *members(slab_cache=(U64, 8), slab_list=(LIST_HEAD, 16), freelist=(U64, 32)),
            Member("inuse", U32, 320, 16),
            Member("objects", U32, 336, 15),
            Member("frozen", U32, 351, 1),
        ),
    ),
    "kmem_cache": (
        160,
        members(
            cpu_slab=(U64, 0), flags=(U32, 8), size=(U32, 12), object_size=(U32, 16), offset=(U32, 20),
            oo=(ORDER_OBJECTS, 24), min=(ORDER_OBJECTS, 28), refcount=(U32, 32), align=(U32, 36),
            ctor=(U64, 40), name=(U64, 48), list=(LIST_HEAD, 56), red_left_pad=(U32, 72), random=(U64, 80),
            node=(Type(Kind.ARRAY, "", 16, 7, target=NODE_POINTER, count=2), 88),
            cpu_sheaves=(U64, 104), sheaf_capacity=(U32, 112),
        ),
    ),
    "kmem_cache_cpu": (24, members(freelist=(U64, 0), slab=(U64, 16))),
    "kmem_cache_node": (
        64,
        members(partial=(LIST_HEAD, 16), nr_slabs=(COUNTER, 32), total_objects=(COUNTER, 40), barn=(U64, 48)),
    ),
    "node_barn": (48, members(sheaves_full=(LIST_HEAD, 8))),
    "slab_sheaf": (
        40,
        members(barn_list=(LIST_HEAD, 0), size=(U32, 24), objects=(NO_LENGTH, 32)),
    ),
    "slub_percpu_sheaves": (32, members(main=(U64, 8), spare=(U64, 16), rcu_free=(U64, 24))),
}  # fmt: skip


class Slabs:
    """Writes the memory of one kernel."""

    def __init__(self, tiny: Any) -> None:
        self.kernel = tiny
        self.put = tiny.put
        tiny.types = type(tiny.types)(STRUCTS, {})
        tiny.symbols = SymbolTable.of([Symbol("slab_caches", VirtAddr(LIST), "D")])
        text = f"OSRELEASE=tiny\nNUMBER(PAGE_SLAB_MAPCOUNT_VALUE)={SLAB_MARK}\n"
        tiny.vmcoreinfo = Vmcoreinfo.parse(text.encode())
        tiny.page_offset, tiny.vmemmap_base = 0, VMEMMAP
        links = [LIST, *(cache + 56 for cache in CACHES), LIST]
        for before, at in pairwise(links):
            self.put(before, at)
            self.put(at + 8, before)
        for number in (0, 1):
            self.cache(number)
        self.slab(FIRST, 0, inuse=6, free=(3, 1))
        self.slab(SECOND, 0, inuse=8, free=(), frozen=True)
        self.slab(THIRD, 1, inuse=5, free=(7, 0, 4))
        # Two objects of the second slab are on the CPU's freelist, and only the first and third have others.
        self.chain(0, SECOND, (2, 5))
        self.put(CPU_SLABS[0], self.object(SECOND, 0, 2), 0, self.page(SECOND))
        self.partial(0, FIRST)
        self.partial(1, THIRD)

    def cache(self, number: int) -> None:
        at, oo = CACHES[number], ORDERS[number] << 16 | COUNTS[number]
        self.put(at, CPU_SLABS[number], 0x2000 | SIZES[number] << 32, SIZES[number] - 8 | OFFSET << 32)
        self.put(at + 24, oo | oo << 32, 2 | 64 << 32, 0, NAMES[number])
        self.put(at + 72, 0, RANDOM, NODES[number], 0)
        self.kernel.ram[NAMES[number] : NAMES[number] + 5] = f"size{number}".encode()
        self.put(NODES[number] + 16, NODES[number] + 16, NODES[number] + 16)
        self.put(NODES[number] + 32, (2, 1)[number], (16, 8)[number])

    def page(self, pfn: int) -> int:
        return VMEMMAP + pfn * STRUCT_PAGE

    def object(self, pfn: int, cache: int, index: int) -> int:
        return pfn * 4096 + index * SIZES[cache]

    def slab(self, pfn: int, cache: int, inuse: int, free: tuple[int, ...], frozen: bool = False) -> None:
        first = self.object(pfn, cache, free[0]) if free else 0
        counters = inuse | COUNTS[cache] << 16 | frozen << 31
        self.put(self.page(pfn), 0, CACHES[cache], 0, 0, first, counters, SLAB_MARK)
        self.chain(cache, pfn, free)

    def chain(self, cache: int, pfn: int, free: tuple[int, ...], end: int = 0) -> None:
        """Free objects, each with the next one's address, hidden as CONFIG_SLAB_FREELIST_HARDENED does."""
        addresses = [*(self.object(pfn, cache, index) for index in free), end]
        for at, following in pairwise(addresses):
            swapped = int.from_bytes((at + OFFSET).to_bytes(8, "little"), "big")
            self.put(at + OFFSET, following ^ RANDOM ^ swapped)

    def partial(self, number: int, pfn: int) -> None:
        """The only slab on a node's list."""
        head, link = NODES[number] + 16, self.page(pfn) + 16
        self.put(head, link, link)
        self.put(link, head, head)

    def sheaf(self, at: int, *held: int, following: int = 0) -> int:
        return int(self.put(at, following, 0, 0, len(held), *held))

    def state(self) -> dict[tuple[int, int], ObjectState]:
        """The state of every object that is not simply allocated, by PFN and index."""
        found = {}
        for row in objects(self.kernel):
            cache = int(row["cache"])
            pfn = next(pfn for pfn in (THIRD, SECOND, FIRST) if int(row["address"]) >= pfn * 4096)
            index, rest = divmod(int(row["address"]) - pfn * 4096, SIZES[cache])
            assert not rest
            assert row["allocated"] == (row["state"] in (ObjectState.ALLOCATED, ObjectState.RCU))
            if row["state"]:
                found[pfn, index] = ObjectState(row["state"])
        return found


@pytest.fixture(autouse=True)
def _mem_map() -> Iterator[None]:
    """All of RAM has a struct page. (Not by monkeypatch, which property tests may not use.)"""
    before = MemMap.__dict__["runs"]
    setattr(MemMap, "runs", ((Pfn(0), Pfn(PAGES)),))  # noqa: B010
    yield
    setattr(MemMap, "runs", before)  # noqa: B010


@pytest.fixture
def made(tiny: Any) -> Slabs:
    return Slabs(tiny)


OWN = {
    (FIRST, 3): ObjectState.FREE,
    (FIRST, 1): ObjectState.FREE,
    (SECOND, 2): ObjectState.CPU,
    (SECOND, 5): ObjectState.CPU,
    (THIRD, 7): ObjectState.FREE,
    (THIRD, 0): ObjectState.FREE,
    (THIRD, 4): ObjectState.FREE,
}


def test_caches(made: Slabs) -> None:
    flags = (0x2000, ("HWCACHE_ALIGN",))
    assert slabs(made.kernel) == [
        SlabCache(VirtAddr(CACHES[0]), "size0", 504, 512, 64, 8, 0, 1, *flags, None, 0, 2, 16, 14),
        SlabCache(VirtAddr(CACHES[1]), "size1", 1016, 1024, 64, 8, 1, 1, *flags, None, 0, 1, 8, 5),
    ]


def test_free_objects_of_slabs_on_no_partial_list_are_active(made: Slabs) -> None:
    made.put(NODES[0] + 16, NODES[0] + 16, NODES[0] + 16)
    made.put(made.page(FIRST) + 16, 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122)  # LIST_POISON1 and 2
    assert [(cache.objects, cache.active) for cache in slabs(made.kernel)] == [(16, 16), (8, 5)]


def test_slab_pages(made: Slabs) -> None:
    rows = slab_pages(made.kernel, MemMap(made.kernel))
    assert rows[["pfn", "order", "cache", "objects", "inuse", "free", "frozen"]].tolist() == [
        (FIRST, 0, 0, 8, 6, 2, False),
        (SECOND, 0, 0, 8, 8, 0, True),
        (THIRD, 1, 1, 8, 5, 3, False),
    ]


@pytest.mark.parametrize(
    "words",
    [
        (0, CACHES[0], 0, 0, 0, 1 << 16, SLAB_MARK),  # KFENCE's: one object, not counted
        (0, 0, 0, 0, 0, 0, SLAB_MARK),
        (0, 0xDEAD, 0, 0, 0, 8 << 16 | 8, SLAB_MARK),
    ],
)
def test_a_slab_page_of_no_cache(made: Slabs, words: tuple[int, ...]) -> None:
    made.put(made.page(0x60), *words)
    assert slab_pages(made.kernel, MemMap(made.kernel))["cache"].tolist() == [0, 0, 1, NO_CACHE]
    assert object_at(made.kernel, VirtAddr(0x60000)) is None
    assert made.state() == OWN


def test_objects(made: Slabs) -> None:
    rows = objects(made.kernel)
    assert rows["address"].tolist() == [
        *range(FIRST * 4096, (FIRST + 1) * 4096, 512),
        *range(SECOND * 4096, (SECOND + 1) * 4096, 512),
        *range(THIRD * 4096, (THIRD + 2) * 4096, 1024),
    ]
    assert made.state() == OWN
    assert allocated_count(made.kernel).tolist() == [12, 5]
    assert objects(made.kernel, slabs(made.kernel)[1]).tolist() == rows[16:].tolist()


def test_red_zones_move_the_objects(made: Slabs) -> None:
    made.put(CACHES[1] + 72, 64)
    made.slab(THIRD, 1, inuse=8, free=())
    assert objects(made.kernel, slabs(made.kernel)[1])["address"][:2].tolist() == [0x50040, 0x50440]


def test_one_object(made: Slabs) -> None:
    found = object_at(made.kernel, VirtAddr(FIRST * 4096 + 3 * 512 + 100))
    assert found is not None
    assert (found.cache, found.index, found.offset, found.state) == ("size0", 3, 100, ObjectState.FREE)
    assert not found.allocated
    last = object_at(made.kernel, VirtAddr((THIRD + 2) * 4096 - 1))
    assert last is not None
    assert (last.cache, last.index, last.offset, last.allocated) == ("size1", 7, 1023, False)
    for outside in (0, FIRST * 4096 - 1, (FIRST + 1) * 4096, (THIRD + 2) * 4096, (1 << 64) - 1):
        assert object_at(made.kernel, VirtAddr(outside)) is None


def test_sheaves(made: Slabs) -> None:
    """A CPU's main, spare and rcu_free sheaf, and two full ones in the barn."""
    held = [made.object(FIRST, 0, index) for index in (0, 2, 4, 5, 6)]
    made.put(CACHES[0] + 104, SHEAVES[0])
    made.put(NODES[0] + 48, BARN)
    made.put(SHEAVES[0] + 8, *(made.sheaf(0x17000 + 0x100 * i, held[i]) for i in range(3)))
    link = made.sheaf(0x17400, held[4], following=BARN + 8)
    made.put(BARN + 8, made.sheaf(0x17300, held[3], following=link))
    expected = dict.fromkeys([(FIRST, 0), (FIRST, 2), (FIRST, 5), (FIRST, 6)], ObjectState.SHEAF)
    assert made.state() == OWN | expected | {(FIRST, 4): ObjectState.RCU}
    assert allocated_count(made.kernel).tolist() == [8, 5]


def test_a_barn_that_loops(made: Slabs) -> None:
    made.put(NODES[0] + 48, BARN)
    made.put(BARN + 8, made.sheaf(0x17000, following=0x17000))
    with pytest.raises(CorruptGuest, match="barn"):
        allocated_count(made.kernel)


def test_a_freelist_that_loops_ends_early_or_strays(made: Slabs) -> None:
    """As many as there are CPUs may be in between; here there is one CPU."""
    made.chain(0, FIRST, (3, 1), end=made.object(FIRST, 0, 3))
    assert made.state().keys() == OWN.keys()
    made.slab(THIRD, 1, inuse=4, free=(7, 0, 4))
    with pytest.raises(CorruptGuest, match="2 freelists"):
        objects(made.kernel)
    made.slab(THIRD, 1, inuse=5, free=(7, 0, 9))
    with pytest.raises(CorruptGuest, match="2 freelists"):
        objects(made.kernel)


def test_a_cache_that_is_gone(made: Slabs) -> None:
    first = slabs(made.kernel)[0]
    made.put(LIST, CACHES[1] + 56)
    made.put(CACHES[1] + 64, LIST)
    with pytest.raises(UsageError, match="size0"):
        objects(made.kernel, first)


def test_another_allocator(made: Slabs) -> None:
    size, fields = STRUCTS["kmem_cache"]
    kept = tuple(field for field in fields if field.name not in ("oo", "min"))
    made.kernel.types = type(made.kernel.types)({**STRUCTS, "kmem_cache": (size, kept)}, {})
    with pytest.raises(NoSuchField, match=r"oo\.x"):
        slabs(made.kernel)


@given(st.permutations(range(8)), st.integers(0, 8), st.permutations(range(8)), st.integers(0, 8))
def test_any_order(tiny_factory: Any, first: list[int], many: int, third: list[int], more: int) -> None:
    made = Slabs(tiny_factory())
    made.put(CPU_SLABS[0], 0, 0, 0)
    made.slab(FIRST, 0, inuse=8 - many or 8, free=tuple(first[: many % 8]))
    made.slab(THIRD, 1, inuse=8 - more or 8, free=tuple(third[: more % 8]))
    free = {(FIRST, index) for index in first[: many % 8]} | {(THIRD, index) for index in third[: more % 8]}
    assert made.state() == dict.fromkeys(free, ObjectState.FREE)


PLACES = st.sampled_from(
    [
        *range(VMEMMAP + FIRST * 64, VMEMMAP + (FIRST + 3) * 64),
        *range(LIST, LIST + 16),
        *range(0x17000, 0x17030),
        *(at + i for at in (*CACHES, *NODES, *CPU_SLABS, SHEAVES[0], BARN) for i in range(128)),
        *(FIRST * 4096 + 512 + OFFSET + i for i in range(8)),
    ]
)


@settings(max_examples=150)
@given(st.lists(st.tuples(PLACES, st.integers(0, 7)), min_size=1, max_size=4))
def test_corruption_ends_in_an_answer_or_an_error(tiny_factory: Any, flips: list[tuple[int, int]]) -> None:
    made = Slabs(tiny_factory())
    made.put(CACHES[0] + 104, SHEAVES[0])
    made.put(SHEAVES[0] + 8, made.sheaf(0x17000, made.object(FIRST, 0, 0)), 0, 0)
    made.put(NODES[0] + 48, BARN)
    made.put(BARN + 8, BARN + 8)
    for place, bit in flips:
        made.kernel.ram[place] ^= 1 << bit
    for question in (
        slabs,
        objects,
        allocated_count,
        lambda kernel: object_at(kernel, VirtAddr(FIRST * 4096)),
    ):
        try:
            answer: object = question(made.kernel)
        except InspectorError:
            continue
        if isinstance(answer, np.ndarray):
            assert len(answer) < PAGES * 4096
