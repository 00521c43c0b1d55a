"""Every frame against /proc/kpageflags and /proc/kpagecount, over the whole of memory with its holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inspector import Guest
from inspector.errors import NoSuchFrame
from inspector.kernel.frames import FrameState
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners import Owner
from inspector.trace.reading import Reader
from inspector.units import Pfn, VirtAddr

pytestmark = pytest.mark.guest

_PAGE = 4096
_TRIES = 4
_FLAGS, _COUNTS = "/proc/kpageflags", "/proc/kpagecount"
_SHMEM_THP, _KSM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "/sys/kernel/mm/ksm"
_GROUP = "/sys/fs/cgroup/swapped-once"

# Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h, include/linux/kernel-page-flags.h).
KPF_SLAB, KPF_BUDDY, KPF_MMAP, KPF_ANON, KPF_SWAPCACHE, KPF_NOPAGE = 7, 10, 11, 12, 13, 20
KPF_LRU, KPF_SWAPBACKED, KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_HUGE = 5, 14, 15, 16, 17
KPF_HWPOISON, KPF_THP, KPF_ZERO_PAGE, KPF_PGTABLE, KPF_RESERVED = 19, 22, 24, 26, 32
# Flags that /proc copies from struct page as they are: the kernel's name of each, where it has it.
COPIED = {
    "locked": 0, "error": 1, "referenced": 2, "uptodate": 3, "dirty": 4, "lru": 5, "active": 6,
    "writeback": 8, "reclaim": 9, "swapbacked": 14, "unevictable": 18, "idle": 25, "reserved": 32,
    "mlocked": 33, "mappedtodisk": 34, "owner_2": 34, "private": 35, "private_2": 36, "owner_priv_1": 37,
    "arch_1": 38, "uncached": 39, "arch_2": 41, "arch_3": 42,
}  # fmt: skip


@pytest.fixture(scope="module")
def vary(swapping_guest: Guest, start: Any) -> Iterator[Callable[[], None]]:
    """Makes frames of every kind: huge, locked, shared, merged, zero, forked, swapped, broken."""
    guest, pids = swapping_guest, list[int]()
    commands = (
        "touch 8M --thp", "touch 4M --thp --read", "touch 4M --thp --shared", "touch 4M --no-thp --read",
        "touch 4M --huge 2M", "touch 4M --huge 2M --shared", "touch 1M --no-thp --mlock",
        "touch 1M --no-thp --merge", "fork 8M --thp", "maps", "touch 64K --no-thp",
    )  # fmt: skip

    def stop() -> None:
        gone = " ".join(f"/proc/{pid}" for pid in pids)
        guest.run(
            f"kill -9 {' '.join(map(str, pids))};"
            f" while ls -d {gone} 2>/dev/null | grep -q .; do sleep 0.1; done;"
            f" until rmdir {_GROUP}; do sleep 0.1; done"
        ).check()
        pids.clear()

    def make() -> None:
        if pids:
            stop()
        pids.extend(start(guest, f"/labs/{command}") for command in commands)
        break_page(guest, pids[-1])
        merge(guest)
        pids.append(swap_once(guest))

    guest.run(f"echo advise >{_SHMEM_THP}").check()
    yield make
    stop()
    guest.run(f"echo 2 >{_KSM}/run; echo never >{_SHMEM_THP}; echo 0 >/proc/sys/vm/nr_hugepages").check()


@pytest.fixture(scope="module")
def varied_guest(swapping_guest: Guest, vary: Callable[[], None]) -> Guest:
    """A guest with frames of every kind."""
    vary()
    return swapping_guest


def merge(guest: Guest) -> None:
    """Let KSM make one page of the equal ones of 1 MiB."""
    guest.run(
        f"cd {_KSM}; echo 1000 >pages_to_scan; echo 1 >run;"
        " until [ $(cat pages_sharing) -gt 250 ]; do sleep 0.1; done; echo 0 >run",
        timeout=60,
    ).check()


def break_page(guest: Guest, pid: int) -> None:
    """Tell the kernel that a frame of a task is broken."""
    va = VirtAddr(int(guest.run(f"cat /tmp/spawn-{pid}.log").stdout.split()[1], 16))
    phys = guest.task(pid).walk(va).phys
    assert phys is not None
    guest.run(f"echo {phys:#x} >/sys/devices/system/memory/hard_offline_page").check()


def swap_once(guest: Guest) -> int:
    """A task and its child, swapped out and read again: what both share stays in the swap cache meanwhile."""
    guest.run(f"mkdir {_GROUP}").check()
    pid = guest.spawn(f"sh -c 'echo 0 >{_GROUP}/cgroup.procs; exec /labs/fork 8M'")
    log = f"/tmp/spawn-{pid}.log"
    said = guest.run(f"until [ -s {log} ]; do sleep 0.05; done; cat {log}", timeout=60).check().stdout
    shared = int(said.split()[2], 16) // _PAGE + (4 << 20) // _PAGE
    guest.run(
        f"echo 1M >{_GROUP}/memory.high; sleep 0.5; echo max >{_GROUP}/memory.high;"
        f" dd if=/proc/{pid}/mem of=/dev/null bs={_PAGE} skip={shared} count=512"
    ).check()
    return pid


@dataclass(frozen=True)
class Told:
    """What /proc says of every frame: its words, and where both readings gave the same."""

    flags: NDArray[np.uint64]
    stable: NDArray[np.bool_]
    hole: NDArray[np.bool_]

    def bit(self, number: int) -> NDArray[np.bool_]:
        """One bit of every word."""
        return (self.flags >> np.uint64(number) & np.uint64(1)).astype(np.bool_)

    @property
    def heads(self) -> NDArray[np.int64]:
        """The PFN of the compound page's first frame, itself for a frame of none."""
        pfns = np.arange(self.flags.size)
        return np.maximum.accumulate(np.where(self.bit(KPF_COMPOUND_TAIL), 0, pfns))


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


