"""A vmlinux that the user gives: its symbol table, and its types from a BTF section or from DWARF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, Section, SymbolTableSection
from numpy.typing import NDArray

from inspector.errors import BadFormat, UsageError
from inspector.symbols.btf import Btf
from inspector.symbols.dwarf import Dwarf
from inspector.symbols.table import SymbolArrays
from inspector.symbols.types import TypeTable

# Elf64_Sym and Elf32_Sym (System V ABI, chapter 4)
_SYM = {
    64: np.dtype(
        [("name", "u4"), ("info", "u1"), ("other", "u1"), ("shndx", "u2"), ("value", "u8"), ("size", "u8")]
    ),
    32: np.dtype(
        [("name", "u4"), ("value", "u4"), ("size", "u4"), ("info", "u1"), ("other", "u1"), ("shndx", "u2")]
    ),
}
_STB_LOCAL, _STB_WEAK = 0, 2
_STT_SECTION, _STT_FILE = 3, 4
_SHN_UNDEF, _SHN_ABS = 0, 0xFFF1


class Vmlinux:
    """An ELF kernel. Raises UsageError where the file is none, or cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._elf = ELFFile(path.open("rb"))
        except OSError as error:
            raise UsageError(f"cannot open {path}: {error.strerror}") from error
        except ELFError as error:
            raise UsageError(f"{path} is not an ELF file; a vmlinux is meant, not a bzImage") from error

    @property
    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal."""
        for section in self._elf.iter_sections():
            if isinstance(section, NoteSection):
                for note in section.iter_notes():
                    if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
        return None

    def check_build_id(self, running: str | None) -> None:
        """Raises UsageError where both build ids are known and differ."""
        own = self.build_id
        if own and running and own != running:
            raise UsageError(
                f"{self.path} is not the running kernel's vmlinux: build id {own}, the guest's is {running}"
            )

    def symbols(self) -> SymbolArrays | None:
        """The symbol table; None where the file has none. Raises BadFormat."""
        section = self._elf.get_section_by_name(".symtab")
        if not isinstance(section, SymbolTableSection):
            return None
        rows = np.frombuffer(section.data(), _SYM[self._elf.elfclass])
        kind = rows["info"] & 0xF
        rows = rows[
            (rows["shndx"] != _SHN_UNDEF) & (rows["name"] != 0) & (kind != _STT_SECTION) & (kind != _STT_FILE)
        ]
        strings = section.stringtable.data()
        try:
            names = [strings[at : strings.index(b"\0", at)] for at in rows["name"].tolist()]
        except ValueError:
            raise BadFormat(f"{self.path} is damaged: a symbol's name runs past the string table") from None
        addresses = rows["value"].astype(np.uint64)
        first = [row for row, name in enumerate(names) if name in (b"_text", b"_stext")]
        if not first:
            raise BadFormat(f"{self.path} has no symbol _stext: it is not a kernel")
        return SymbolArrays.build(names, self._letters(rows), addresses, int(addresses[first].min()))

    def types(self) -> TypeTable | None:
        """The types of its BTF or else its DWARF; None where it has neither. Raises BadFormat."""
        pointer_size = self._elf.elfclass // 8
        section = self._elf.get_section_by_name(".BTF")
        if section is not None:
            return Btf(section.data(), pointer_size=pointer_size)
        if self._elf.get_section_by_name(".debug_info") is not None:
            return Dwarf(self._elf)
        return None

    def _letters(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        """What nm prints for each symbol: the section's sort, in lower case where the symbol is local."""
        letters = np.full(1 << 16, ord("?"), np.uint8)
        for index, section in enumerate(self._elf.iter_sections()):
            letters[index] = ord(_letter(section))
        letters[_SHN_ABS] = ord("A")
        found: NDArray[np.uint8] = letters[rows["shndx"]]
        binding = rows["info"] >> 4
        found[binding == _STB_WEAK] = ord("W")
        local = (binding == _STB_LOCAL) & (found != ord("?"))
        found[local] |= 0x20
        return found


def _letter(section: Section) -> str:
    flags = section["sh_flags"]
    if flags & SH_FLAGS.SHF_EXECINSTR:
        return "T"
    if section["sh_type"] == "SHT_NOBITS":
        return "B"
    if flags & SH_FLAGS.SHF_WRITE:
        return "D"
    return "R" if flags & SH_FLAGS.SHF_ALLOC else "N"
