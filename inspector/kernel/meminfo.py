"""/proc/meminfo out of the kernel's counters (fs/proc/meminfo.c)."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.errors import CorruptGuest
from inspector.kernel import lists, swap, zones
from inspector.kernel.hugetlb import hstates
from inspector.kernel.vmalloc import vmalloc_end
from inspector.kernel.vmstat import Counters, has_huge_pages, huge_pages, percpu_counter
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_MAX_INODES = 1 << 16
_MAX_ORDER = 40
_PLAIN = ("KernelStack", "VmallocTotal")  # counted in KiB, not in pages
_DIRECT_MAP = (
    ("DirectMap4k", "PG_LEVEL_4K", 4),
    ("DirectMap2M", "PG_LEVEL_2M", 2 << 10),
    ("DirectMap1G", "PG_LEVEL_1G", 1 << 20),
)


def meminfo(kernel: Kernel) -> dict[str, int]:
    """The lines of /proc/meminfo in order, in KiB as there; HugePages_* are counts. Raises CorruptGuest.

    A line that this kernel does not print, or whose number is kept in no place of its own (Zswap in
    newer ones), is left out.
    """
    return dict(_Meminfo(kernel).lines())


class _Meminfo:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.counters = Counters(kernel)
        self.kib = kernel.space.format.page_size // 1024

    def lines(self) -> Iterator[tuple[str, int]]:
        pages = dict(self._pages())
        for name, count in pages.items():
            if count is not None:
                yield name, count if name in _PLAIN else count * self.kib
        yield from self._hugetlb()
        yield from self._direct_map()

    def _pages(self) -> Iterator[tuple[str, int | None]]:
        kernel, state = self.kernel, self.counters.state
        swap_total, swap_free = self._swap()
        buffers, swap_cache = _block_device_pages(kernel), self._swap_cache()
        lru = {
            name: state(f"NR_{name}") or 0
            for name in ("INACTIVE_ANON", "ACTIVE_ANON", "INACTIVE_FILE", "ACTIVE_FILE", "UNEVICTABLE")
        }
        reclaimable, unreclaimable = (
            state("NR_SLAB_RECLAIMABLE_B") or 0,
            state("NR_SLAB_UNRECLAIMABLE_B") or 0,
        )
        total = kernel.word("_totalram_pages")
        yield "MemTotal", total
        yield "MemFree", state("NR_FREE_PAGES")
        yield "MemAvailable", self._available(lru, reclaimable)
        yield "Buffers", buffers
        yield "Cached", max(0, (state("NR_FILE_PAGES") or 0) - swap_cache - buffers)
        yield "SwapCached", swap_cache
        yield "Active", lru["ACTIVE_ANON"] + lru["ACTIVE_FILE"]
        yield "Inactive", lru["INACTIVE_ANON"] + lru["INACTIVE_FILE"]
        yield "Active(anon)", lru["ACTIVE_ANON"]
        yield "Inactive(anon)", lru["INACTIVE_ANON"]
        yield "Active(file)", lru["ACTIVE_FILE"]
        yield "Inactive(file)", lru["INACTIVE_FILE"]
        yield "Unevictable", lru["UNEVICTABLE"]
        yield "Mlocked", state("NR_MLOCK")
        yield "SwapTotal", swap_total
        yield "SwapFree", swap_free
        if "ZSWPIN" in kernel.types.enum("vm_event_item"):  # f6498b776d28 (5.19)
            yield "Zswap", self._zswap()
            yield "Zswapped", self._word32("zswap_stored_pages")
        yield "Dirty", state("NR_FILE_DIRTY")
        yield "Writeback", state("NR_WRITEBACK")
        yield "AnonPages", state("NR_ANON_MAPPED")
        yield "Mapped", state("NR_FILE_MAPPED")
        yield "Shmem", state("NR_SHMEM")
        yield "KReclaimable", reclaimable + (state("NR_KERNEL_MISC_RECLAIMABLE") or 0)
        yield "Slab", reclaimable + unreclaimable
        yield "SReclaimable", reclaimable
        yield "SUnreclaim", unreclaimable
        yield "KernelStack", state("NR_KERNEL_STACK_KB")
        yield "PageTables", state("NR_PAGETABLE")  # a node's since f0c0c115fb81 (5.11), a zone's before
        yield "SecPageTables", state("NR_SECONDARY_PAGETABLE")  # ebc97a52b5d6 (6.1)
        yield "NFS_Unstable", 0  # always, since 8d92890bd6b8 (5.8)
        yield "Bounce", state("NR_BOUNCE") or 0  # the newest kernels count none
        yield "WritebackTmp", state("NR_WRITEBACK_TEMP") or 0
        yield "CommitLimit", self._commit_limit(total)
        yield "Committed_AS", percpu_counter(kernel.variable("percpu_counter", "vm_committed_as"))
        # C: (VMALLOC_END - VMALLOC_START) >> 10, and VMALLOC_END is the last byte.
        yield "VmallocTotal", vmalloc_end(kernel) - 1 - kernel.vmalloc_base >> 10
        yield "VmallocUsed", self._vmalloc_used()
        yield "VmallocChunk", 0
        units = kernel.space.u32(kernel.symbol("pcpu_nr_units"))
        yield "Percpu", kernel.word("pcpu_nr_populated") * units
        yield "HardwareCorrupted", self._word("num_poisoned_pages")
        yield from self._huge()
        yield "CmaTotal", self._word("totalcma_pages") if "cma_areas" in kernel.symbols else None
        yield "CmaFree", state("NR_FREE_CMA_PAGES") if "cma_areas" in kernel.symbols else None
        yield "Unaccepted", state("NR_UNACCEPTED")
        yield "Balloon", state("NR_BALLOON_PAGES")
        yield "GPUActive", state("NR_GPU_ACTIVE")
        yield "GPUReclaim", state("NR_GPU_RECLAIM")

    def _huge(self) -> Iterator[tuple[str, int | None]]:
        if not has_huge_pages(self.kernel):
            return
        each = 1 if "NR_SWAPCACHE" in self.kernel.types.enum("node_stat_item") else huge_pages(self.kernel)
        for name, item in (
            ("AnonHugePages", "NR_ANON_THPS"),
            ("ShmemHugePages", "NR_SHMEM_THPS"),
            ("ShmemPmdMapped", "NR_SHMEM_PMDMAPPED"),
            ("FileHugePages", "NR_FILE_THPS"),
            ("FilePmdMapped", "NR_FILE_PMDMAPPED"),
        ):
            count = self.counters.state(item)
            yield name, None if count is None else count * each

    def _available(self, lru: dict[str, int], reclaimable: int) -> int:
        """si_mem_available(): free memory, and the caches that can go without much harm."""
        low = sum(zone.watermarks.low for zone in zones.zones(self.kernel))
        state = self.counters.state
        found = (state("NR_FREE_PAGES") or 0) - self.kernel.word("totalreserve_pages")
        cache = lru["ACTIVE_FILE"] + lru["INACTIVE_FILE"]
        found += cache - min(cache // 2, low)
        reclaimable += state("NR_KERNEL_MISC_RECLAIMABLE") or 0
        return max(0, found + reclaimable - min(reclaimable // 2, low))

    def _swap(self) -> tuple[int, int]:
        """si_swapinfo(): total and free; an area on its way out counts as used."""
        kernel = self.kernel
        if "swap_info" not in kernel.symbols:
            return 0, 0
        total, free = kernel.word("total_swap_pages"), _signed(kernel.word("nr_swap_pages"))
        for area in swap.areas(kernel):
            if not area.flags & swap.WRITEOK:
                total, free = total + area.used, free + area.used
        return total, free

    def _swap_cache(self) -> int:
        found = self.counters.state("NR_SWAPCACHE")  # b6038942480e (5.12)
        return swap.cached_pages(self.kernel) if found is None else found

    def _zswap(self) -> int | None:
        # Older kernels keep the sum; newer ones ask the allocator of each pool.
        size = self._word("zswap_pool_total_size")
        return None if size is None else size // self.kernel.space.format.page_size

    def _commit_limit(self, total: int) -> int:
        """vm_commit_limit(): what may be promised where overcommit is off."""
        kernel = self.kernel
        kbytes = kernel.word("sysctl_overcommit_kbytes")
        if kbytes:
            allowed = kbytes // self.kib
        else:
            huge = sum(state.int("nr_huge_pages") << _order(state) for state in hstates(kernel))
            ratio = kernel.space.u32(kernel.symbol("sysctl_overcommit_ratio"))
            allowed = (total - huge) * ratio // 100
        return allowed + (self._word("total_swap_pages") or 0)

    def _vmalloc_used(self) -> int | None:
        # The newest kernels count it by node, others in one place.
        found = self.counters.state("NR_VMALLOC")
        return self._word("nr_vmalloc_pages") if found is None else found

    def _hugetlb(self) -> Iterator[tuple[str, int]]:
        kernel = self.kernel
        states = hstates(kernel)
        if not states:
            return
        index = kernel.space.u32(kernel.symbol("default_hstate_idx"))
        if index >= len(states):
            raise CorruptGuest(f"the default size of huge pages is number {index} of {len(states)}")
        default = states[index]
        for name, member in (("Total", "nr"), ("Free", "free"), ("Rsvd", "resv"), ("Surp", "surplus")):
            yield f"HugePages_{name}", default.int(f"{member}_huge_pages")
        yield "Hugepagesize", self.kib << _order(default)
        total = sum(state.int("nr_huge_pages") << _order(state) for state in states)
        yield "Hugetlb", total * self.kib

    def _direct_map(self) -> Iterator[tuple[str, int]]:
        kernel = self.kernel
        if "direct_pages_count" not in kernel.symbols:
            return
        levels = kernel.types.enum("pg_level")
        at = kernel.symbol("direct_pages_count")
        for name, level, kib in _DIRECT_MAP:
            if level == "PG_LEVEL_1G" and not kernel.space.u32(kernel.symbol("direct_gbpages")):
                continue
            yield name, kernel.space.u64(VirtAddr(at + 8 * levels[level])) * kib

    def _word(self, symbol: str) -> int | None:
        return self.kernel.word(symbol) if symbol in self.kernel.symbols else None

    def _word32(self, symbol: str) -> int | None:
        """An atomic_t; the low half of what 6e1fa555ec77 (6.13) made an atomic_long_t of."""
        return self.kernel.space.u32(self.kernel.symbol(symbol)) if symbol in self.kernel.symbols else None


def _order(state: StructView) -> int:
    order = state.int("order")
    if order > _MAX_ORDER:
        raise CorruptGuest(f"huge pages of 2**{order} pages")
    return order


def _block_device_pages(kernel: Kernel) -> int:
    """nr_blockdev_pages(): the page cache of block devices themselves."""
    superblock = kernel.view("super_block", VirtAddr(kernel.word("blockdev_superblock")))
    inodes = lists.entries(kernel, superblock.addr("s_inodes"), "inode", "i_sb_list", _MAX_INODES)
    mappings = (inode.deref("i_mapping") for inode in inodes)
    return sum(mapping.int("nrpages") for mapping in mappings if mapping)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
