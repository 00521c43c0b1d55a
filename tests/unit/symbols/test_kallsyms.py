from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inspector.errors import BadFormat, PageFault, SymbolsError
from inspector.symbols import SymbolTable, attach
from inspector.symbols.kallsyms import KallsymsTables, read_kallsyms
from inspector.symbols.locate import locate
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from tests.unit.symbols.conftest import TinyKernel

ENCODINGS = ["absolute_percpu", "relative", "place_relative", "addresses"]


def build(make: type[TinyKernel], encoding: str) -> TinyKernel:
    kernel = make(encoding=encoding)
    kernel.symbols = [
        ("init_task", "D", kernel.data + 0x40),
        ("kallsyms_init_task", "t", kernel.image + 0x100),
        ("x" * 60 + "_long_" + "y" * 300, "W", kernel.image + 0x200),  # its length takes two bytes
        ("same", "t", kernel.image + 0x300),
        ("same", "t", kernel.image + 0x400),
    ]
    return kernel


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_of_addresses(tiny_kernel: type[TinyKernel], encoding: str) -> None:
    kernel = build(tiny_kernel, encoding).build()
    symbols = attach(kernel.memory, kernel.cpu).symbols
    for name, kind, address in kernel.symbols:
        assert (kind, address) in [(s.kind, s.address) for s in symbols.all(name)]
    assert len(symbols) == len(kernel.symbols) + 6
    assert symbols.offset == kernel.slide
    assert [s.address for s in symbols.all("same")] == [kernel.image + 0x300, kernel.image + 0x400]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_per_cpu_symbols(tiny_kernel: type[TinyKernel], encoding: str) -> None:
    """Offsets before 6.15, and KASLR does not move those; addresses in the image from then on."""
    kernel = build(tiny_kernel, encoding).build()
    arrays = attach(kernel.memory, kernel.cpu).symbols.arrays
    for slide in (kernel.slide, 0x500_0000):
        moved = 0 if kernel.per_cpu < 1 << 31 else slide - kernel.slide
        assert SymbolTable(arrays, slide).address("current_task") == kernel.per_cpu + moved
        assert SymbolTable(arrays, slide).address("init_task") == kernel.data + 0x40 + slide - kernel.slide


def test_per_cpu_symbols_are_not_places(tiny_kernel: type[TinyKernel]) -> None:
    kernel = build(tiny_kernel, "absolute_percpu").build()
    assert attach(kernel.memory, kernel.cpu).symbols.lookup(VirtAddr(0x1_8F40)) is None


def test_the_encoding_must_agree_with_stext(tiny_kernel: type[TinyKernel]) -> None:
    kernel = build(tiny_kernel, "relative").build()
    text = kernel.ram.index(b"SYMBOL(_stext)=ffffffff") + len("SYMBOL(_stext)=ffffffff")
    kernel.ram[text : text + 8] = b"8abcd000"
    with pytest.raises(BadFormat, match="no known layout puts _stext at 0xffffffff8abcd000"):
        attach(kernel.memory, kernel.cpu)


@example(changes=[(0, 12)])
@given(changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8))
def test_corrupt_tables_are_an_answer_or_an_error(
    tiny_kernel: type[TinyKernel], changes: list[tuple[int, int]]
) -> None:
    kernel = build(tiny_kernel, "absolute_percpu").build()
    space = kernel.space
    tables = KallsymsTables.from_vmcoreinfo(locate(kernel.memory, kernel.cpu).vmcoreinfo)
    first = kernel.va_to_pa(tables.num_syms)
    for at, value in changes:
        kernel.ram[first + at] = value
    try:
        arrays = read_kallsyms(space, tables, ("_stext", VirtAddr(kernel.image)), kernel.slide)
    except (SymbolsError, PageFault):
        return
    assert len(list(SymbolTable(arrays))) == len(arrays.addresses)


@pytest.mark.parametrize("count", [0, 1 << 22, 0xFFFF_FFFF])
def test_absurd_counts(tiny_kernel: type[TinyKernel], count: int) -> None:
    kernel = build(tiny_kernel, "relative").build()
    tables = KallsymsTables.from_vmcoreinfo(locate(kernel.memory, kernel.cpu).vmcoreinfo)
    kernel.put(tables.num_syms, count.to_bytes(4, "little"))
    with pytest.raises(BadFormat, match="corrupt"):
        read_kallsyms(kernel.space, tables, ("_stext", VirtAddr(kernel.image)), kernel.slide)
