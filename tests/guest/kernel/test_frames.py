"""Every frame against /proc/kpageflags and /proc/kpagecount, over the whole of memory with its holes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inspector import Guest
from inspector.errors import NoSuchFrame
from inspector.kernel.frames import FrameState
from inspector.kernel.pageflags import flag_bits
from inspector.units import Pfn

pytestmark = pytest.mark.guest

_PAGE = 4096
_TRIES = 4

# include/uapi/linux/kernel-page-flags.h
KPF_BUDDY, KPF_SLAB, KPF_ANON, KPF_NOPAGE, KPF_PGTABLE, KPF_RESERVED = 10, 7, 12, 20, 26, 32
KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL = 15, 16
# Flags that /proc copies from struct page as they are.
COPIED = {"referenced": 2, "dirty": 4, "lru": 5, "active": 6, "writeback": 8, "unevictable": 18, "head": 15}


def test_every_frame_agrees_with_proc(any_guest: Guest, witness: Any) -> None:
    for _ in range(_TRIES):
        witnessed, ours = witness(any_guest, ["/proc/kpageflags", "/proc/kpagecount"], any_guest.frames)
        flags, stable = agreed(witnessed.readings["/proc/kpageflags"])
        counts, steady = agreed(witnessed.readings["/proc/kpagecount"])
        wrong = disagreements(any_guest, ours, flags, stable) | mapcount_disagreements(
            ours, flags, counts, steady
        )
        if not any(wrong.values()):
            assert stable.mean() > 0.99
            assert (ours["state"] == FrameState.HOLE).any(), "a 4 GiB guest has a hole below 4 GiB"
            return
    pytest.fail(str(wrong))


def agreed(readings: tuple[bytes, bytes]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The first reading as numbers, and where the second says the same."""
    first, second = (np.frombuffer(reading, np.uint64) for reading in readings)
    return first, first == second


def holes(guest: Guest, count: int) -> NDArray[np.bool_]:
    """Which PFNs have no struct page, by the memory blocks that sysfs lists."""
    listed = guest.run("cd /sys/devices/system/memory; cat block_size_bytes; ls -d memory*").check().stdout
    size, *blocks = listed.split()
    pages = int(size, 16) // _PAGE
    found = np.ones(count, np.bool_)
    for block in blocks:
        first = int(block.removeprefix("memory")) * pages
        found[first : first + pages] = False
    return found


def bit(words: NDArray[np.uint64], number: int) -> NDArray[np.bool_]:
    """One bit of every word."""
    return (words >> np.uint64(number) & np.uint64(1)).astype(np.bool_)


def disagreements(
    guest: Guest, ours: NDArray[np.void], flags: NDArray[np.uint64], stable: NDArray[np.bool_]
) -> dict[str, list[int]]:
    """The first PFNs whose state or flags differ, for each thing that both tell."""
    assert len(ours) == len(flags)
    nopage = holes(guest, len(flags))
    # From 6.16 on, /proc has no flags at all for a hole, where it had KPF_NOPAGE.
    assert (bit(flags, KPF_NOPAGE) == nopage).all() or not flags[nopage].any()
    reserved = bit(flags, KPF_RESERVED)
    free, slab, table = bit(flags, KPF_BUDDY), bit(flags, KPF_SLAB), bit(flags, KPF_PGTABLE)
    expected = {
        FrameState.HOLE: nopage,
        FrameState.RESERVED: reserved,
        FrameState.FREE: free,
        FrameState.SLAB: slab & ~reserved,
        FrameState.PAGE_TABLE: table & ~reserved,
        # 6.12 takes a slab's counters for a mapping, and calls some slabs anonymous.
        FrameState.ANON: bit(flags, KPF_ANON) & ~reserved & ~slab,
    }
    wrong = {
        state.name: np.flatnonzero(stable & (theirs != (ours["state"] == state)))
        for state, theirs in expected.items()
    }
    # 6.12 prints the folio's flags for its tails; a tail's own word holds other things.
    plain = stable & ~nopage & ~bit(flags, KPF_COMPOUND_TAIL)
    bits = flag_bits(guest.kernel)
    for name, number in COPIED.items():
        wrong[name] = np.flatnonzero(plain & (bit(flags, number) != bit(ours["flags"], bits[name])))
    return {name: pfns[:5].tolist() for name, pfns in wrong.items()}


def mapcount_disagreements(
    ours: NDArray[np.void],
    flags: NDArray[np.uint64],
    counts: NDArray[np.uint64],
    steady: NDArray[np.bool_],
) -> dict[str, list[int]]:
    """The first PFNs of single pages whose mapcount differs; for pages with a type /proc says 0."""
    compound = bit(flags, KPF_COMPOUND_HEAD) | bit(flags, KPF_COMPOUND_TAIL)
    single = steady & (ours["state"] != FrameState.HOLE) & ~compound
    mine = np.maximum(ours["mapcount"], 0).astype(np.uint64)
    return {"mapcount": np.flatnonzero(single & (mine != counts))[:5].tolist()}


def test_a_page_in_a_hole(any_guest: Guest) -> None:
    holes = any_guest.frames()
    pfn = Pfn(int(holes["pfn"][holes["state"] == FrameState.HOLE][0]))
    with pytest.raises(NoSuchFrame, match=f"PFN {pfn:#x} has no struct page"):
        any_guest.page(pfn)


def test_one_page_agrees_with_all(guest: Guest) -> None:
    """page() and frames() read by different code: one struct, and whole columns."""
    with guest.paused():
        owners = guest.owners()
        rows = owners.rows
        for row in rows[:: len(rows) // 500]:
            page = guest.page(Pfn(int(row["pfn"])), owners)
            assert page.flags == row["flags"]
            assert page.refcount == row["refcount"]
            assert (-1 if page.mapcount is None else page.mapcount) == row["mapcount"]
            assert not (row["state"] == FrameState.ANON and not page.is_tail) or page.mapping_kind == "anon"
