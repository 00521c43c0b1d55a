"""An answer is given again only while every byte that it was read from is as it was."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inspector.arch import StillSpace
from inspector.kernel.recall import Surveyed, confirm, recall, recall_survey
from inspector.symbols import Kernel, Symbol, SymbolTable
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from tests.unit.kernel.conftest import TinyKernel

_HEAD, _OTHER = 0x5000, 0x6000


@pytest.fixture
def asked() -> list[tuple[int, ...]]:
    return []


def chain(kernel: Kernel, first: int, asked: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Follows pointers; notes that it was asked."""
    found, at = [], first
    while at:
        found.append(at)
        at = kernel.space.u64(VirtAddr(at))
    asked.append(tuple(found))
    return tuple(found)


def test_the_same_bytes_are_not_read_anew(tiny: TinyKernel, asked: list[tuple[int, ...]]) -> None:
    tiny.put(_HEAD, _HEAD + 0x40)
    tiny.put(_HEAD + 0x40, 0)
    assert [recall(tiny, chain, _HEAD, asked) for _ in range(3)] == [(_HEAD, _HEAD + 0x40)] * 3
    assert len(asked) == 1
    tiny.put(_HEAD + 8, 7)  # a word that nobody read
    recall(tiny, chain, _HEAD, asked)
    assert len(asked) == 1


def test_a_change_is_seen(tiny: TinyKernel, asked: list[tuple[int, ...]]) -> None:
    tiny.put(_HEAD, _HEAD + 0x40)
    recall(tiny, chain, _HEAD, asked)
    tiny.put(_HEAD + 0x40, _OTHER)  # the last of all that was read
    assert recall(tiny, chain, _HEAD, asked) == (_HEAD, _HEAD + 0x40, _OTHER)
    assert len(asked) == 2


def test_another_mapping_of_the_same_address_is_seen(tiny: TinyKernel, asked: list[tuple[int, ...]]) -> None:
    """Bytes are compared where they are mapped now."""
    tiny.put(_HEAD, 0)
    tiny.put(0x2000, 0x83 | 0)  # the 2 MiB page at 0 (SDM Vol. 3A, 4.5)
    assert recall(tiny, chain, _HEAD, asked) == (_HEAD,)
    tiny.put(0x3000, *[0] * 5, 0x8000 | 3)  # a PTE for 0x5000: page 0x8000
    tiny.put(0x8000, 0)
    tiny.put(0x2000, 0x3000 | 3)
    tiny.space.flush()
    assert recall(tiny, chain, _HEAD, asked) == (_HEAD,)
    assert len(asked) == 1  # there too is a zero
    tiny.put(0x8000, _HEAD + 8)
    assert recall(tiny, chain, _HEAD, asked) == (_HEAD, _HEAD + 8)


def test_other_arguments_are_another_question(tiny: TinyKernel, asked: list[tuple[int, ...]]) -> None:
    assert recall(tiny, chain, _HEAD, asked) == (_HEAD,)
    assert recall(tiny, chain, _OTHER, asked) == (_OTHER,)
    assert len(asked) == 2


def test_a_question_within_a_question(tiny: TinyKernel, asked: list[tuple[int, ...]]) -> None:
    """What the inner one did not read again still counts for the outer one."""

    def outer(kernel: Kernel) -> int:
        return len(recall(kernel, chain, _HEAD, asked)) + kernel.space.u8(VirtAddr(_OTHER))

    tiny.put(_HEAD, 0)
    recall(tiny, chain, _HEAD, asked)
    assert recall(tiny, outer) == 1
    tiny.put(_HEAD, _HEAD + 0x40)
    assert recall(tiny, outer) == 2
    tiny.put(_OTHER, 5)
    assert recall(tiny, outer) == 7


def test_bulk_reads_count_too(tiny: TinyKernel) -> None:
    def total(kernel: Kernel) -> int:
        at = np.array([_HEAD, _OTHER + 4], np.uint64)
        values, _ = kernel.space.gather(at, np.dtype(np.uint32))
        return int(values.sum()) + int(kernel.space.array(VirtAddr(_HEAD + 0x800), 16).sum())

    assert recall(tiny, total) == 0
    for at, word, expected in ((_HEAD, 3, 3), (_OTHER, 2 << 32, 5), (_HEAD + 0x808, 1, 6)):
        tiny.put(at, word)
        assert recall(tiny, total) == expected