def test_every_frame_agrees_with_proc(varied_guest: Guest, vary: Callable[[], None], witness: Any) -> None:
    """Flags, states, owners and mapcounts: no frame that both readings agree on is told otherwise."""
    guest = varied_guest
    for _ in range(_TRIES):
        witnessed, frames = witness(guest, [_FLAGS, _COUNTS], guest.frames)
        flags, stable = agreed(witnessed.readings[_FLAGS])
        counts, steady = agreed(witnessed.readings[_COUNTS])
        assert len(frames) == len(flags)
        told = Told(flags, stable, holes(guest, len(flags)))
        wrong = {
            **states(frames, told),
            **owned(frames["owner"], told),
            **copied(frames, page_flags(guest), told),
            **mapcounts(frames, counts, steady, told),
        }
        found = {name: pfns[:5].tolist() for name, pfns in wrong.items() if pfns.size}
        absent = absent_kinds(told)
        if not found and not absent:
            break
        if absent:  # the kernel may have written a page back, or had no huge one to give
            vary()
    else:
        pytest.fail(f"PFNs: {found}; of these kinds there were none to compare: {absent}")
    assert stable.mean() > 0.99
    assert told.hole.any(), "a 4 GiB guest has a hole below 4 GiB"
    # From 6.16 on, /proc has no flags at all for a hole, where it had KPF_NOPAGE.
    assert (told.bit(KPF_NOPAGE) == told.hole).all() or not flags[told.hole].any()


def states(frames: NDArray[np.void], told: Told) -> dict[str, NDArray[np.intp]]:
    """Where the state that struct page tells is another."""
    reserved, slab = told.bit(KPF_RESERVED), told.bit(KPF_SLAB)
    expected = {
        FrameState.HOLE: told.hole,
        FrameState.RESERVED: reserved,
        FrameState.FREE: told.bit(KPF_BUDDY),
        FrameState.SLAB: slab & ~reserved,
        FrameState.PAGE_TABLE: told.bit(KPF_PGTABLE) & ~reserved,
        # 6.12 takes a slab's counters for a mapping, and calls some slabs anonymous.
        FrameState.ANON: told.bit(KPF_ANON) & ~reserved & ~slab,
    }
    return {
        f"state {state.name}": np.flatnonzero(told.stable & (theirs != (frames["state"] == state)))
        for state, theirs in expected.items()
    }


