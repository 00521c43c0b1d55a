"""Swap areas, and the swap entries of page tables (mm/swapfile.c, include/linux/swap.h; /proc/swaps)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace
from inspector.errors import CorruptGuest
from inspector.kernel import ptes
from inspector.kernel.bulk import columns
from inspector.kernel.paths import file_path
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr, printable

USED, WRITEOK = 1 << 0, 1 << 1  # SWP_*, an unnamed enum of include/linux/swap.h
_FLAGS = {
    "used": 0, "writeok": 1, "discardable": 2, "discarding": 3, "solidstate": 4, "continued": 5, "blkdev": 6,
    "activated": 7, "fs-ops": 8, "area-discard": 9, "page-discard": 10, "stable-writes": 11,
    "synchronous-io": 12,
}  # fmt: skip
_OFFLIST = 1 << 62  # SWAP_USAGE_OFFLIST_BIT
_MAX_TYPES = 32  # 1 << MAX_SWAPFILES_SHIFT
_SPACE_PAGES = 1 << 14  # SWAP_ADDRESS_SPACE_PAGES
_MAX_SPACES = 1 << 18
_S_IFMT, _S_IFBLK = 0o170000, 0o060000

ENTRY = np.dtype([("va", np.uint64), ("size", np.uint64), ("entry", np.uint64), *ptes.NONPRESENT.descr])
"""An entry that is not present: the bytes of address space it stands for, its raw value, ptes.NONPRESENT."""


@dataclass(frozen=True, slots=True)
class SwapArea:
    """A swap area in use, as in /proc/swaps. `pages` and `used` count its slots; the header is left out.

    `type` is the number that stands in swap entries. `kind` is `partition` for a block device, or `file`.
    """

    type: int
    path: str
    kind: str
    pages: int
    used: int
    priority: int
    flags: int
    address: VirtAddr

    @property
    def flag_names(self) -> tuple[str, ...]:
        """The SWP_* flags that are set."""
        return tuple(name for name, bit in _FLAGS.items() if self.flags >> bit & 1)


def areas(kernel: Kernel) -> list[SwapArea]:
    """The swap areas in use, by type; none for a kernel without swap. Raises CorruptGuest."""
    return [_area(view) for view in _views(kernel)]


def entries(kernel: Kernel, space: AddressSpace, start: int, end: int) -> NDArray[np.void]:
    """Every entry of [start, end) that is neither empty nor present, by address, as ENTRY rows."""
    rows = space.scan(start, end, nonpresent=True)
    rows = rows[~space.format.present(rows["entry"])]
    found = np.zeros(len(rows), ENTRY)
    for name in ("va", "size", "entry"):
        found[name] = rows[name]
    decoded = ptes.decode(kernel, rows["entry"])
    for name in ptes.NONPRESENT.names or ():
        found[name] = decoded[name]
    return found


def cached_pages(kernel: Kernel) -> int:
    """Pages of the swap cache, for kernels without a counter of them (C: total_swapcache_pages, to 5.11)."""
    total = 0
    for view in _views(kernel):
        number = view.int("type")
        spaces = kernel.space.u64(VirtAddr(kernel.symbol("swapper_spaces") + 8 * number))
        count = -(-view.int("max") // _SPACE_PAGES)
        if not spaces or count > _MAX_SPACES:
            continue
        size = kernel.types.sizeof("address_space")
        at = np.uint64(spaces) + np.arange(count, dtype=np.uint64) * np.uint64(size)
        (pages,) = columns(kernel, "address_space", at, "nrpages")
        total += int(pages.sum())
    return total


def _views(kernel: Kernel) -> Iterator[StructView]:
    """Each struct swap_info_struct that is in use."""
    if "swap_info" not in kernel.symbols:
        return
    count = kernel.space.u32(kernel.symbol("nr_swapfiles"))
    if count > _MAX_TYPES:
        raise CorruptGuest(f"there are {count} swap areas")
    for number in range(count):
        address = kernel.space.pointer(VirtAddr(kernel.symbol("swap_info") + number * kernel.pointer_size))
        if address:
            view = kernel.view("swap_info_struct", address)
            if view.int("flags") & USED and view.ptr("swap_file"):
                yield view


def _area(view: StructView) -> SwapArea:
    file = view.deref("swap_file")
    inode = file.deref("f_inode") if file else None
    block = inode is not None and inode.int("i_mode") & _S_IFMT == _S_IFBLK
    return SwapArea(
        type=view.int("type"),
        path=printable(file_path(file)) if file else "",
        kind="partition" if block else "file",
        pages=view.int("pages"),
        used=_used(view),
        priority=view.int("prio"),
        flags=view.int("flags"),
        address=view.address,
    )


def _used(view: StructView) -> int:
    if view.has("inuse_pages.counter"):  # from 6.14 on: atomic, with a bit for `on no list`
        return view.int("inuse_pages.counter") & ~_OFFLIST
    return view.int("inuse_pages")
