"""What the bits of a struct page mean: its flags and its type (include/linux/page-flags.h)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat
from inspector.symbols import Kernel
from inspector.symbols.types import Enumerators

_WORD = 64  # bits of a struct page's flags
_TYPED = 0x80000000  # a page_type's top bit: the word is a type, not a mapcount
NO_TYPE = 0xFFFFFFFF
"""A mapcount of none, which is -1, and no page type."""
_BASE = 0xF0000000  # PAGE_TYPE_BASE, up to 6.11


def flag_bits(kernel: Kernel) -> dict[str, int]:
    """The bit of each page flag, PG_ left out; of several names for one bit the first (C: enum pageflags)."""
    return kernel.layout(_flag_bits)


def _flag_bits(kernel: Kernel) -> dict[str, int]:
    bits: dict[int, str] = {}
    for name, bit in kernel.types.enum("pageflags").items():
        if name.startswith("PG_"):
            bits.setdefault(bit, name.removeprefix("PG_"))
    count = kernel.types.enum("pageflags")["__NR_PAGEFLAGS"]
    if count > _WORD:
        raise BadFormat(f"the types are corrupt: there are {count} page flags")
    return Enumerators({name: bit for bit, name in bits.items() if 0 <= bit < count})


def flags_path(kernel: Kernel) -> str:
    """The member with a struct page's flags: a memdesc_flags_t since 53fbef56e07d (6.18), before a word."""
    return "flags.f" if kernel.types.has("page", "flags.f") else "flags"


def flag_names(kernel: Kernel, flags: int, bits: dict[str, int], *, anon: bool) -> tuple[str, ...]:
    """The names of the bits that are set; some bits mean another thing on pages of some kinds."""
    names = [name for name, bit in bits.items() if flags >> bit & 1]
    aliases = {"PG_swapcache": "swapbacked" in names, "PG_anon_exclusive": anon}  # the latter since 5.19
    known = kernel.types.enum("pageflags")
    meant = {
        known[alias]: alias.removeprefix("PG_") for alias, so in aliases.items() if so and alias in known
    }
    return tuple(meant.get(bits[name], name) for name in names)


class PageTypes:
    """The types of pages that nobody's page tables map: they have their word in place of _mapcount."""

    def __init__(self, kernel: Kernel) -> None:
        self._tests = kernel.layout(_tests)
        self.names = ("", *self._tests)

    def name(self, word: int) -> str | None:
        """The type in a page_type, `0x...` where it is none that is known; None where it is a mapcount."""
        if not typed(np.array([word], np.uint32))[0]:
            return None
        return self.names[int(self.kinds(np.array([word], np.uint32))[0])] or f"{word:#x}"

    def are(self, name: str, words: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which words are of the type of this name, one of `names`."""
        mask, value = self._tests[name]
        return np.asarray(typed(words) & (words & np.uint32(mask) == np.uint32(value)))

    def kinds(self, words: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """For each word the index into `names`: 0 where it is no type, or none that is known."""
        found = np.zeros(len(words), np.uint8)
        some = np.flatnonzero(typed(words))  # few pages have a type
        chosen = words[some]
        for index, (mask, value) in enumerate(self._tests.values(), 1):
            found[some[chosen & np.uint32(mask) == np.uint32(value)]] = index
        return found


def typed(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Where the word that _mapcount and page_type share is a type."""
    return np.asarray((words >= np.uint32(_TYPED)) & (words != np.uint32(NO_TYPE)))


def _tests(kernel: Kernel) -> dict[str, tuple[int, int]]:
    """The types by name: which bits of the word to look at, and what they must be."""
    if kernel.types.has("pagetype"):  # 4ffca5a96678 (6.12): the top byte is the type, an enum
        kinds = kernel.types.enum("pagetype").items()
        return {
            name.removeprefix("PGTY_"): (0xFF << 24, (value & 0xFF) << 24)
            for name, value in kinds
            if name not in ("PGTY_mapcount_underflow",)
        }
    # Before, each type was a bit that is clear. 18b2db3b0385 (5.11) freed the one of pages that a memory
    # cgroup is charged for; 46df8e73a4a3 (6.10) made slab a type.
    bits = {"table": 0x200, "guard": 0x400}
    if kernel.types.has("page", "mem_cgroup"):
        bits = {"kmemcg": 0x200, "table": 0x400, "guard": 0x800}  # a table may be charged for too
    for name in ("buddy", "offline", "slab"):
        number = kernel.vmcoreinfo.get_number(f"PAGE_{name.upper()}_MAPCOUNT_VALUE")
        if number is not None:
            bits[name] = ~number & 0xFFFFFFFF
    return {name: (_BASE | bit, _BASE) for name, bit in bits.items()}
