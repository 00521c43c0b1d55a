from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import BadFormat, NoSuchField, NoSuchSymbol, NoSuchType, SymbolsError
from inspector.symbols import Vmcoreinfo

TEXT = b"""OSRELEASE=6.1.0-9-amd64
BUILD-ID=EB4fbcd037e7253717950bf2b93bd5566f47c56f
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff855fb000
LENGTH(zone.free_area)=11
SIZE(page)=64
OFFSET(page._mapcount)=48
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(VMALLOC_START)=0xffffd56000000000
KERNELOFFSET=2a00000
SIZE(page)=9999
"""


def test_each_kind_in_its_own_base() -> None:
    info = Vmcoreinfo.parse(TEXT + b"\0garbage=1\n")
    assert info.osrelease == "6.1.0-9-amd64"
    assert info.build_id == "eb4fbcd037e7253717950bf2b93bd5566f47c56f"
    assert info.page_size == 4096
    assert info.kaslr_offset == 0x2A0_0000
    assert info.symbol("init_uts_ns") == 0xFFFF_FFFF_855F_B000
    assert info.length("zone.free_area") == 11
    assert info.size("page") == 64  # the first line counts
    assert info.offset("page._mapcount") == 48
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -129
    assert info.number("VMALLOC_START") == 0xFFFF_D560_0000_0000
    assert info.symbols == {"init_uts_ns": 0xFFFF_FFFF_855F_B000}
    assert (info.get_number("VMALLOC_START"), info.get_number("page")) == (0xFFFF_D560_0000_0000, None)
    assert info.has("SIZE(page)")
    assert not info.has("garbage")


def test_what_is_not_there() -> None:
    info = Vmcoreinfo.parse(b"OSRELEASE=5.10\n")
    assert info.build_id is None
    assert info.kaslr_offset == 0
    for ask, error in (
        (info.symbol, NoSuchSymbol),
        (info.number, NoSuchSymbol),
        (info.length, NoSuchSymbol),
        (info.size, NoSuchType),
        (info.offset, NoSuchField),
    ):
        with pytest.raises(error, match="absent"):
            ask("absent")


@pytest.mark.parametrize("build_id", ["", "zz", "../../etc/passwd", "abc", "a" * 100])
def test_a_build_id_is_hex_or_none(build_id: str) -> None:
    """It names a file in the cache, and the guest chose it."""
    assert Vmcoreinfo.parse(f"OSRELEASE=1\nBUILD-ID={build_id}\n".encode()).build_id is None


def test_not_vmcoreinfo() -> None:
    with pytest.raises(BadFormat):
        Vmcoreinfo.parse(b"\0" * 4096)


def test_a_number_that_is_none() -> None:
    with pytest.raises(BadFormat, match="corrupt"):
        _ = Vmcoreinfo.parse(b"OSRELEASE=1\nKERNELOFFSET=0x\xff\n").kaslr_offset


@given(st.binary(max_size=300))
def test_any_bytes_parse(noise: bytes) -> None:
    info = Vmcoreinfo.parse(b"OSRELEASE=" + noise)
    for ask in (
        lambda: info.kaslr_offset,
        lambda: info.symbols,
        lambda: [info.number(key[7:-1]) for key in info.values if key.startswith("NUMBER(")],
        lambda: info.page_size,
    ):
        with suppress(SymbolsError):
            ask()