def owned(owners: NDArray[np.uint8], told: Told) -> dict[str, NDArray[np.intp]]:
    """Where the owner's class is another: those that /proc tells too, and those that it leaves open."""
    reserved, slab, huge = told.bit(KPF_RESERVED), told.bit(KPF_SLAB), told.bit(KPF_HUGE)
    swapped = told.bit(KPF_SWAPCACHE)
    anon = told.bit(KPF_ANON) & ~reserved & ~slab & ~huge & ~swapped
    cached = told.bit(KPF_LRU) & ~told.bit(KPF_ANON) & ~swapped & ~huge
    equal = {
        Owner.NO_PAGE: told.hole,
        Owner.FREE: told.bit(KPF_BUDDY),
        Owner.SLAB: slab & ~reserved,
        Owner.ANON: anon,
        Owner.SWAP_CACHE: swapped,
        Owner.HUGETLB: huge,
    }
    wrong = {owner.name: theirs != (owners == owner) for owner, theirs in equal.items()}
    zero = np.isin(owners, (Owner.ZERO_PAGE, Owner.HUGE_ZERO_PAGE))
    wrong["ZERO_PAGE"] = told.bit(KPF_ZERO_PAGE) != zero
    within = {
        Owner.PAGE_TABLE: told.bit(KPF_PGTABLE),
        Owner.SHMEM: cached & told.bit(KPF_SWAPBACKED),
        Owner.PAGE_CACHE: cached & ~told.bit(KPF_SWAPBACKED),
    }
    wrong |= {f"all {owner.name}": theirs & (owners != owner) for owner, theirs in within.items()}
    return {f"owner {name}": np.flatnonzero(told.stable & where) for name, where in wrong.items()}


def page_flags(guest: Guest) -> dict[str, int]:
    """The bits of a struct page's flags by name (C: enum pageflags, PG_ left out)."""
    bits = guest.kernel.types.enum("pageflags")
    return {name.removeprefix("PG_"): bit for name, bit in bits.items() if name.startswith("PG_")}


def copied(frames: NDArray[np.void], bits: dict[str, int], told: Told) -> dict[str, NDArray[np.intp]]:
    """Where a flag is another; a tail's are its own in 6.1, its folio's in 6.12."""
    chosen = told.stable & ~told.hole
    own, folio = frames["flags"], frames["flags"][told.heads]

    def different(words: NDArray[np.uint64]) -> dict[str, NDArray[np.intp]]:
        return {
            name: np.flatnonzero(chosen & (told.bit(number) != flag(words, bits[name])))
            for name, number in COPIED.items()
            if name in bits
        }

    wrong = min(different(own), different(folio), key=lambda found: sum(map(len, found.values())))
    tail = told.bit(KPF_COMPOUND_TAIL)
    broken = told.bit(KPF_HWPOISON) != flag(own, bits["hwpoison"])  # of a hugetlb page /proc says it of all
    wrong["hwpoison"] = np.flatnonzero(chosen & broken & ~(tail & told.bit(KPF_HUGE)))
    wrong["head"] = np.flatnonzero(chosen & ~tail & (told.bit(KPF_COMPOUND_HEAD) != flag(own, bits["head"])))
    return wrong


def flag(words: NDArray[np.uint64], number: int) -> NDArray[np.bool_]:
    """One bit of every word."""
    return (words >> np.uint64(number) & np.uint64(1)).astype(np.bool_)


def mapcounts(
    frames: NDArray[np.void], counts: NDArray[np.uint64], steady: NDArray[np.bool_], told: Told
) -> dict[str, NDArray[np.intp]]:
    """Where the mapcount is another; and where a folio is mapped for one of the two alone."""
    ours = np.maximum(frames["mapcount"], 0).astype(np.uint64)
    mapped = np.bincount(told.heads, ours > 0, len(frames)) > 0
    return {
        "mapcount": np.flatnonzero(steady & (ours != counts)),
        "mapped": np.flatnonzero(told.stable & (told.bit(KPF_MMAP) != mapped[told.heads])),
    }


