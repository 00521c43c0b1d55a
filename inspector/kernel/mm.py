"""An address space: its page tables' root, limits and counters (struct mm_struct, linux/mm_types.h)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inspector.symbols import Kernel, StructView
from inspector.units import PhysAddr, VirtAddr

_COUNTERS = ("MM_FILEPAGES", "MM_ANONPAGES", "MM_SWAPENTS", "MM_SHMEMPAGES")


@dataclass(frozen=True, slots=True)
class Mm:
    """A struct mm_struct. `pgd` is the root of its page tables; sizes and counters are in pages.

    The counters are exact: what CPUs or threads have counted and not yet handed in is added, other than in
    /proc/PID/status.
    """

    address: VirtAddr
    pgd: PhysAddr
    users: int
    vma_count: int
    total_vm: int
    pgtables_bytes: int
    rss_file: int
    rss_anon: int
    rss_shmem: int
    swap_entries: int
    start_brk: VirtAddr
    brk: VirtAddr
    start_stack: VirtAddr
    view: StructView

    @property
    def rss(self) -> int:
        """Resident pages, as the kernel counts them (C: get_mm_rss)."""
        return self.rss_file + self.rss_anon + self.rss_shmem

    @classmethod
    def read(cls, view: StructView, threads: Iterable[StructView]) -> Mm:
        """The mm at a view of its struct mm_struct; `threads` are the struct task_structs that run in it."""
        kernel = view.kernel
        threads = list(threads)
        file, anon, swap, shmem = (_counter(view, threads, kernel.types.constant(name)) for name in _COUNTERS)
        return cls(
            address=view.address,
            pgd=kernel.virt_to_phys(view.ptr("pgd")),
            users=view.int("mm_users.counter"),
            vma_count=view.int("map_count"),
            total_vm=view.int("total_vm"),
            pgtables_bytes=view.int("pgtables_bytes.counter"),
            rss_file=file,
            rss_anon=anon,
            rss_shmem=shmem,
            swap_entries=swap,
            start_brk=VirtAddr(view.int("start_brk")),
            brk=VirtAddr(view.int("brk")),
            start_stack=VirtAddr(view.int("start_stack")),
            view=view,
        )


def _counter(view: StructView, threads: list[StructView], index: int) -> int:
    """One counter of rss_stat, in pages; never below zero, as the kernel reports it."""
    if view.has(f"rss_stat[{index}]"):  # f1a7941243c1 (6.2): a struct percpu_counter each
        counter = view.at(f"rss_stat[{index}]")
        total = counter.int("count") + sum(
            _s32(counter.kernel, counter.kernel.per_cpu_address(counter.ptr("counters"), cpu))
            for cpu in counter.kernel.online_cpus()
        )
    else:  # a sum in the mm, and up to 64 events in each thread
        total = view.int(f"rss_stat.count[{index}].counter")
        total += sum(
            thread.int(f"rss_stat.count[{index}]") for thread in threads if thread.has("rss_stat.count")
        )
    return max(0, total)


def _s32(kernel: Kernel, address: VirtAddr) -> int:
    return int.from_bytes(kernel.space.read(address, 4), "little", signed=True)
