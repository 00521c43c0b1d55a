from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from inspector.errors import NoSuchField, NoSuchType, PageFault
from inspector.symbols import StructView, attach
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from tests.unit.symbols.conftest import BtfBuilder, TinyKernel


@pytest.fixture
def view(tiny_kernel: type[TinyKernel], btf: BtfBuilder) -> StructView:
    """A struct with a member of each sort, at a symbol."""
    integer, short = btf.integer("int", 4, signed=True), btf.integer("short", 2, signed=True)
    u8, s8 = btf.integer("unsigned char", 1), btf.integer("signed char", 1, signed=True)
    name = btf.array(btf.integer("char", 1, signed=True), 8)
    enum = btf.enum("colour", signed=True, NONE=-1, RED=0)
    word = btf.integer("unsigned long", 8)
    inner = btf.struct("inner", 16, ("x", word, 0), ("y", word, 64))
    opaque = btf.pointer(0)
    members = [
        ("n", integer, 0),
        ("s", short, 32),
        ("a", u8, 3 << 24 | 48),
        ("b", u8, 5 << 24 | 51),
        ("c", s8, 4 << 24 | 56),
        ("next", btf.count + 2, 64),
        ("name", name, 128),
        ("colour", enum, 192),
        ("cross", integer, 12 << 24 | 248),
        ("inner", inner, 320),
        ("opaque", opaque, 448),
        ("packed", integer, 32 << 24 | 213),
    ]
    thing = btf.count + 1
    btf.struct("thing", 64, *members, flag=1)
    assert btf.pointer(thing) == thing + 1
    kernel = tiny_kernel(btf=btf)
    second = kernel.place(struct.pack("<i", 7) + bytes(60))
    data = struct.pack("<ihBBQ8si", -5, -300, 0b10110_101, 0b0000_1101, second, b"init\0ne\xff", -1).ljust(
        64, b"\0"
    )
    data = (
        data[:31]
        + struct.pack("<H", 0b0000_1010_1010_1010)
        + data[33:40]
        + struct.pack("<QQ", 1, 1 << 63)
        + data[56:]
    )
    kernel.symbols = [("first", "D", kernel.place(data))]
    return attach(kernel.build().memory, kernel.cpu).variable("thing", "first")


def test_numbers(view: StructView) -> None:
    assert view.int("n") == -5
    assert view.int("s") == -300
    assert view.int("inner.y") == 1 << 63
    assert view.int("colour") == -1


def test_bitfields(view: StructView) -> None:
    assert view.int("a") == 0b101
    assert view.int("b") == 0b10110
    assert view.int("c") == -3
    assert view.int("cross") == 0xAAA - 0x1000  # 12 bits from byte 31 on: over the end of the int at 28
    whole = int.from_bytes(view.bytes(), "little") >> 213 & 0xFFFF_FFFF  # 32 bits that lie in 5 bytes
    assert view.int("packed") == whole - (whole >> 31 << 32)


def test_pointers(view: StructView) -> None:
    following = view.deref("next")
    assert following is not None
    assert following.address == view.ptr("next")
    assert following.int("n") == 7
    assert following.deref("next") is None
    with pytest.raises(NoSuchField, match=r"struct thing.n is int, not a pointer"):
        view.deref("n")


def test_places(view: StructView) -> None:
    assert view.addr("inner.y") == view.address + 48
    assert view.at("inner").address == view.address + 40
    assert view.at("inner").int("x") == 1
    assert view.at("inner").bytes() == view.bytes("inner") == struct.pack("<QQ", 1, 1 << 63)
    assert len(view.bytes()) == 64
    assert repr(view) == f"<struct thing at {view.address:#x}>"


def test_text_is_cut_at_its_nul_and_never_raises(view: StructView) -> None:
    assert view.text("name") == "init"
    assert view.text("name[6]")  # one byte, 0xff: not UTF-8


def test_what_is_not_there(view: StructView) -> None:
    assert view.has("inner.x")
    assert not view.has("inner.z")
    for ask in (view.int, view.ptr, view.at, view.deref, view.text, view.bytes, view.addr):
        with pytest.raises(NoSuchField, match=r"struct thing has no member 'gone' in this kernel"):
            ask("gone")
    with pytest.raises(NoSuchField, match=r"struct thing\.inner is struct inner, not a number"):
        view.int("inner")
    with pytest.raises(NoSuchType):
        view.kernel.view("gone", VirtAddr(0))


def test_not_mapped(view: StructView) -> None:
    with pytest.raises(PageFault):
        view.kernel.view("thing", VirtAddr(0x1000)).int("n")
