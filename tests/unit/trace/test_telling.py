"""What a record of an allocation says."""

from __future__ import annotations

import pytest

from inspector.trace import Allocation, StackFrame
from inspector.trace import telling as tell
from inspector.units import Pfn, VirtAddr


def record(*places: str, gfp: int | None = 0xCC0) -> Allocation:
    """Called so."""
    stack = tuple(StackFrame(VirtAddr(0), place) for place in places)
    return Allocation(1, gfp is None, Pfn(1), 0, gfp, (), 1, 1, "a", 0, stack)


@pytest.mark.parametrize(
    ("places", "first", "name"),
    [
        (("__alloc_pages+0x1", "vma_alloc_folio+0x2", "do_anonymous_page+0x3"), 2, "do_anonymous_page"),
        (("free_unref_page+0x1", "__put_page+0x2"), 1, "__put_page"),
        (("__alloc_pages+0x1",), 0, "__alloc_pages"),
        (("edu_open+0x1 [edu]",), 0, "edu_open"),
        (("x\x1b[2J+0x1",), 0, r"x\x1b[2J"),
        ((), 0, "?"),
    ],
)
def test_who_called(places: tuple[str, ...], first: int, name: str) -> None:
    assert tell.inner(record(*places)) == first
    assert tell.caller(record(*places)) == name


def test_callers_from_the_allocator_outwards() -> None:
    made = record("alloc_pages+0x1", "a+0x1", "b+0x2", "c+0x3")
    assert tell.callers(made, 2) == ["a", "b"]


@pytest.mark.parametrize(
    ("gfp", "kind"), [(0xCC0, 0), (0x100CCA, 1), (0xCD0, 2), (0xCD8, 3), (None, None)]
)  # ___GFP_MOVABLE is 0x8, ___GFP_RECLAIMABLE 0x10 (include/linux/gfp_types.h)
def test_migratetype(gfp: int | None, kind: int | None) -> None:
    assert record("a+0x1", gfp=gfp).migratetype == kind
