"""Slab caches against /proc/slabinfo and /sys/kernel/slab; objects against what the kernel counts itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel.memmap import MemMap
from inspector.kernel.slab_caches import NO_CACHE
from inspector.kernel.slab_objects import ObjectState, allocated_count, object_at, objects
from inspector.kernel.slabs import SlabCache, slab_pages, slabs
from inspector.units import Pfn

pytestmark = pytest.mark.guest

_TRIES = 8
_SLABINFO, _DENTRIES, _LOAD = "/proc/slabinfo", "/proc/sys/fs/dentry-state", "/proc/loadavg"

Line = tuple[int, ...]


def slabinfo(text: str) -> dict[str, Line]:
    """The numbers of /proc/slabinfo, version 2.1, by cache."""
    found = {}
    for line in text.splitlines()[2:]:
        words = line.split()
        name, numbers = words[0], [int(word) for word in words[1:6]]
        # active_objs num_objs objsize objperslab pagesperslab : ... : slabdata active_slabs num_slabs
        found[name] = (
            *numbers,
            int(words[words.index("slabdata") + 1]),
            int(words[words.index("slabdata") + 2]),
        )
    return found


def as_slabinfo(cache: SlabCache) -> Line:
    """What that file should print of a cache."""
    pages = 1 << cache.order
    return (
        cache.active, cache.objects, cache.size, cache.objects_per_slab, pages, cache.slabs, cache.slabs
    )  # fmt: skip


def lies_between(ours: Line, first: Line, second: Line) -> bool:
    """Whether each number is one that it may have passed on its way from the first reading to the second."""
    return all(min(a, b) <= mine <= max(a, b) for mine, a, b in zip(ours, first, second, strict=True))


def agrees_with_slabinfo(
    guest: Guest, witness: Any, reader: frozenset[str] = frozenset(), restless: frozenset[str] = frozenset()
) -> None:
    """Each cache's line is ours where it stood still, and between the two where it moved; not the restless.

    What reading the file takes (`reader`) is held while they read, and not while we do.
    """
    settled = set(restless)
    for _ in range(_TRIES):
        witnessed, ours = witness(guest, [_SLABINFO], lambda: slabs(guest.kernel))
        first, second = (slabinfo(reading.decode()) for reading in witnessed.readings[_SLABINFO])
        assert [cache.name for cache in ours] == list(first)
        agreed = {name: line for name, line in first.items() if second[name] == line}
        found = {cache.name: as_slabinfo(cache) for cache in ours}
        wrong = {name: (line, found[name]) for name, line in agreed.items() if found[name] != line}
        wrong = {name: both for name, both in wrong.items() if name not in reader}
        if not wrong:
            between = {name for name in first if lies_between(found[name], first[name], second[name])}
            settled |= between | reader
        if settled >= set(first):
            assert len(first) > 100
            return
    pytest.fail(f"{_SLABINFO} said, and we found: {wrong}; never in between: {set(first) - settled}")


def test_slabinfo(any_guest: Guest, witness: Any) -> None:
    agrees_with_slabinfo(any_guest, witness)


# The file of /sys/kernel/slab/NAME, and what it should say of a cache.
ATTRIBUTES: dict[str, Callable[[SlabCache], object]] = {
    "object_size": lambda cache: cache.object_size,
    "slab_size": lambda cache: cache.size,
    "align": lambda cache: cache.align,
    "objs_per_slab": lambda cache: cache.objects_per_slab,
    "order": lambda cache: cache.order,
    "aliases": lambda cache: cache.aliases,
    "hwcache_align": lambda cache: int("HWCACHE_ALIGN" in cache.flag_names),
    "reclaim_account": lambda cache: int("RECLAIM_ACCOUNT" in cache.flag_names),
    "cache_dma": lambda cache: int("CACHE_DMA" in cache.flag_names),
    "destroy_by_rcu": lambda cache: int("TYPESAFE_BY_RCU" in cache.flag_names),
    "red_zone": lambda cache: int("RED_ZONE" in cache.flag_names),
    "poison": lambda cache: int("POISON" in cache.flag_names),
    "store_user": lambda cache: int("STORE_USER" in cache.flag_names),
}


def agrees_with_sysfs(guest: Guest) -> None:
    """Every attribute of every cache that sysfs shows."""
    files = " ".join(f"*/{name}" for name in [*ATTRIBUTES, "ctor"])
    text = guest.run(f"cd /sys/kernel/slab && grep '' {files} 2>/dev/null", timeout=60).stdout
    said: dict[tuple[str, str], str] = {}
    for line in text.splitlines():
        if not line.startswith(":"):  # a merged cache's own folder; its names are links to it
            path, _, value = line.partition(":")
            name, _, attribute = path.rpartition("/")
            said[name, attribute] = value
    caches = {cache.name: cache for cache in slabs(guest.kernel)}
    ours = {
        (name, attribute): str(say(cache))
        for name, cache in caches.items()
        for attribute, say in ATTRIBUTES.items()
    }
    both = said.keys() & ours.keys()
    assert len({name for name, _ in both}) > 100
    assert {key: (said[key], ours[key]) for key in both if said[key] != ours[key]} == {}
    constructors = {name: value for (name, attribute), value in said.items() if attribute == "ctor"}
    assert len(constructors) > 5
    for name, value in constructors.items():
        if name in caches:
            assert (caches[name].ctor or "") == value.partition("+")[0]


def test_sysfs(any_guest: Guest) -> None:
    agrees_with_sysfs(any_guest)


def test_every_slab_is_found(any_guest: Guest) -> None:
    """mem_map has as many slabs and objects of each cache as the kernel counts in its nodes."""
    with any_guest.paused():
        caches = slabs(any_guest.kernel)
        rows = slab_pages(any_guest.kernel, MemMap(any_guest.kernel))
    rows = rows[rows["cache"] != NO_CACHE]
    found = np.bincount(rows["cache"], minlength=len(caches))
    assert (np.diff(rows["pfn"].astype(np.int64)) >= 1 << rows["order"][:-1].astype(np.int64)).all()
    # A CPU that stands in the allocator may have made a slab, and not counted it yet.
    off = found - [cache.slabs for cache in caches]
    assert np.abs(off).sum() <= any_guest.machine.cpus
    counted = np.bincount(rows["cache"], rows["objects"], len(caches))
    assert (counted == [cache.objects for cache in caches])[off == 0].all()


def test_objects_by_list_and_by_count(any_guest: Guest) -> None:
    """Following every freelist finds as many free objects as the slabs' own counters leave."""
    with any_guest.paused():
        counts = allocated_count(any_guest.kernel)
        rows = objects(any_guest.kernel)
    followed = np.bincount(rows["cache"], rows["allocated"], len(counts)).astype(np.int64)
    off = np.flatnonzero(counts != followed)
    assert off.size <= any_guest.machine.cpus
    assert {ObjectState.ALLOCATED, ObjectState.FREE} <= set(np.unique(rows["state"]).tolist())
    assert (np.diff(rows["address"].astype(object)) > 0).all()


