"""What Linux keeps in entries that the MMU takes for not present (arch/x86/include/asm/pgtable_64.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from inspector.symbols import Kernel
from inspector.units import Pfn

_PRESENT = 1 << 0
_PROTNONE = 1 << 8  # _PAGE_BIT_PROTNONE: the global bit, which means nothing without P
_LARGE = 1 << 7  # a huge page that is being split keeps it while P is off; a swap entry has it clear
_SOFT_DIRTY, _UFFD_WP, _EXCLUSIVE = 1 << 1, 1 << 2, 1 << 3  # _PAGE_SWP_*
_TYPE_BITS = 5  # MAX_SWAPFILES_SHIFT and the layout's own width; the type is on top
_OFFSET_FIRST = 9  # SWP_OFFSET_FIRST_BIT
_OFFSET_BITS = 64 - _TYPE_BITS - _OFFSET_FIRST
_TYPES = 1 << _TYPE_BITS


class EntryUse(IntEnum):
    """What an entry that is not present stands for."""

    NONE = 0  # nothing was ever there
    PROT_NONE = 1  # a page in memory that nobody may touch: PROT_NONE, or NUMA balancing watches it
    INVALID = 2  # a huge page that is being split
    SWAP = 3
    MIGRATION = 4  # its page is being moved to another frame
    HWPOISON = 5  # its page's memory is broken
    DEVICE = 6  # its page is in a device's own memory
    DEVICE_EXCLUSIVE = 7  # its page is in memory, and a device has it to itself
    MARKER = 8  # no page; a note on what a fault there is to do
    SWAPIN_ERROR = 9  # its page could not be read back
    UNKNOWN = 10  # a type above the swap areas' whose meaning this kernel does not tell


NONPRESENT = np.dtype(
    [
        ("use", np.uint8),  # EntryUse
        ("type", np.uint8),  # the swap type: the area's number, or one above them
        ("offset", np.uint64),  # the slot in the area, the marker's bits, or the PFN with notes above it
        ("pfn", np.uint64),  # of the frame that it names; 0 where it names none
        ("flags", np.uint8),  # SOFT_DIRTY, UFFD_WP, EXCLUSIVE
    ]
)
SOFT_DIRTY, UFFD_WP, EXCLUSIVE = 1, 2, 4

MARKERS = ("uffd-wp", "poisoned", "guard")
"""The bits of a PTE marker. `poisoned` meant a swapin error before af19487f00f3 (6.6); `guard` is of 6.13."""

_NAMES_A_FRAME = (
    EntryUse.PROT_NONE,
    EntryUse.INVALID,
    EntryUse.MIGRATION,
    EntryUse.HWPOISON,
    EntryUse.DEVICE,
    EntryUse.DEVICE_EXCLUSIVE,
)


@dataclass(frozen=True, slots=True)
class SwapTypes:
    """How this kernel divides the 32 swap types: `areas` swap areas from 0 on, other uses above them.

    `uses` names what is above; a type that is not in it is one whose meaning the kernel does not tell.
    """

    areas: int
    uses: Mapping[int, tuple[EntryUse, str]]

    def use(self, number: int) -> tuple[EntryUse, str]:
        """What a type stands for, and its name."""
        if number < self.areas:
            return EntryUse.SWAP, "swap"
        return self.uses.get(number, (EntryUse.UNKNOWN, f"swap type {number}"))


@dataclass(frozen=True, slots=True)
class NonPresent:
    """An entry that is not present, taken apart. `name` says what it is in words.

    `type` and `offset` are the swap entry's, None where it is none; `pfn` is the frame that it names;
    `markers` are the bits of a PTE marker.
    """

    use: EntryUse
    name: str
    type: int | None
    offset: int | None
    pfn: Pfn | None
    soft_dirty: bool
    uffd_wp: bool
    exclusive: bool
    markers: tuple[str, ...]


def swap_types(kernel: Kernel) -> SwapTypes:
    """What the swap types of the kernel are (include/linux/swap.h: MAX_SWAPFILES and what is above it).

    The numbers are macros that hang on the configuration. How many areas there can be is read off the room
    that the kernel gave their arrays; what the rest is for, off what it was built with. Where the two do
    not add up, the types that are left over are not named.
    """
    areas = _max_swapfiles(kernel)
    above = [(EntryUse.HWPOISON, "hwpoison")] if "num_poisoned_pages" in kernel.symbols else []
    # 6c287605fd56 (5.19) tells exclusive anonymous pages apart, by a page flag as well.
    exclusive = "PG_anon_exclusive" in kernel.types.enum("pageflags")
    if "migrate_pages" in kernel.symbols:
        names = ("read", "read exclusive", "write") if exclusive else ("read", "write")
        above += [(EntryUse.MIGRATION, f"migration {name}") for name in names]
    above += _last_types(kernel, _TYPES - areas - len(above), exclusive)
    return SwapTypes(areas, MappingProxyType({areas + i: each for i, each in enumerate(above)}))


def _max_swapfiles(kernel: Kernel) -> int:
    """MAX_SWAPFILES: how many pointers fit between the start of the areas' arrays and the next symbol."""
    room = [_TYPES]
    arrays = kernel.symbols.arrays
    for name in ("swap_info", "swapper_spaces", "zswap_trees"):
        if name in kernel.symbols:
            start = np.uint64(kernel.symbol(name) - kernel.symbols.offset)
            after = int(np.searchsorted(arrays.addresses, start, "right"))
            if after < len(arrays.addresses):
                room.append(int(arrays.addresses[after] - start) // kernel.pointer_size)
    return min(room)


def _last_types(kernel: Kernel, count: int, exclusive: bool) -> list[tuple[EntryUse, str]]:
    """What the `count` types above the migrating pages' are for; none of them where that is not certain."""
    device = [(EntryUse.DEVICE, "device write"), (EntryUse.DEVICE, "device read")]
    if "make_device_exclusive" in kernel.symbols:  # c25465eb7630 (6.15): one type for what took two
        device += [(EntryUse.DEVICE_EXCLUSIVE, "device exclusive")]
    elif "make_device_exclusive_range" in kernel.symbols:  # b756a3b5e7ea (5.14)
        device += [(EntryUse.DEVICE_EXCLUSIVE, f"device exclusive {way}") for way in ("write", "read")]
    marker, error = (EntryUse.MARKER, "pte marker"), (EntryUse.SWAPIN_ERROR, "swapin error")
    # Markers came with 679d10331910 (5.19), behind CONFIG_PTE_MARKER until ca92ea3dc5a2 (6.2); errors had a
    # type of their own from 9f186f9e5fa9 (5.19) until 15520a3f0469 (6.2) made a marker of them.
    marked = exclusive and kernel.types.has("pte_marker")
    ends = ([marker], [marker, error], [], [error]) if marked else ([], [error]) if exclusive else ([],)
    for end in ends:
        for types in (device + end, end):
            if len(types) == count:
                return types
    return []


def decode(kernel: Kernel, entries: NDArray[np.uint64]) -> NDArray[np.void]:
    """Entries that are not present, as scan(nonpresent=True) gives them, as NONPRESENT rows."""
    types = swap_types(kernel)
    uses = np.array([types.use(number)[0] for number in range(_TYPES)], np.uint8)
    rows = np.zeros(len(entries), NONPRESENT)
    number = entries >> np.uint64(64 - _TYPE_BITS)
    offset = ~entries << np.uint64(_TYPE_BITS) >> np.uint64(_TYPE_BITS + _OFFSET_FIRST)
    none = entries == 0
    prot_none = ~none & (entries & np.uint64(_PROTNONE) != 0)
    invalid = ~none & ~prot_none & (entries & np.uint64(_LARGE) != 0)
    swap = ~none & ~prot_none & ~invalid
    rows["use"] = np.select(
        [none, prot_none, invalid], [EntryUse.NONE, EntryUse.PROT_NONE, EntryUse.INVALID], uses[number]
    )
    rows["type"][swap], rows["offset"][swap] = number[swap], offset[swap]
    for bit, flag in ((_SOFT_DIRTY, SOFT_DIRTY), (_UFFD_WP, UFFD_WP), (_EXCLUSIVE, EXCLUSIVE)):
        rows["flags"] |= np.where(swap & (entries & np.uint64(bit) != 0), flag, 0).astype(np.uint8)
    paging = kernel.space.format
    framed = ~entries & np.uint64((1 << paging.pa_bits) - 1)
    mapped = prot_none | invalid
    rows["pfn"][mapped] = framed[mapped] // np.uint64(paging.page_size)
    names = swap & np.isin(rows["use"], _NAMES_A_FRAME)
    rows["pfn"][names] = offset[names] & np.uint64(_pfn_mask(kernel))
    return rows


def nonpresent(kernel: Kernel, entry: int) -> NonPresent:
    """One entry that is not present, taken apart."""
    row = decode(kernel, np.array([entry], np.uint64))[0]
    use, flags = EntryUse(int(row["use"])), int(row["flags"])
    in_swap = use not in (EntryUse.NONE, EntryUse.PROT_NONE, EntryUse.INVALID)
    number, offset = int(row["type"]), int(row["offset"])
    names = {
        EntryUse.NONE: "none",
        EntryUse.PROT_NONE: "PROT_NONE",
        EntryUse.INVALID: "huge page being split",
    }
    return NonPresent(
        use=use,
        name=swap_types(kernel).use(number)[1] if in_swap else names[use],
        type=number if in_swap else None,
        offset=offset if in_swap else None,
        pfn=Pfn(int(row["pfn"])) if use in _NAMES_A_FRAME else None,
        soft_dirty=bool(flags & SOFT_DIRTY),
        uffd_wp=bool(flags & UFFD_WP),
        exclusive=bool(flags & EXCLUSIVE),
        markers=tuple(
            name for bit, name in enumerate(MARKERS) if use is EntryUse.MARKER and offset >> bit & 1
        ),
    )


def prot_none_pfn(kernel: Kernel, entry: int) -> Pfn | None:
    """The frame of a PROT_NONE page: mapped for Linux, not present for the MMU. None for other entries.

    The address bits stand inverted, so that a CPU with the L1TF flaw finds nothing: 6b28baca9b1f (4.19).
    """
    if entry & _PRESENT or not entry & _PROTNONE:
        return None
    paging = kernel.space.format
    return Pfn((~entry & (1 << paging.pa_bits) - 1) // paging.page_size)


def _pfn_mask(kernel: Kernel) -> int:
    """SWP_PFN_MASK: a page's age and dirt stand above its PFN, since 2e3468778dbe (6.1)."""
    bits = kernel.vmcoreinfo.get_number("MAX_PHYSMEM_BITS")
    page_bits = kernel.space.format.page_size.bit_length() - 1
    known = bits is not None and 0 < bits - page_bits <= _OFFSET_BITS
    return (1 << (bits - page_bits if bits is not None and known else _OFFSET_BITS)) - 1
