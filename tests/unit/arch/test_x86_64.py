from __future__ import annotations

import pytest

from inspector.arch import X86_64_4LEVEL, X86_64_5LEVEL, EntryKind, PagingFormat, paging_of, x86_64
from inspector.errors import BadFormat

# From `info registers` of a Debian 6.1 guest under QEMU 7.2, -cpu max, with la57 and without.
CR0, CR4_LA57, CR4, EFER = 0x80050033, 0x751EF0, 0x750EF0, 0xD01


def test_registers_choose_the_format() -> None:
    assert paging_of(CR0, 0xE610000, CR4_LA57, EFER) == (X86_64_5LEVEL, 0xE610000)
    assert paging_of(CR0, 0xE610000, CR4, EFER) == (X86_64_4LEVEL, 0xE610000)


def test_the_usual_formats_are_the_same_objects() -> None:
    assert paging_of(CR0, 0, CR4_LA57, EFER)[0] is X86_64_5LEVEL
    assert paging_of(CR0, 0, CR4, EFER)[0] is X86_64_4LEVEL


def test_cr3_is_stripped_of_pcid_and_lam() -> None:
    assert paging_of(CR0, 0x6000_0000_1234_5ABC, CR4, EFER)[1] == 0x12345000


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer"),
    [(0x11, CR4, EFER), (CR0, CR4, 0x801), (CR0, CR4 & ~0x20, EFER)],
    ids=["paging off", "not long mode", "no PAE"],
)
def test_other_modes_are_refused(cr0: int, cr4: int, efer: int) -> None:
    with pytest.raises(BadFormat):
        paging_of(cr0, 0, cr4, efer)


def test_without_nxe_bit_63_is_reserved() -> None:
    paging = paging_of(CR0, 0, CR4, EFER & ~0x800)[0]
    assert all(shape.reserved >> 63 for level in paging.levels for shape in level.shapes)
    assert not any(shape.reserved >> 63 for level in X86_64_4LEVEL.levels for shape in level.shapes)


@pytest.mark.parametrize(("paging", "bits"), [(X86_64_4LEVEL, 48), (X86_64_5LEVEL, 57)])
def test_levels_cut_the_whole_address(paging: PagingFormat, bits: int) -> None:
    assert paging.va_bits == bits
    ends = [level.shift + level.bits for level in paging.levels]
    assert ends == [bits, *(level.shift for level in paging.levels[:-1])]
    assert paging.page_size == 4096
    assert [level.name for level in paging.levels if level.large] == ["PUD", "PMD"]


def test_level_names() -> None:
    assert [level.name for level in X86_64_4LEVEL.levels] == ["PGD", "PUD", "PMD", "PTE"]
    assert [level.name for level in X86_64_5LEVEL.levels] == ["PGD", "P4D", "PUD", "PMD", "PTE"]
    assert [level.manual for level in X86_64_5LEVEL.levels] == ["PML5E", "PML4E", "PDPTE", "PDE", "PTE"]


# Bit numbers by hand from SDM Vol. 3A: tables 4-15 (PML4E), 4-18 (2 MiB PDE), 4-20 (PTE).
@pytest.mark.parametrize(
    ("kind", "level", "entry", "names"),
    [
        (EntryKind.TABLE, "PMD", 0x67, ["P", "RW", "US", "A"]),  # D is ignored in what leads to a table
        (EntryKind.TABLE, "PUD", 0x8000_0000_0000_0039, ["P", "PWT", "PCD", "A", "NX"]),
        (EntryKind.LARGE, "PMD", 0xE3, ["P", "RW", "A", "D", "PS"]),
        (EntryKind.LARGE, "PUD", 0x1181, ["P", "PS", "G", "PAT"]),
        (EntryKind.PAGE, "PTE", 0x8000_0000_0000_0163, ["P", "RW", "A", "D", "G", "NX"]),
        (EntryKind.PAGE, "PTE", 0x99, ["P", "PWT", "PCD", "PAT"]),
        (EntryKind.PAGE, "PTE", 0x1001, ["P"]),  # bit 12 of a small page belongs to the address
        (EntryKind.PAGE, "PTE", 0xE01, ["P", "SW9", "SW10", "SW11"]),
        (EntryKind.PAGE, "PTE", 0x0410_0000_0000_0001, ["P", "SW52", "SW58"]),
        (EntryKind.PAGE, "PTE", 0x2800_0000_0000_0001, ["P", "PKEY=5"]),
    ],
)
def test_flags_of_entries(kind: EntryKind, level: str, entry: int, names: list[str]) -> None:
    shape = next(level_.shape(entry) for level_ in X86_64_4LEVEL.levels if level_.name == level)
    assert shape is not None
    assert shape.kind is kind
    assert list(shape.names(entry)) == names


@pytest.mark.parametrize("kind", list(EntryKind))
def test_no_two_flags_of_a_kind_share_a_bit_or_a_name(kind: EntryKind) -> None:
    flags = [flag for flag in X86_64_4LEVEL.flags if kind in flag.kinds]
    bits = [flag.bit + i for flag in flags for i in range(flag.width)]
    assert len(set(bits)) == len(bits)
    assert len({flag.name for flag in flags}) == len(flags)
    assert all(flag.meaning for flag in flags)


def test_address_bits_above_maxphyaddr_are_reserved() -> None:
    page = x86_64(maxphyaddr=40).levels[-1].shapes[0]
    assert page.reserved == 0xF_FF00_0000_0000
    assert page.address == 0xFF_FFFF_F000
    assert X86_64_4LEVEL.levels[-1].shapes[0].reserved == 0