def test_dentries(any_guest: Guest, witness: Any) -> None:
    """The kernel counts its dentries (C: nr_dentry), wherever the free ones wait."""
    guest = any_guest

    def ours() -> int:
        names = [cache.name for cache in slabs(guest.kernel)]
        return int(allocated_count(guest.kernel)[names.index("dentry")])

    off: list[int] = []
    for _ in range(_TRIES):
        guest.run("ls -R /sys/kernel/slab /proc/sys >/dev/null; sleep 1")
        witnessed, count = witness(guest, [_DENTRIES], ours)
        if witnessed.same(_DENTRIES):
            off.append(count - int(witnessed.text(_DENTRIES).split()[0]))
        # A dentry is taken off the count when it dies, and freed after a grace period.
        if off and off[-1] == 0:
            return
    assert off == []


def test_tasks_and_vmas_are_allocated(any_guest: Guest) -> None:
    """What the process list and the VMA trees reach is allocated, in the cache of its kind, at its start."""
    guest = any_guest
    with guest.paused():
        tasks = guest.tasks(threads=True)
        vmas = [(task.mm, vma) for task in tasks if task.pid == task.tgid for vma in task.vmas()]
        rows = objects(guest.kernel)
        names = [cache.name for cache in slabs(guest.kernel)]
        init, one = (
            object_at(guest.kernel, guest.symbol("init_task")),
            object_at(guest.kernel, tasks[0].address),
        )
    held = {
        name: set(rows[(rows["cache"] == i) & rows["allocated"]]["address"].tolist())
        for i, name in enumerate(names)
    }
    assert {task.address for task in tasks} <= held["task_struct"]
    areas = {vma.address for _, vma in vmas if vma.name != "[vsyscall]"}
    assert len(areas) > 10
    assert areas <= held["vm_area_struct"]
    assert init is None
    assert one is not None
    assert (one.cache, one.address, one.offset) == ("task_struct", tasks[0].address, 0)
    assert one.allocated


