"""A resource tree made by hand, whole and broken."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.errors import CorruptGuest
from inspector.kernel import resources
from inspector.symbols import Kind, Member, Symbol, SymbolTable, Type
from inspector.units import VirtAddr

ROOT, A, B, C = 0x4000, 0x4100, 0x4200, 0x4300
SYSRAM, BUSY_MEM = 0x81000200, 0x80000200


@pytest.fixture
def kernel(tiny: Any) -> Any:
    word = Type(Kind.INT, "unsigned long", 8, 1)
    node = Type(Kind.STRUCT, "resource", 64, 7000)
    pointer = Type(Kind.POINTER, "", 8, 7001, target=node)
    members = ["start", "end", "name", "flags"]
    tiny.types._structs["resource"] = (
        64,
        (
            *(Member(name, word, 64 * i) for i, name in enumerate(members)),
            *(Member(name, pointer, 64 * (4 + i)) for i, name in enumerate(["parent", "sibling", "child"])),
        ),
    )
    tiny.types._ids["resource"] = 7000
    tiny.symbols = SymbolTable.of([Symbol("iomem_resource", VirtAddr(ROOT), "D")])
    tiny.ram[0x5000:0x500B] = b"System RAM\0"
    tiny.put(ROOT, 0, (1 << 52) - 1, 0, 0x200, 0, 0, A)
    tiny.put(A, 0x1000, 0x1FFF, 0x5000, SYSRAM, ROOT, C, B)
    tiny.put(B, 0x1100, 0x11FF, 0, BUSY_MEM, A, 0, 0)
    tiny.put(C, 0x2000, 0x2FFF, 0x5000, SYSRAM, ROOT, 0, 0)
    return tiny


def test_a_tree(kernel: Any) -> None:
    found = resources.iomem(kernel)
    assert [str(each) for each in found] == [
        "00001000-00001fff : System RAM",
        "  00001100-000011ff : <BAD>",
        "00002000-00002fff : System RAM",
    ]
    assert [each.parent for each in found] == [None, 0, None]
    assert found[0].flag_names == ("MEM", "SYSRAM", "BUSY")


@pytest.mark.parametrize("at", [A, B, C])
@pytest.mark.parametrize("to", [A, B])
@pytest.mark.parametrize("link", [5, 6])
def test_loops(kernel: Any, at: int, to: int, link: int) -> None:
    """A sibling or child that was met before; some links only make another tree."""
    kernel.put(at + 8 * link, to)
    if (at, to, link) == (A, B, 6):  # as it was
        return
    with pytest.raises(CorruptGuest, match="does not end"):
        resources.iomem(kernel)