@pytest.mark.parametrize("how", ["translate", "locate", "overlaps"])
def test_what_hangs_on_where_something_is_mapped(tiny: TinyKernel, how: str) -> None:
    """It is kept while the page tables say the same, and no longer."""
    asked: list[int] = []

    def where(kernel: Kernel) -> object:
        asked.append(kernel.space.u8(VirtAddr(_HEAD)))
        start, end = np.array([_OTHER], np.uint64), np.array([_OTHER + 0x1000], np.uint64)
        if how == "translate":
            return kernel.space.translate(VirtAddr(_OTHER))
        if how == "locate":
            return int(kernel.space.locate(start)[0][0])
        return int(kernel.space.overlaps(start, end)[2][0])

    tiny.put(0x2000, 0x3000 | 3)  # a table of 4 KiB pages in place of the 2 MiB page at 0 (SDM Vol. 3A, 4.5)
    tiny.put(0x3000, *(page | 3 for page in range(0, 0x9000, 0x1000)))
    tiny.space.flush()
    assert [recall(tiny, where) for _ in range(3)] == [_OTHER] * 3
    assert len(asked) == 1
    tiny.put(0x3000 + 8 * 7, 0x5000 | 3)  # another page
    tiny.space.flush()
    assert recall(tiny, where) == _OTHER
    assert len(asked) == 1
    tiny.put(0x3000 + 8 * 6, 0x8000 | 3)
    tiny.space.flush()
    assert recall(tiny, where) == 0x8000
    assert len(asked) == 2


def test_a_survey_is_made_anew_when_an_entry_is_another(tiny: TinyKernel) -> None:
    def ask(known: int = 0) -> Surveyed:
        roots = np.array([tiny.space.root], np.uint64)
        return recall_survey(tiny, "all", roots, np.array([7], np.uint32), known=np.array([known], np.uint64))

    tiny.put(0x2000, 0x3000 | 3)
    tiny.put(0x3000, 0 | 3, 0x1000 | 3)
    first = ask()
    assert ask() is first
    assert [size for *_, size in first.stretches.between(0, 1 << 20)] == [0x2000]
    assert set(first.tables["root"].tolist()) == {7}
    tiny.put(0x3000 + 8 * 2, 0x5000 | 3)
    assert ask().leaves["pa"].tolist() == [0, 0x1000, 0x5000]
    assert ask(known=0x3000).leaves["pa"].tolist() == []


def test_a_byte_that_changes_under_the_reader(tiny: TinyKernel) -> None:
    """The guest may run: an answer whose bytes are others by now is not kept."""
    asked: list[int] = []

    def torn(kernel: Kernel) -> int:
        found = kernel.space.u8(VirtAddr(_HEAD))
        asked.append(found)
        tiny.put(_HEAD, found + 1)
        return found

    assert [recall(tiny, torn) for _ in range(3)] == [0, 1, 2]


def test_what_a_kernel_remembers_counts_too(tiny: TinyKernel) -> None:
    """Kernel.page_offset is read once; an answer that it went into is not kept when it is another."""
    tiny.symbols = SymbolTable.of([Symbol("page_offset_base", VirtAddr(_HEAD), "D")])
    tiny.put(_HEAD, 0x1000)
    assert tiny.page_offset == 0x1000

    def offset(kernel: Kernel) -> int:
        return kernel.page_offset

    assert recall(tiny, offset) == 0x1000
    tiny.put(_HEAD, 0x2000)
    assert recall(tiny, offset) == 0x2000


def test_all_that_is_kept_is_compared_at_once(tiny: TinyKernel) -> None:
    """What changed is asked anew, what did not is not, under page tables that are the same and others."""
    asked: list[int] = []

    def first(kernel: Kernel) -> int:
        asked.append(1)
        return kernel.space.u8(VirtAddr(_HEAD))

    def second(kernel: Kernel) -> int:
        asked.append(2)
        return kernel.space.u8(VirtAddr(_OTHER))

    def answers() -> tuple[int, int]:
        roots = np.array([tiny.space.root], np.uint64)
        found = recall_survey(tiny, "all", roots, np.zeros(1, np.uint32))
        moment = copy(tiny)
        confirm(moment, StillSpace(tiny.memory, tiny.space.format, tiny.space.root, found.stretches))
        return recall(moment, first), recall(moment, second)

    assert [answers() for _ in range(3)] == [(0, 0)] * 3
    assert asked == [1, 2]
    tiny.put(_OTHER, 9)
    assert answers() == (0, 9)
    assert asked == [1, 2, 2]
    tiny.put(0x2000, 0x3000 | 3)  # a table of 4 KiB pages in place of the 2 MiB page at 0 (SDM Vol. 3A, 4.5)
    tiny.put(0x3000, *(page | 3 for page in range(0, 0x9000, 0x1000)))
    assert answers() == (0, 9)
    assert asked == [1, 2, 2]
    tiny.put(0x8000, 5)
    tiny.put(0x3000 + 8 * 5, 0x8000 | 3)  # _HEAD is on another page
    assert answers() == (5, 9)
    assert asked == [1, 2, 2, 1]
