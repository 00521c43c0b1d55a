"""Who holds which pages: records made by hand, sums done by hand."""

from __future__ import annotations

from typing import Any

from inspector.trace import Allocation, StackFrame
from inspector.trace.ledger import FREED, UNSEEN, Holder, Holdings, Ledger, other_half
from inspector.units import Pfn, VirtAddr

MOVABLE, UNMOVABLE = 0x100CCA, 0xCC0  # GFP_HIGHUSER_MOVABLE and GFP_KERNEL of 6.1
FAULT = ("__alloc_pages+0x1", "do_anonymous_page+0x2")
SLAB = ("alloc_pages+0x1", "allocate_slab+0x2")


def record(number: int, pfn: int, order: int = 0, gfp: int | None = MOVABLE, **changes: Any) -> Allocation:
    """An allocation; without GFP flags a free."""
    stack = changes.pop("stack", FAULT)
    return Allocation(
        number=number, freed=gfp is None, pfn=Pfn(pfn), order=order, gfp=gfp, gfp_names=(), pid=1, tgid=1,
        comm="a", cpu=0, stack=tuple(StackFrame(VirtAddr(0), place) for place in stack), **changes,
    )  # fmt: skip


def free(number: int, pfn: int, order: int = 0) -> Allocation:
    return record(number, pfn, order, None, stack=("free_unref_page+0x1", "exit_mmap+0x2"))


def after(*records: Allocation) -> Holdings:
    ledger = Ledger()
    for each in records:
        ledger.add(each)
    return ledger.tally()


def test_nothing_yet() -> None:
    found = after()
    assert (found.allocated, found.freed, found.held, found.holders) == (0, 0, 0, ())
    assert not found.frames.any()


def test_pages_come_and_go() -> None:
    found = after(
        record(1, 0x900), record(2, 0xB00, 3, UNMOVABLE, stack=SLAB), record(3, 0x901), free(4, 0x901)
    )
    assert (found.allocated, found.freed, found.held) == (10, 1, 9)
    assert (found.before, found.unseen) == (0, 0)
    assert found.holders == (Holder("allocate_slab", 8, 8), Holder("do_anonymous_page", 2, 1))
    # gfp_migratetype(): 0 unmovable, 1 movable (include/linux/gfp.h)
    assert found.frames[[0x8FF, 0x900, 0x901]].tolist() == [UNSEEN, 2, FREED]
    assert found.frames[0xAFF:0xB09].tolist() == [UNSEEN, *[1] * 8, UNSEEN]


def test_a_block_given_back_in_parts() -> None:
    found = after(record(1, 0x200, 9), free(2, 0x200), free(3, 0x280, 7))
    assert (found.held, found.before) == (512 - 129, 0)
    assert found.holders == (Holder("do_anonymous_page", 512, 383),)
    assert (found.frames[0x200:0x400] == FREED).sum() == 129


def test_what_was_held_before() -> None:
    found = after(record(1, 0x10), free(2, 0x10, 1))
    assert (found.freed, found.before, found.held) == (2, 1, 0)


def test_handed_out_again_and_no_free_was_seen() -> None:
    found = after(record(1, 0x10), record(2, 0x10, 0, UNMOVABLE, stack=SLAB))
    assert (found.allocated, found.freed, found.held, found.unseen) == (2, 0, 1, 1)
    assert found.holders == (Holder("allocate_slab", 1, 1), Holder("do_anonymous_page", 1, 0))
    assert found.frames[0x10] == 1


def test_an_order_and_a_pfn_beyond_all_memory() -> None:
    found = after(record(1, 1 << 40, 0xFFFFFFFF), record(2, 0x10))
    assert found.allocated == (1 << 20) + 1
    assert found.frames.size < 1 << 20


def test_the_arrays_grow() -> None:
    found = after(record(1, 0x10), record(2, 0x40000, 1), free(3, 0x40000))
    assert found.frames[[0x10, 0x40000, 0x40001]].tolist() == [2, FREED, 2]


def test_a_tally_stays_as_it_was() -> None:
    ledger = Ledger()
    ledger.add(record(1, 0x10))
    before = ledger.tally()
    ledger.add(free(2, 0x10))
    assert (before.held, before.frames[0x10]) == (1, 2)


def test_other_halves() -> None:
    records = (
        record(1, 0x10, 2), free(2, 0x13), record(3, 0x13), free(4, 0x13), free(5, 0x99), record(6, 0x13),
    )  # fmt: skip
    halves = [other_half(records, each) for each in records]
    assert [half.number if half else None for half in halves] == [2, 1, 4, 3, None, None]


def test_two_allocations_in_a_row_are_no_halves() -> None:
    records = (record(1, 0x10), record(2, 0x10), free(3, 0x10))
    assert other_half(records, records[0]) is None
    assert other_half(records, records[2]) is records[1]
