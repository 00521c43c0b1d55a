"""Kallsyms' tables found by their shape, in images made from scripts/kallsyms.c's description."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.errors import BadFormat, SymbolsError
from inspector.symbols import attach
from inspector.symbols.finder import find_tables
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from tests.unit.symbols.conftest import TinyKernel


def build(make: type[TinyKernel], encoding: str = "absolute_percpu", symbols: int = 0) -> TinyKernel:
    kernel = make(encoding=encoding, unnamed=True)
    kernel.symbols = [(f"function_{n}" * (1 + n % 7), "t", kernel.image + 0x100 + n) for n in range(symbols)]
    return kernel


# 6 symbols are always there: the numbers try one marker and several, padded and not.
@pytest.mark.parametrize("symbols", [0, 1, 250, 251, 506, 507, 1000])
@pytest.mark.parametrize("encoding", ["absolute_percpu", "relative", "addresses"])
def test_all_symbols_are_found(tiny_kernel: type[TinyKernel], encoding: str, symbols: int) -> None:
    kernel = build(tiny_kernel, encoding, symbols).build()
    found = attach(kernel.memory, kernel.cpu).symbols
    assert len(found) == symbols + 6
    for name, kind, address in kernel.symbols:
        assert [(s.kind, s.address) for s in found.all(name)] == [(kind, address)]


def test_what_only_looks_like_a_token_index(tiny_kernel: type[TinyKernel]) -> None:
    """The image has more rising numbers than one: all but the true ones lack their tables."""
    kernel = build(tiny_kernel, symbols=300)
    rising = b"".join((2 * n).to_bytes(2, "little") for n in range(256))
    kernel.place(rising)
    kernel.build()
    kernel.place(rising)
    assert len(attach(kernel.memory, kernel.cpu).symbols) == 306


def test_no_tables_at_all(tiny_kernel: type[TinyKernel]) -> None:
    kernel = build(tiny_kernel).build()
    at, size = kernel.tables_at
    kernel.put(at, bytes(size))
    with pytest.raises(BadFormat, match=r"no kallsyms found in 6\.1\.0-tiny; give its vmlinux"):
        attach(kernel.memory, kernel.cpu)


def test_stext_elsewhere(tiny_kernel: type[TinyKernel]) -> None:
    kernel = build(tiny_kernel).build()
    text = kernel.ram.index(b"SYMBOL(_stext)=ffffffff") + len("SYMBOL(_stext)=ffffffff")
    kernel.ram[text : text + 8] = b"8abcd000"
    with pytest.raises(BadFormat, match="no known layout puts _stext at 0xffffffff8abcd000"):
        attach(kernel.memory, kernel.cpu)


@settings(max_examples=30)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 14), st.binary(max_size=9)), min_size=1, max_size=8))
def test_corrupt_tables_are_an_answer_or_an_error(
    tiny_kernel: type[TinyKernel], changes: list[tuple[int, bytes]]
) -> None:
    kernel = build(tiny_kernel, symbols=300).build()
    at, size = kernel.tables_at
    for place, data in changes:
        kernel.put(at + min(place, size - len(data)), data)
    list(find_tables(kernel.space, VirtAddr(kernel.image), VirtAddr(kernel.image + 0x40_0000)))
    try:
        symbols = attach(kernel.memory, kernel.cpu).symbols
    except SymbolsError:
        return
    assert len(list(symbols)) == len(symbols)
