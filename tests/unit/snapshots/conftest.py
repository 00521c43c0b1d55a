"""Two moments of a guest that was made by hand, small enough to know by heart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from inspector.kernel.modules import Module, ModulePart
from inspector.kernel.owners import FRAME, Owner
from inspector.kernel.rmap import ROW
from inspector.kernel.vmalloc import BUSY, UNPURGED, VmallocArea
from inspector.kernel.zones import PerCpuPages, Watermarks, Zone
from inspector.snapshots import CacheState, Snapshot, TaskState
from inspector.units import Pfn, VirtAddr

PAGE = 4096
KERNEL = 0xFFFF_8880_0000_0000
FORK = "kernel_clone+0x1/0x2"
STACK = VirtAddr(0xFFFF_C900_0000_0000)


def task(pid: int, comm: str, **changes: Any) -> TaskState:
    """A process with 3 anonymous pages and 2 of files."""
    made = TaskState(
        pid=pid, tgid=pid, ppid=1, comm=comm, name=comm, state="S", uid=0, threads=1, kernel_thread=False,
        address=VirtAddr(KERNEL + pid * 0x1000), stack=STACK, mm=VirtAddr(KERNEL + pid * 0x1000 + 0x800),
        rss_anon=3, rss_file=2, rss_shmem=0, swap_entries=0, total_vm=50, pgtables_bytes=4 * PAGE,
    )  # fmt: skip
    return replace(made, **changes)


def cache(name: str, allocated: int, slabs: int, **changes: Any) -> CacheState:
    """A cache of objects of 256 bytes, 16 a slab."""
    made = CacheState(
        name=name, address=VirtAddr(KERNEL + 0x9000), size=256, order=0, slabs=slabs, objects=slabs * 16,
        active=allocated, allocated=allocated, reclaimable=False,
    )  # fmt: skip
    return replace(made, **changes)


def area(start: int, caller: str, **changes: Any) -> VmallocArea:
    """An area of four pages and a guard page."""
    made = VmallocArea(
        start=VirtAddr(start), end=VirtAddr(start + 5 * PAGE), size=5 * PAGE, kind=BUSY, caller=caller,
        pages=4, phys=None, flags=("vmalloc",), pages_in_vmalloc=False, nodes={0: 4},
    )  # fmt: skip
    return replace(made, **changes)


def module(name: str) -> Module:
    """A loaded module of one part."""
    part = ModulePart("text", VirtAddr(0xFFFF_FFFF_C000_0000), 2 * PAGE, 0xFFFF_FFFF_C000_2000)
    return Module(name, "Live", 2 * PAGE, 0, (), False, "OE", (part,), VirtAddr(KERNEL + 0xB000))


def zone(free: int) -> Zone:
    """All frames in one zone."""
    return Zone(
        node=0, index=0, name="Normal", start_pfn=Pfn(0), spanned=64, present=64, managed=60, free=free,
        watermarks=Watermarks(1, 2, 3, 0), lowmem_reserve=(0,), free_by_order=(free,),
        per_cpu=(PerCpuPages(0, 2, 6, 1),), address=VirtAddr(KERNEL + 0xC000),
    )  # fmt: skip


def frames(*runs: tuple[int, int, Owner, int]) -> Any:
    """64 free frames, but for runs of (first, end, owner, detail)."""
    rows = np.zeros(64, FRAME)
    rows["pfn"] = np.arange(64)
    rows["owner"], rows["migratetype"] = Owner.FREE, 1
    for first, end, owner, detail in runs:
        rows["owner"][first:end], rows["detail"][first:end] = owner, detail
        rows["refcount"][first:end], rows["migratetype"][first:end] = 1, 255
    return rows


def mappings(*entries: tuple[int, int, int]) -> Any:
    """(owner, va, pfn) of pages that can be read and written."""
    rows = np.zeros(len(entries), ROW)
    for row, (owner, va, pfn) in zip(rows, entries, strict=True):
        row["owner"], row["va"], row["pa"], row["size"] = owner, va, pfn * PAGE, PAGE
        row["entry"], row["rights"] = pfn * PAGE | 0x67, 3
    return rows


@pytest.fixture
def before() -> Snapshot:
    """Init and sh, which has three pages; one slab; one file's page."""
    return Snapshot(
        taken=100.0,
        release="6.1.0-test",
        build_id="ab" * 20,
        kaslr_offset=0x3000000,
        page_size=PAGE,
        labels=("", "sh (7)", "filp", "/bin/sh", FORK),
        migratetypes=("Unmovable", "Movable"),
        tasks=(task(1, "init"), task(7, "sh"), task(8, "idler")),
        caches=(cache("filp", 10, 1), cache("dentry", 5, 1, reclaimable=True), cache("quiet", 1, 1)),
        areas=(area(STACK, FORK), area(0xFFFF_C900_0001_0000, "", kind=UNPURGED)),
        modules=(module("virtio"),),
        zones=(zone(50),),
        frames=frames(
            (0, 4, Owner.RESERVED, 0),
            (10, 13, Owner.ANON, 1),
            (20, 21, Owner.SLAB, 2),
            (30, 31, Owner.PAGE_CACHE, 3),
            (40, 42, Owner.UNMARKED, 0),
            (50, 54, Owner.PER_CPU_FREE, 0),
        ),
        mappings=mappings((0, 0x400000, 30), (1, 0x400000, 30), (1, 0x500000, 10), (1, 0x501000, 11)),
    )


@pytest.fixture
def after(before: Snapshot) -> Snapshot:
    """Two seconds on: sh became top and moved a page; worker came; idler went; a driver leaks 5 frames."""
    return replace(
        before,
        taken=102.0,
        labels=("", "worker (9)", "top (7)", "filp", "/bin/sh", "leak_all+0x5/0x9", FORK),
        tasks=(task(1, "init"), task(7, "top"), task(9, "worker", rss_anon=6)),
        caches=(
            cache("filp", 13, 2),
            cache("dentry", 25, 2, reclaimable=True),
            cache("quiet", 1, 1),
            cache("lsm_inode_cache", 3, 1),
        ),
        areas=(area(STACK, FORK), area(0xFFFF_C900_0002_0000, "leak_all+0x5/0x9")),
        modules=(),
        zones=(zone(38),),
        frames=frames(
            (0, 4, Owner.RESERVED, 0),
            (10, 12, Owner.ANON, 2),
            (12, 13, Owner.FREE, 0),
            (13, 14, Owner.ANON, 2),  # sh's page 12 was moved to 13
            (14, 20, Owner.ANON, 1),
            (20, 22, Owner.SLAB, 3),
            (30, 32, Owner.PAGE_CACHE, 4),
            (40, 41, Owner.UNMARKED, 0),
            (43, 45, Owner.UNMARKED, 0),
            (50, 54, Owner.VMALLOC, 5),
            (60, 62, Owner.VMALLOC, 6),
        ),
        mappings=mappings(
            (0, 0x400000, 30),
            (1, 0x400000, 30),
            (1, 0x500000, 10),
            (1, 0x501000, 13),
            (1, 0x502000, 11),
            (2, 0x400000, 30),
        ),
    )
