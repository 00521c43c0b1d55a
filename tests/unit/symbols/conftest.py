"""Hand-made BTF, kallsyms and a whole tiny kernel in RAM, written from the format specifications alone."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from inspector.arch import X86_64_4LEVEL, AddressSpace
from inspector.memory import MappedRam, RamBlock
from inspector.units import PhysAddr

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)


class BtfBuilder:
    """BTF written type by type (Documentation/bpf/btf.rst); every method gives the new type's id."""

    def __init__(self, base: BtfBuilder | None = None) -> None:
        self.base = base
        self.strings = b"" if base else b"\0"
        self.types = b""
        self.count = 0
        self.layout = b""
        self.header_extra = b""

    def string(self, text: str) -> int:
        if not text:
            return 0
        first = len(self.base.strings) if self.base else 0
        at = self.strings.find(b"\0" + text.encode() + b"\0")
        if at >= 0:
            return first + at + 1
        self.strings += text.encode() + b"\0"
        return first + len(self.strings) - len(text) - 1

    def raw(
        self, name: str, kind: int, size_or_type: int, tail: bytes = b"", vlen: int = 0, flag: int = 0
    ) -> int:
        info = flag << 31 | kind << 24 | vlen
        self.types += struct.pack("<III", self.string(name), info, size_or_type) + tail
        self.count += 1
        return self.count + (self.base.count if self.base else 0)

    def integer(self, name: str, size: int, signed: bool = False, bits: int = 0, offset: int = 0) -> int:
        return self.raw(name, INT, size, struct.pack("<I", signed << 24 | offset << 16 | (bits or size * 8)))

    def pointer(self, target: int) -> int:
        return self.raw("", PTR, target)

    def array(self, element: int, count: int) -> int:
        return self.raw("", ARRAY, 0, struct.pack("<III", element, element, count))

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, flag: int = 0
    ) -> int:
        """Members are (name, type, offset in bits; with `flag` the bitfield's size in the top 8 bits)."""
        tail = b"".join(struct.pack("<III", self.string(n), t, o) for n, t, o in members)
        return self.raw(name, kind, size, tail, len(members), flag)

    def enum(self, name: str, signed: bool = False, **values: int) -> int:
        tail = b"".join(struct.pack("<II", self.string(n), v & 0xFFFF_FFFF) for n, v in values.items())
        return self.raw(name, ENUM, 4, tail, len(values), int(signed))

    def blob(self) -> bytes:
        extra = self.header_extra
        if self.layout:
            extra = struct.pack("<II", len(self.types) + len(self.strings), len(self.layout)) + extra
        header = struct.pack(
            "<HBBIIIII",
            0xEB9F,
            1,
            0,
            24 + len(extra),
            0,
            len(self.types),
            len(self.types),
            len(self.strings),
        )
        return header + extra + self.types + self.strings + self.layout


class KallsymsBuilder:
    """Kallsyms' tables as scripts/kallsyms.c writes them. `place` is the address at which the offsets lie."""

    MERGED: ClassVar = {0x00: b"init_", 0x01: b"_task", 0x80: b"kallsyms", 0xFF: b"x" * 30}

    def __init__(self, symbols: list[tuple[str, str, int]]) -> None:
        self.symbols = symbols
        self.tokens = [self.MERGED.get(code, bytes([code])) for code in range(256)]

    @property
    def num_syms(self) -> bytes:
        return struct.pack("<I", len(self.symbols))

    @property
    def names(self) -> bytes:
        packed = b""
        for name, kind, _ in self.symbols:
            text = kind.encode() + name.encode()
            codes = b""
            while text:
                code = next((c for c, t in self.MERGED.items() if codes and text.startswith(t)), text[0])
                codes += bytes([code])
                text = text[len(self.tokens[code]) :]
            length = len(codes)
            packed += (
                bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
            ) + codes
        return packed

    @property
    def token_table(self) -> bytes:
        return b"".join(token + b"\0" for token in self.tokens)

    @property
    def token_index(self) -> bytes:
        places, at = [], 0
        for token in self.tokens:
            places.append(at)
            at += len(token) + 1
        return struct.pack("<256H", *places)

    def relative(self, base: int) -> bytes:
        return struct.pack(f"<{len(self.symbols)}I", *(address - base for _, _, address in self.symbols))

    def absolute_percpu(self, base: int) -> bytes:
        offsets = (a if a < 1 << 31 else base - 1 - a for _, _, a in self.symbols)
        return struct.pack(f"<{len(self.symbols)}i", *offsets)

    def place_relative(self, place: int) -> bytes:
        offsets = (a - (place + 4 * i) for i, (_, _, a) in enumerate(self.symbols))
        return struct.pack(f"<{len(self.symbols)}i", *offsets)

    @property
    def markers(self) -> bytes:
        """Where each 256th name begins; its length is taken for a byte, as before 6.1."""
        places, at, names = [], 0, self.names
        for number in range(len(self.symbols)):
            if number % 256 == 0:
                places.append(at)
            at += names[at] + 1
        return struct.pack(f"<{len(places)}I", *places)

    @property
    def addresses(self) -> bytes:
        return struct.pack(f"<{len(self.symbols)}Q", *(address for _, _, address in self.symbols))


