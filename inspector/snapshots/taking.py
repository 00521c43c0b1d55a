"""Taking a snapshot: everything read at one stop, as the guest's own questions read it."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from inspector.arch import MAPPING
from inspector.kernel import buddy, slab_objects
from inspector.kernel.owners import Owner, Owners
from inspector.kernel.pageflags import flag_bits
from inspector.kernel.rmap import ROW
from inspector.kernel.tasks import Task
from inspector.linux import Linux
from inspector.snapshots.forgotten import forgotten
from inspector.snapshots.leaks import stack_callers
from inspector.snapshots.snapshot import CacheState, Snapshot, TaskState
from inspector.symbols import Kernel
from inspector.units import VirtAddr, printable


def take(linux: Linux) -> Snapshot:
    """All of memory at one moment. Raises CorruptGuest."""
    kernel = linux.kernel
    with linux.still():
        taken = time.time()
        owners = linux.owners()
        tasks = linux.tasks()
        areas = tuple(linux.vmalloc_areas())
        return Snapshot(
            taken=taken,
            release=printable(kernel.release),
            build_id=kernel.build_id,
            kaslr_offset=kernel.kaslr_offset,
            page_size=kernel.space.format.page_size,
            labels=owners.labels,
            migratetypes=tuple(printable(name) for name in buddy.migratetypes(kernel)),
            tasks=tuple(map(_task, tasks)),
            caches=_caches(linux),
            areas=areas,
            modules=tuple(linux.modules()),
            zones=tuple(zone for zone in linux.zones() if zone.populated),
            frames=_frames(kernel, owners),
            mappings=_mappings(tasks),
            forgotten=forgotten(kernel, owners, stack_callers(areas, [task.stack for task in tasks])),
        )


def _frames(kernel: Kernel, owners: Owners) -> NDArray[np.void]:
    """Every frame's row, of a copy where one says more.

    A page of a task that is gone may still be in a CPU's batch of pages for the LRU lists (mm/swap.c), which
    lets go of it once the batch is full: it is as free as one on the CPU's list of free pages.
    """
    rows = owners.rows
    anonymous = np.flatnonzero(rows["owner"] == Owner.ANON)
    found = rows[anonymous]
    nobodys = (found["detail"] == 0) & (found["mapcount"] == 0) & (found["refcount"] == 1)
    listed = found["flags"] >> np.uint64(flag_bits(kernel)["lru"]) & np.uint64(1) != 0
    waiting = anonymous[nobodys & ~listed]
    if waiting.size:
        rows = rows.copy()
        rows["owner"][waiting] = Owner.PER_CPU_FREE
    return rows


def _task(task: Task) -> TaskState:
    mm = task.mm
    return TaskState(
        pid=task.pid,
        tgid=task.tgid,
        ppid=task.ppid,
        comm=task.comm,
        name=task.name,
        state=task.state,
        uid=task.uid,
        threads=task.threads,
        kernel_thread=task.kernel_thread,
        address=task.address,
        stack=task.stack,
        mm=mm.address if mm else VirtAddr(0),
        rss_anon=mm.rss_anon if mm else 0,
        rss_file=mm.rss_file if mm else 0,
        rss_shmem=mm.rss_shmem if mm else 0,
        swap_entries=mm.swap_entries if mm else 0,
        total_vm=mm.total_vm if mm else 0,
        pgtables_bytes=mm.pgtables_bytes if mm else 0,
    )


def _caches(linux: Linux) -> tuple[CacheState, ...]:
    allocated = slab_objects.allocated_count(linux.kernel).tolist()
    return tuple(
        CacheState(
            name=cache.name,
            address=cache.address,
            size=cache.size,
            order=cache.order,
            slabs=cache.slabs,
            objects=cache.objects,
            active=cache.active,
            allocated=count,
            reclaimable="RECLAIM_ACCOUNT" in cache.flag_names,
        )
        for cache, count in zip(linux.slabs(), allocated, strict=True)
    )


def _mappings(tasks: list[Task]) -> NDArray[np.void]:
    """Every address space once, for the first task that has it."""
    spaces = {task.mm.address: index for index, task in reversed(list(enumerate(tasks))) if task.mm}
    found = [(index, tasks[index].mappings()) for index in sorted(spaces.values())]
    rows = np.empty(sum(len(leaves) for _, leaves in found), ROW)
    at = 0
    for index, leaves in found:
        part = rows[at : at + len(leaves)]
        for name in MAPPING.names or ():
            part[name] = leaves[name]
        part["owner"] = index
        at += len(leaves)
    return rows
