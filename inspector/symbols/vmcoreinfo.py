"""VMCOREINFO: the text in which a kernel tells crash tools where its memory keeps what.

Source: kernel/vmcore_info.c (kernel/crash_core.c before 6.9, commit 443cbaf9e2fd), and arch/.
`SYMBOL(x)` and `KERNELOFFSET` are hexadecimal without a prefix; `SIZE`, `OFFSET` and `LENGTH` are decimal;
`NUMBER` is signed decimal, or hexadecimal behind 0x (VMALLOC_START).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inspector.errors import BadFormat, NoSuchField, NoSuchSymbol, NoSuchType
from inspector.units import VirtAddr

MAGIC = b"OSRELEASE="
"""The text's first bytes."""

SIZE = 4096
"""The most that it can hold: one page (C: VMCOREINFO_BYTES)."""

_ENTRY = re.compile(r"(SYMBOL|SIZE|OFFSET|LENGTH|NUMBER)\(([^()]+)\)")


@dataclass(frozen=True, slots=True)
class Vmcoreinfo:
    """The parsed text. Every question raises where this kernel does not answer it."""

    text: str
    values: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Vmcoreinfo:
        """Read the page that begins with OSRELEASE=, up to its first NUL. Raises BadFormat."""
        if not data.startswith(MAGIC):
            raise BadFormat("not a VMCOREINFO text: it does not begin with OSRELEASE=")
        text = data.split(b"\0", 1)[0].decode("ascii", errors="replace")
        values: dict[str, str] = {}
        for line in text.splitlines():
            key, separator, value = line.partition("=")
            if separator:
                values.setdefault(key, value)
        return cls(text, MappingProxyType(values))

    @property
    def osrelease(self) -> str:
        """The kernel's release, as `uname -r` gives it."""
        return self.values["OSRELEASE"]

    @property
    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal; None before 5.9 (commit 0935288c6e00)."""
        value = self.values.get("BUILD-ID", "").lower()
        return value if re.fullmatch(r"(?:[0-9a-f]{2}){4,32}", value) else None

    @property
    def kaslr_offset(self) -> int:
        """Bytes between where the kernel image runs and where it was linked; 0 without KASLR."""
        return self._int(self.values.get("KERNELOFFSET", "0"), 16)

    @property
    def page_size(self) -> int:
        """Bytes in a page frame."""
        return self._int(self.values.get("PAGESIZE", "4096"), 10)

    def has(self, key: str) -> bool:
        """Whether the text has a line for `key`, such as `SYMBOL(init_uts_ns)`."""
        return key in self.values

    def symbol(self, name: str) -> VirtAddr:
        """A symbol's address, KASLR included. Raises NoSuchSymbol."""
        value = self.values.get(f"SYMBOL({name})")
        if value is None:
            raise NoSuchSymbol(f"VMCOREINFO has no symbol {name!r}")
        return VirtAddr(self._int(value, 16))

    def number(self, name: str) -> int:
        """A constant, sign included (C: VMCOREINFO_NUMBER). Raises NoSuchSymbol."""
        value = self.values.get(f"NUMBER({name})")
        if value is None:
            raise NoSuchSymbol(f"VMCOREINFO has no number {name!r}")
        return self._int(value, 0)

    def get_number(self, name: str) -> int | None:
        """The same; None where this kernel does not tell it."""
        return self.number(name) if self.has(f"NUMBER({name})") else None

    def size(self, name: str) -> int:
        """A type's size in bytes. Raises NoSuchType."""
        value = self.values.get(f"SIZE({name})")
        if value is None:
            raise NoSuchType(f"VMCOREINFO has no size of {name!r}")
        return self._int(value, 0)

    def offset(self, member: str) -> int:
        """A member's offset in bytes, asked for as `type.member`. Raises NoSuchField."""
        value = self.values.get(f"OFFSET({member})")
        if value is None:
            raise NoSuchField(f"VMCOREINFO has no offset of {member!r}")
        return self._int(value, 0)

    def length(self, name: str) -> int:
        """An array's number of elements. Raises NoSuchSymbol."""
        value = self.values.get(f"LENGTH({name})")
        if value is None:
            raise NoSuchSymbol(f"VMCOREINFO has no length of {name!r}")
        return self._int(value, 0)

    @property
    def symbols(self) -> dict[str, VirtAddr]:
        """Every SYMBOL line: name to address."""
        return {name: self.symbol(name) for name in self._names("SYMBOL")}

    def _names(self, kind: str) -> Iterator[str]:
        for key in self.values:
            match = _ENTRY.fullmatch(key)
            if match and match[1] == kind:
                yield match[2]

    @staticmethod
    def _int(text: str, base: int) -> int:
        try:
            return int(text, base)
        except ValueError:
            raise BadFormat(f"VMCOREINFO is corrupt: {text[:40]!r} is not a number") from None