def absent_kinds(told: Told) -> list[str]:
    """What the guest was made to have and has not: without these the comparison would prove less."""
    huge_zero = told.bit(KPF_ZERO_PAGE) & told.bit(KPF_THP)
    kinds = {
        "huge": told.bit(KPF_HUGE),
        "transparent huge, anonymous": told.bit(KPF_THP) & told.bit(KPF_ANON),
        "transparent huge, shared": told.bit(KPF_THP) & ~told.bit(KPF_ANON) & ~huge_zero,
        "huge zero": huge_zero,
        "zero": told.bit(KPF_ZERO_PAGE) & ~huge_zero,
        "swap cache": told.bit(KPF_SWAPCACHE),
        "broken": told.bit(KPF_HWPOISON),
        "locked in memory": told.bit(COPIED["mlocked"]),
    }
    return [name for name, where in kinds.items() if not (where & told.stable).any()]


def test_a_merged_page(varied_guest: Guest) -> None:
    """KSM has one frame for many pages, and counts them itself; 6.12 flags all anonymous ones as merged."""
    guest = varied_guest
    sharing = int(guest.run(f"cat {_KSM}/pages_sharing").stdout)
    with guest.paused():
        areas = [
            (task, vma) for task in guest.tasks() for vma in task.vmas() if "MERGEABLE" in vma.flag_names
        ]
        ((task, area),) = areas
        mappings = task.mappings()
        inside = mappings[(mappings["va"] >= area.start) & (mappings["va"] < area.end)]
        frames, times = np.unique(inside["pa"] // np.uint64(_PAGE), return_counts=True)
        owners = guest.owners()
        shared = [guest.page(Pfn(int(pfn)), owners) for pfn in frames[times > 1]]
        (other,) = (vma for vma in guest.task(1).vmas() if vma.name == "[stack]")
        walk = guest.task(1).walk(VirtAddr(other.end - _PAGE))
        assert walk.pfn is not None
        plain = guest.page(Pfn(walk.pfn), owners)
    assert {page.mapping_kind for page in shared} == {"ksm"}
    assert sum(page.mapcount or 0 for page in shared) - len(shared) == sharing > 250
    assert plain.mapping_kind == "anon"


def test_a_page_in_a_hole(any_guest: Guest) -> None:
    holes = any_guest.frames()
    pfn = Pfn(int(holes["pfn"][holes["state"] == FrameState.HOLE][0]))
    with pytest.raises(NoSuchFrame, match=f"PFN {pfn:#x} has no struct page"):
        any_guest.page(pfn)


def test_one_page_agrees_with_all(varied_guest: Guest) -> None:
    """page() and frames() read by different code: one struct, and whole columns."""
    guest = varied_guest
    with guest.paused():
        owners = guest.owners()
        rows = owners.rows[owners.rows["state"] != FrameState.HOLE]
        used = rows[~np.isin(rows["state"], (FrameState.FREE, FrameState.PER_CPU))]
        for row in [*rows[:: len(rows) // 200], *used[:: len(used) // 300]]:
            page = guest.page(Pfn(int(row["pfn"])), owners)
            assert page.flags == row["flags"]
            assert page.refcount == row["refcount"]
            assert (-1 if page.mapcount is None else page.mapcount) == row["mapcount"]
            assert not (row["state"] == FrameState.ANON and not page.is_tail) or page.mapping_kind == "anon"


def test_frames_in_a_copy_of_all_struct_pages(varied_guest: Guest) -> None:
    """What a fault's record tells of a frame before it, tails of compound pages too, is what it is now."""
    guest = varied_guest
    with guest.paused():
        reader, rows, memmap = Reader(guest.kernel), guest.frames(), MemMap(guest.kernel)
        pages = [(first, structs.copy()) for first, _, structs in memmap.pieces()]
        mapped = rows["pfn"][(rows["owner"] == Owner.ANON) & (rows["mapcount"] > 0)]
        chosen = [*mapped[:: len(mapped) // 50].tolist(), *rows["pfn"][:: len(rows) // 50].tolist()]
        now = {Pfn(pfn): reader.frame(Pfn(pfn)) for pfn in chosen if memmap.has(pfn)}
        assert {pfn: reader.frame_before(pages, pfn) for pfn in now} == now
        tails = [pfn for pfn in now if guest.page(pfn).is_tail and rows["owner"][pfn] == Owner.ANON]
    assert tails
    assert {frame.use for pfn in tails if (frame := now[pfn])} == {"anonymous"}