LINKED_AT = 0xFFFF_FFFF_8100_0000
DIRECT_MAP = 0xFFFF_8880_0000_0000
IDT = 0xFFFF_FE00_0000_0000
IMAGE_PHYS = 0x20_0000
INFO_PHYS = 0x10_0000
P, RW, PS, NX = 1, 2, 0x80, 1 << 63


@dataclass
class Cpu:
    """A CPU's registers."""

    cr3: int
    cr0: int = 0x8005_0033
    cr4: int = 0x20
    efer: int = 0xD01
    idt_base: int = IDT


@dataclass
class TinyKernel:
    """RAM with page tables, an IDT, an image (text, then data), and VMCOREINFO in the direct map."""

    slide: int = 0x1A0_0000
    encoding: str = "absolute_percpu"
    unnamed: bool = False  # VMCOREINFO does not say where kallsyms' tables are, as before 6.0
    build_id: str = "00112233445566778899aabbccddeeff00112233"
    btf: BtfBuilder = field(default_factory=BtfBuilder)
    symbols: list[tuple[str, str, int]] = field(default_factory=list)
    ram: bytearray = field(default_factory=lambda: bytearray(6 << 20))
    _next: int = 0x2000

    ROOT = 0x4000  # the kernel half of a PTI pair; the user half is at 0x5000

    def __post_init__(self) -> None:
        self.image = LINKED_AT + self.slide
        self.data = self.image + 0x20_0000
        self._cursor = self.data + 0x1000
        self._next = 0x8000
        self.info_extra = ""
        self.tables_at = 0, 0

    @property
    def per_cpu(self) -> int:
        """The value of a per-CPU symbol: an offset where the encoding can say so, as before 6.15."""
        return 0x1_8F40 if self.encoding in ("absolute_percpu", "addresses") else self.data + 0x1_8F40

    def va_to_pa(self, va: int) -> int:
        return va - self.image + IMAGE_PHYS

    def put(self, va: int, data: bytes) -> None:
        """Write into the image."""
        at = self.va_to_pa(va)
        self.ram[at : at + len(data)] = data

    def place(self, data: bytes) -> int:
        """Put data into the image, 16-byte aligned; its address."""
        at, self._cursor = self._cursor, self._cursor + (len(data) + 31 & ~15)
        self.put(at, data)
        return at

    def map(self, root: int, va: int, entry: int, levels: int) -> None:
        table = root
        for level in range(3, 3 - levels + 1, -1):
            slot = table + 8 * (va >> 12 + 9 * level & 511)
            (down,) = struct.unpack_from("<Q", self.ram, slot)
            if not down:
                down, self._next = self._next | P | RW, self._next + 0x1000
                struct.pack_into("<Q", self.ram, slot, down)
            table = down & ~0xFFF
        struct.pack_into("<Q", self.ram, table + 8 * (va >> 12 + 9 * (3 - levels + 1) & 511), entry)

    def build(self) -> TinyKernel:
        """Lay everything out."""
        handler = self.image + 0x1230
        gate = struct.pack(
            "<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0
        )
        self.ram[0x3000:0x3010] = gate
        for root in (self.ROOT, self.ROOT + 0x1000):
            self.map(root, IDT, 0x3000 | P | NX, 4)
        # Below the kernel root: the image in large pages, and the direct map. The user root: a page of text.
        self.map(self.ROOT, self.image, IMAGE_PHYS | P | PS, 3)
        self.map(self.ROOT, self.data, IMAGE_PHYS + 0x20_0000 | P | RW | PS | NX, 3)
        self.map(self.ROOT, DIRECT_MAP, 0 | P | RW | PS | NX, 3)
        self.map(self.ROOT + 0x1000, self.image + 0x1000, IMAGE_PHYS + 0x1000 | P, 4)
        btf = self.btf.blob()
        start = self.place(btf)
        builtin = [
            ("current_task", "D", self.per_cpu),
            ("_text", "T", self.image),
            ("_stext", "T", self.image),
            ("swapper_pg_dir", "D", self.data),
            ("__start_BTF", "R", start),
            ("__stop_BTF", "R", start + len(btf)),
        ]
        tables = KallsymsBuilder(sorted(builtin + self.symbols, key=lambda row: row[2]))
        lines = self._place_unnamed(tables) if self.unnamed else self._place_named(tables)
        lines |= {"_stext": self.image, "swapper_pg_dir": self.data}
        text = f"OSRELEASE=6.1.0-tiny\nBUILD-ID={self.build_id}\nPAGESIZE=4096\n"
        text += "".join(f"SYMBOL({name})={address:x}\n" for name, address in lines.items())
        text += f"KERNELOFFSET={self.slide:x}\n{self.info_extra}"
        self.ram[INFO_PHYS : INFO_PHYS + 4096] = text.encode().ljust(4096, b"\0")
        self.place(struct.pack("<Q", DIRECT_MAP + INFO_PHYS))
        self.ram[self.va_to_pa(self.data) : self.va_to_pa(self.data) + 4096] = self.ram[
            self.ROOT : self.ROOT + 4096
        ]
        return self

    def _place_named(self, tables: KallsymsBuilder) -> dict[str, int]:
        """Kallsyms' tables anywhere, and the lines that say where."""
        lines = {
            "kallsyms_num_syms": self.place(tables.num_syms),
            "kallsyms_names": self.place(tables.names),
            "kallsyms_token_table": self.place(tables.token_table),
            "kallsyms_token_index": self.place(tables.token_index),
        }
        if self.encoding == "addresses":
            lines["kallsyms_addresses"] = self.place(tables.addresses)
        elif self.encoding == "place_relative":
            lines["kallsyms_offsets"] = self._cursor
            self.place(tables.place_relative(self._cursor))
        else:
            lines["kallsyms_offsets"] = self.place(getattr(tables, self.encoding)(self.image))
            lines["kallsyms_relative_base"] = self.place(struct.pack("<Q", self.image))
        return lines

    def _place_unnamed(self, tables: KallsymsBuilder) -> dict[str, int]:
        """The tables in the order of 4.20 to 6.1, aligned to 8 bytes, and no line about them."""
        parts = [tables.num_syms, tables.names, tables.markers, tables.token_table, tables.token_index]
        if self.encoding == "addresses":
            parts.insert(0, tables.addresses)
        else:
            parts[:0] = [getattr(tables, self.encoding)(self.image), struct.pack("<Q", self.image)]
        blob = b"".join(part + bytes(-len(part) % 8) for part in parts)
        self.tables_at = self.place(blob), len(blob)
        return {}

    @property
    def memory(self) -> MappedRam:
        return MappedRam(self.ram, [RamBlock(PhysAddr(0), len(self.ram), 0)])

    @property
    def space(self) -> AddressSpace:
        return AddressSpace(self.memory, X86_64_4LEVEL, PhysAddr(self.ROOT))

    @property
    def cpu(self) -> Cpu:
        return Cpu(self.ROOT)

    @property
    def user_cpu(self) -> Cpu:
        """A CPU in user mode under page table isolation, PCID 3."""
        return Cpu(self.ROOT + 0x1000 | 3)


@pytest.fixture
def btf() -> BtfBuilder:
    """An empty BTF blob to fill."""
    return BtfBuilder()


@pytest.fixture(scope="session")
def btf_builder() -> type[BtfBuilder]:
    """The builder itself."""
    return BtfBuilder


@pytest.fixture(scope="session")
def tiny_kernel() -> type[TinyKernel]:
    """The builder of a whole kernel."""
    return TinyKernel


@pytest.fixture(scope="session")
def gcc(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What compiles C source, with options, to a file. Skips without a compiler."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is missing")

    def compile_(source: str, *options: str) -> Path:
        folder = tmp_path_factory.mktemp("gcc")
        (folder / "source.c").write_text(source)
        subprocess.run(["gcc", "-o", folder / "out", folder / "source.c", *options], check=True)
        return folder / "out"

    return compile_
