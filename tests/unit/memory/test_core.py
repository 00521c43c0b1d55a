"""Memory images made by hand, byte by byte, as the formats' own documents have them; and broken ones."""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.errors import BadFormat, InspectorError, SetupError, UsageError
from inspector.memory import MappedRam
from inspector.memory.core import MemoryImage, open_image
from inspector.units import PhysAddr

PAGE = 4096
A, B = bytes([0xA5]) * PAGE, bytes(range(256)) * 16
ZERO = bytes(PAGE)
INFO = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"


def note(name: bytes, type_: int, body: bytes) -> bytes:
    """An ELF note (elf(5)): sizes, type, name and body, each padded to 4 bytes."""
    padded = (name + b"\0").ljust((len(name) + 4) // 4 * 4, b"\0")
    return (
        struct.pack("<III", len(name) + 1, len(body), type_)
        + padded
        + body.ljust(-(-len(body) // 4) * 4, b"\0")
    )


def load(paddr: int, offset: int, filesz: int, memsz: int | None = None) -> tuple[int, ...]:
    """A PT_LOAD: type, flags, offset, vaddr, paddr, filesz, memsz, align."""
    return (1, 7, offset, 0, paddr, filesz, filesz if memsz is None else memsz, 0)


def elf(loads: list[tuple[int, ...]], notes: bytes = b"", body: bytes = b"", *, machine: int = 62) -> bytes:
    """An ELF64 core: header, program headers and notes in the first page, the memory from 4096 on."""
    programs = [(4, 0, 3000, 0, 0, len(notes), len(notes), 0), *loads]
    header = struct.pack(
        "<4sBBBxxxxxxxxxHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 4, machine, 1, 0, 64, 0, 0, 64, 56, len(programs), 64, 0, 0),
    )
    table = b"".join(struct.pack("<IIQQQQQQ", *program) for program in programs)
    return (header + table).ljust(3000, b"\0").__add__(notes).ljust(PAGE, b"\0") + body


def kdump(
    pages: dict[int, bytes],
    *,
    flag: int = 1,
    pack: Callable[[bytes], bytes] = zlib.compress,
    left_out: tuple[int, ...] = (),
    notes: bytes = b"",
    info: bytes = b"",
    status: int = 1,
    max_mapnr: int | None = None,
    machine: bytes = b"x86_64",
) -> bytes:
    """A kdump of version 6 (makedumpfile IMPLEMENTATION): one block each of header, sub-header, bitmaps."""
    last = max([*pages, *left_out]) + 1 if max_mapnr is None else max_mapnr
    names = b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"host", b"6.1", b"#1", machine, b""))
    header = struct.pack("<8si390s", b"KDUMP   ", 6, names).ljust(424, b"\0")
    header += struct.pack("<IIiiIIIIIi", status, PAGE, 1, 2, min(last, 2**32 - 1), 0, 0, 0, 0, 1)
    at = 2 * PAGE - 1000
    sub = struct.pack(
        "<QiiQQQQQQQQQQQ", 0, 31, 0, 0, last, at, len(info), at + len(info), len(notes), 0, 0, 0, last, last
    )
    sub = sub.ljust(PAGE - 1000, b"\0") + info + notes
    bitmaps = []
    for frames in ({*pages, *left_out}, set(pages)):
        bits = bytearray(PAGE)
        for pfn in frames:
            bits[pfn // 8] |= 1 << pfn % 8
        bitmaps.append(bytes(bits))
    descriptors, data = b"", b""
    at = 4 * PAGE + 24 * len(pages)
    for pfn in sorted(pages):
        packed = pack(pages[pfn])
        descriptors += struct.pack("<QIIQ", at + len(data), len(packed), flag, 0)
        data += packed
    return header.ljust(PAGE, b"\0") + sub.ljust(PAGE, b"\0") + b"".join(bitmaps) + descriptors + data


def flattened(data: bytes, piece: int = 3000) -> bytes:
    """The pieces, the last first: 4096 bytes of header, then offset and size big-endian before each."""
    parts = [struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(PAGE, b"\0")]
    for at in reversed(range(0, len(data), piece)):
        parts.append(struct.pack(">qq", at, len(data[at : at + piece])) + data[at : at + piece])
    return b"".join([*parts, struct.pack(">qq", -1, -1)])


@contextmanager
def opened(folder: Path, data: bytes) -> Iterator[tuple[MemoryImage, MappedRam]]:
    """The image of these bytes, and its memory."""
    path = folder / "image"
    path.write_bytes(data)
    image = open_image(path)
    ram = MappedRam.from_fd(image.fd, image.blocks)
    yield image, ram
    ram.close()
    image.close()


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def spans(image: MemoryImage) -> list[tuple[int, int]]:
    """(start, size) of what the image calls memory."""
    return [(block.start, block.size) for block in image.blocks]


# ELF


def test_an_elf_images_memory_is_where_its_segments_say(tmp_path: Path) -> None:
    data = elf([load(0x100000, 2 * PAGE, PAGE), load(0, PAGE, PAGE)], body=A + B)
    with opened(tmp_path, data) as (image, ram):
        assert spans(image) == [(0, PAGE), (0x100000, PAGE)]
        assert ram.read(PhysAddr(0), PAGE) == A
        assert ram.read(PhysAddr(0x100000), PAGE) == B
        assert (image.form, image.vmcoreinfo, image.cpus) == ("ELF", None, ())


def test_segments_may_lie_over_each_other(tmp_path: Path) -> None:
    """As in /proc/vmcore, where the kernel's text comes twice, and in QEMU's dump with paging."""
    loads = [
        load(PAGE, 2 * PAGE, PAGE),
        load(0, PAGE, 3 * PAGE),
        load(0, PAGE, PAGE),
        load(PAGE, 2 * PAGE, 2 * PAGE),
    ]
    with opened(tmp_path, elf(loads, body=A + B + A)) as (image, ram):
        assert sum(size for _, size in spans(image)) == 3 * PAGE
        assert ram.read(PhysAddr(0), 3 * PAGE) == A + B + A


def test_what_a_segment_has_no_bytes_for_is_zero(tmp_path: Path) -> None:
    """p_memsz > p_filesz; another segment may have the bytes."""
    loads = [load(0, PAGE, PAGE, 3 * PAGE), load(2 * PAGE, 2 * PAGE, PAGE), load(0x100000, 0, 0, PAGE)]
    with opened(tmp_path, elf(loads, body=A + B)) as (image, ram):
        assert ram.read(PhysAddr(0), 3 * PAGE) == A + ZERO + B
        assert ram.read(PhysAddr(0x100000), PAGE) == ZERO
        assert image.remarks == ("2 pages were left out of it and read as zeros",)


def test_many_segments_are_counted_in_the_first_section(tmp_path: Path) -> None:
    """e_phnum is PN_XNUM from 65535 program headers on, sh_info of section 0 the number (elf(5))."""
    count = 70_000
    table = b"".join(struct.pack("<IIQQQQQQ", *load(2 * PAGE * n, 0, 16)) for n in range(count))
    header = struct.pack(
        "<4sBBBxxxxxxxxxHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 4, 62, 1, 0, 128, 64, 0, 64, 56, 0xFFFF, 64, 1, 0),
    )
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    with opened(tmp_path, header + section + table) as (image, ram):
        assert len(image.blocks) == count
        assert ram.read(PhysAddr(2 * PAGE * (count - 1)), 4) == b"\x7fELF"


def test_registers_of_a_kernels_own_note(tmp_path: Path) -> None:
    """C: struct elf_prstatus of x86-64. pr_pid at 32, the registers from 112 on (asm/user_64.h)."""
    words = list(range(100, 127))
    body = bytes(112) + struct.pack("<27Q", *words) + bytes(8)
    data = elf([load(0, PAGE, PAGE)], note(b"CORE", 1, body) + note(b"VMCOREINFO", 0, INFO), A)
    with opened(tmp_path, data) as (image, _):
        (cpu,) = image.cpus
        assert image.vmcoreinfo == INFO
        assert cpu.control is None
        # r15 is the first, rip the 17th, cs 18th, rsp 20th, fs_base 22nd, gs_base 23rd
        assert (cpu.general["r15"], cpu.general["rip"], cpu.general["rsp"]) == (100, 116, 119)
        assert (cpu.segments["cs"][0], cpu.segments["fs"][1], cpu.segments["gs"][1]) == (117, 121, 122)


def test_registers_of_qemus_note(tmp_path: Path) -> None:
    """QEMUCPUState (target/i386/arch_dump.c): 18 registers, 10 segments, cr0 to cr4, maybe kernel_gs_base."""
    segments = b"".join(struct.pack("<IIIIQ", 1 + n, 0x1000 + n, 0xF00 + n, 0, n << 32) for n in range(10))
    body = struct.pack("<II18Q", 1, 440, *range(50, 68)) + segments + struct.pack("<5Q", 10, 11, 12, 13, 14)
    both = note(b"CORE", 1, bytes(336)) + note(b"QEMU", 0, body + struct.pack("<Q", 99))
    with opened(tmp_path, elf([load(0, PAGE, PAGE)], both, A)) as (image, _):
        (cpu,) = image.cpus
        assert (cpu.general["rax"], cpu.general["r15"], cpu.general["rip"], cpu.general["rflags"]) == (
            50,
            65,
            66,
            67,
        )
        assert cpu.control == (10, 11, 12, 13, 14)
        assert cpu.segments["idt"] == (10, 9 << 32, 0x1009, 0xF09)
        assert cpu.segments["gs"] == (5, 4 << 32, 0x1004, 0xF04)
        assert cpu.kernel_gs_base == 99


# kdump


def test_a_kdump_images_pages_are_unpacked(tmp_path: Path) -> None:
    data = kdump({1: A, 2: B, 9: ZERO}, info=INFO, notes=note(b"CORE", 1, bytes(336)))
    with opened(tmp_path, data) as (image, ram):
        assert spans(image) == [(PAGE, 2 * PAGE), (9 * PAGE, PAGE)]
        assert ram.read(PhysAddr(PAGE), 2 * PAGE) == A + B
        assert ram.read(PhysAddr(9 * PAGE), PAGE) == ZERO
        assert (image.vmcoreinfo, len(image.cpus), image.form) == (INFO, 1, "kdump, zlib")
        assert not image.remarks


def test_pages_that_were_left_out_read_as_zeros_and_are_told(tmp_path: Path) -> None:
    with opened(tmp_path, kdump({0: A, 2: B}, left_out=(1, 3))) as (image, ram):
        assert ram.read(PhysAddr(0), 4 * PAGE) == A + ZERO + B + ZERO
        assert image.remarks == ("2 pages were left out of it and read as zeros",)


def test_pages_that_are_not_packed(tmp_path: Path) -> None:
    with opened(tmp_path, kdump({0: A, 1: B}, flag=0, pack=bytes)) as (image, ram):
        assert ram.read(PhysAddr(0), 2 * PAGE) == A + B
        assert image.form == "kdump, not packed"


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        pytest.skip(f"no {name}")


def _snappy(page: bytes) -> bytes:
    out, size = ctypes.create_string_buffer(2 * PAGE), ctypes.c_size_t(2 * PAGE)
    assert (
        _library("libsnappy.so.1").snappy_compress(page, ctypes.c_size_t(PAGE), out, ctypes.byref(size)) == 0
    )
    return out.raw[: size.value]


def _lzo(page: bytes) -> bytes:
    library = _library("liblzo2.so.2")
    out, size = ctypes.create_string_buffer(2 * PAGE), ctypes.c_ulong(2 * PAGE)
    work = ctypes.create_string_buffer(1 << 17)
    assert library.lzo1x_1_compress(page, ctypes.c_ulong(PAGE), out, ctypes.byref(size), work) == 0
    return out.raw[: size.value]


def _zstd(page: bytes) -> bytes:
    library = _library("libzstd.so.1")
    library.ZSTD_compress.restype = ctypes.c_size_t
    out = ctypes.create_string_buffer(2 * PAGE)
    size = library.ZSTD_compress(out, ctypes.c_size_t(2 * PAGE), page, ctypes.c_size_t(PAGE), 1)
    return out.raw[:size]


@pytest.mark.parametrize(
    ("flag", "pack"), [(2, _lzo), (4, _snappy), (0x20, _zstd)], ids=["lzo", "snappy", "zstd"]
)
def test_other_packings_by_the_systems_libraries(
    tmp_path: Path, flag: int, pack: Callable[[bytes], bytes]
) -> None:
    with opened(tmp_path, kdump({0: A, 1: B}, flag=flag, pack=pack)) as (_, ram):
        assert ram.read(PhysAddr(0), 2 * PAGE) == A + B
    with (
        pytest.raises(BadFormat, match="cannot be unpacked"),
        opened(tmp_path, kdump({0: A}, flag=flag, pack=lambda page: b"\xff" * 100)),
    ):
        pass


def test_a_packing_without_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inspector.memory.core import codecs

    monkeypatch.setitem(codecs._LIBRARIES, codecs.LZO, "libnowhere.so.7")
    codecs._library.cache_clear()
    with (
        pytest.raises(SetupError, match=r"packed with lzo.*libnowhere\.so\.7"),
        opened(tmp_path, kdump({0: A}, flag=2, pack=bytes)),
    ):
        pass
    codecs._library.cache_clear()


@pytest.mark.parametrize("piece", [3000, 17])
def test_the_flattened_form(tmp_path: Path, piece: int) -> None:
    for data in (kdump({1: A, 2: B}), elf([load(PAGE, PAGE, 2 * PAGE)], body=A + B)):
        with opened(tmp_path, flattened(data, piece)) as (_, ram):
            assert ram.read(PhysAddr(PAGE), 2 * PAGE) == A + B


# What is broken

BROKEN = {
    "empty": (b"", "no memory image"),
    "text": (b"hello, this is no image at all", "no memory image"),
    "gzip": (b"\x1f\x8b" + bytes(100), "packed with gzip"),
    "ELF header cut": (elf([load(0, PAGE, PAGE)])[:40], "cut short"),
    "ELF arm64": (elf([load(0, PAGE, PAGE)], machine=183, body=A), "arm64"),
    "ELF no load": (elf([]), "no PT_LOAD"),
    "ELF cut": (elf([load(0, PAGE, 2 * PAGE)], body=A), "cut short or corrupt: the memory at 0x0"),
    "ELF offset": (elf([load(0, 1 << 60, PAGE)], body=A), "cut short or corrupt"),
    "ELF offset wraps": (elf([load(0, 2**64 - PAGE, 2 * PAGE)], body=A), "cut short or corrupt"),
    "ELF place": (elf([load(2**64 - PAGE, PAGE, PAGE)], body=A), "corrupt"),
    "ELF huge": (elf([load(0, PAGE, PAGE, 1 << 60)], body=A), "corrupt"),
    "ELF process": (elf([load(0, PAGE, 16), load(0, PAGE, 32)], body=A), "physical addresses"),
    "ELF note": (elf([load(0, PAGE, PAGE)], struct.pack("<III", 5, 1 << 30, 1), A), "notes are corrupt"),
    "ELF prstatus": (elf([load(0, PAGE, PAGE)], note(b"CORE", 1, bytes(144)), A), "NT_PRSTATUS"),
    "ELF QEMU": (elf([load(0, PAGE, PAGE)], note(b"QEMU", 0, bytes(64)), A), "QEMU"),
    "kdump header cut": (kdump({0: A})[:300], "cut short"),
    "kdump cut": (kdump({0: A, 1: B}, flag=0, pack=bytes)[:-1], "cut short or corrupt"),
    "kdump bitmaps cut": (kdump({0: A})[: 3 * PAGE + 5], "cut short"),
    "kdump incomplete": (kdump({0: A}, status=9), "incomplete"),
    "kdump s390x": (kdump({0: A}, machine=b"s390x"), "s390x"),
    "kdump no page": (kdump({}, left_out=(1,)), "no memory"),
    "kdump frames": (kdump({0: A}, max_mapnr=1 << 40), "page frames"),
    "kdump flags": (kdump({0: A}, flag=3), "flags 0x3"),
    "kdump raw size": (kdump({0: A}, flag=0, pack=lambda page: page[:-1]), "a page of 4095 bytes"),
    "kdump bomb": (kdump({0: A}, pack=lambda page: zlib.compress(bytes(100 << 20))), "corrupt"),
    "kdump small bomb": (
        kdump({0: A}, pack=lambda page: zlib.compress(bytes(1 << 20))),
        "has not 4096 bytes",
    ),
    "kdump garbage": (kdump({0: A}, pack=lambda page: b"\xff" * 64), "cannot be unpacked"),
    "kdump short page": (kdump({0: A}, pack=lambda page: zlib.compress(page[:100])), "has not 4096 bytes"),
    "flat cut": (flattened(kdump({0: A}))[:-16], "cut short"),
    "flat size": (flattened(b"")[:-16] + struct.pack(">qq", 0, -5), "a piece of -5 bytes"),
    "flat offset": (flattened(b"")[:-16] + struct.pack(">qq", 1 << 60, 1) + b"x", "a piece for offset"),
    "flat in flat": (flattened(flattened(kdump({0: A}))), "flattened twice"),
    "flat version": (struct.pack(">16sqq", b"makedumpfile", 1, 9).ljust(PAGE, b"\0"), "unknown version"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_on_one_line(tmp_path: Path, name: str) -> None:
    data, message = BROKEN[name]
    before = open_files()
    with pytest.raises(BadFormat, match=message) as caught, opened(tmp_path, data):
        pass
    assert "\n" not in str(caught.value)
    assert open_files() == before


# What lies in the heads: an ELF image's, up to its notes; a kdump's header, sub-header, bitmap, descriptors.
HEADS = {
    "elf": (
        elf([load(0, PAGE, PAGE, 2 * PAGE)], note(b"QEMU", 0, bytes(432)), A),
        (range(64 + 3 * 56), range(3000, 3040)),
    ),
    "kdump": (
        kdump({0: A, 1: B}, notes=note(b"CORE", 1, bytes(336))),
        (range(464), range(PAGE, PAGE + 104), range(2 * PAGE, 2 * PAGE + 4), range(4 * PAGE, 4 * PAGE + 48)),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_no_byte_that_lies_leads_astray(tmp_path: Path, name: str) -> None:
    """Each byte of the heads in turn inverted: an image, or an error of ours."""
    good, heads = HEADS[name]
    outcomes = set()
    for at in (place for head in heads for place in head):
        data = bytearray(good)
        data[at] ^= 0xFF
        try:
            with opened(tmp_path, bytes(data)) as (image, ram):
                ram.read(image.blocks[0].start, 16)
                outcomes.add("image")
        except InspectorError as error:
            outcomes.add(type(error).__name__)
    assert {"image", "BadFormat"} <= outcomes


def test_a_folder_or_nothing_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a file"):
        open_image(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        open_image(tmp_path / "nothing")