def test_few_tasks_are_allocated_beside(any_guest: Guest) -> None:
    """The idle tasks, all but the boot CPU's. Ended tasks go after a grace period, seconds on a busy host."""
    for _ in range(60):
        with any_guest.paused():
            tasks = any_guest.tasks(threads=True)
            (cache,) = (cache for cache in slabs(any_guest.kernel) if cache.name == "task_struct")
            rows = objects(any_guest.kernel, cache)
        others = set(rows[rows["allocated"]]["address"].tolist()) - {task.address for task in tasks}
        if len(others) <= 8:
            return
        time.sleep(1)
    assert len(others) <= 8


def test_object_at_agrees_with_all(guest: Guest) -> None:
    with guest.paused():
        rows = objects(guest.kernel)
        caches = slabs(guest.kernel)
        for row in rows[:: len(rows) // 40]:
            cache = caches[row["cache"]]
            inside = int(row["address"]) + cache.object_size - 1
            found = object_at(guest.kernel, inside)
            assert found is not None
            assert (found.cache, found.address, found.state) == (cache.name, row["address"], row["state"])
            assert found.offset == cache.object_size - 1
        one = next(cache for cache in caches if cache.name == "dentry")
        mine = rows[rows["cache"] == caches.index(one)]
        assert objects(guest.kernel, one).tolist() == mine.tolist()


@pytest.mark.parametrize("kernel", ["debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"])
def test_slab_debugging(boot_guest: Callable[..., Guest], witness: Any, kernel: str) -> None:
    """Red zones before each object, and free pointers behind it; and no CPU keeps objects for itself."""
    with boot_guest(kernel, "512M", 2, cmdline="slub_debug=FZPU") as guest:
        # What an open /proc file takes: nothing hides it here, and it is closed while we read.
        reader = frozenset({"seq_file", "kmalloc-4k", "kmalloc-cg-4k", "filp", "lsm_file_cache"})
        # Maple nodes are freed after a grace period, and no CPU keeps them in its own slab meanwhile.
        agrees_with_slabinfo(guest, witness, reader, restless=frozenset({"maple_node"}))
        agrees_with_sysfs(guest)
        test_objects_by_list_and_by_count(guest)
        test_tasks_and_vmas_are_allocated(guest)
        test_few_tasks_are_allocated_beside(guest)


def test_kfence(boot_guest: Callable[..., Guest], witness: Any) -> None:
    """KFENCE marks its pages as slabs; no cache has them."""
    with boot_guest("debian-6.12", "512M", 2, cmdline="kfence.sample_interval=20") as guest:
        guest.run("ls -lR /proc/sys >/dev/null")
        agrees_with_slabinfo(guest, witness)
        test_every_slab_is_found(guest)
        with guest.paused():
            pool = guest.kernel.space.pointer(guest.symbol("__kfence_pool")) - guest.kernel.page_offset
            rows = slab_pages(guest.kernel, MemMap(guest.kernel))
        first = Pfn(pool // guest.kernel.space.format.page_size)
        inside = rows[rows["pfn"] - first < 512]  # 255 objects, a guard page beside each
        assert len(inside) == 255
        assert (inside["cache"] == NO_CACHE).all()
