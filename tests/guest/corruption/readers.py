"""All that is asked of a kernel, a reader a subject."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from inspector import symbols
from inspector.kernel import (
    buddy,
    cma,
    cpus,
    devices,
    dma,
    dma_buffers,
    frames,
    ksyms,
    memcg,
    meminfo,
    modules,
    owners,
    pages,
    resources,
    slab_objects,
    slabs,
    swap,
    swiotlb,
    tasks,
    vmalloc,
    vmstat,
    zones,
)
from inspector.kernel.memmap import MemMap
from inspector.kernel.rmap import ReverseMap
from inspector.symbols import Kernel
from inspector.symbols.btf import Btf
from inspector.symbols.modules import KernelTypes
from inspector.units import Pfn, VirtAddr
from tests.guest.corruption.recording import Reader, Recording


def _show(*found: Any) -> None:
    for each in found:
        for item in each if isinstance(each, list | tuple) else [each]:
            str(item)
            getattr(item, "flag_names", None)


def _tasks(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    for task in tasks.tasks(kernel, threads=True):
        _show(task, task.vmas())


def _mappings(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    for task in tasks.tasks(kernel):
        task.mappings()
        if task.mm:
            swap.entries(kernel, task.space, 0, tasks.user_end(kernel))
            walk = task.walk(task.mm.start_stack)
            _show(walk, walk.writable, walk.memory_type)


def _smaps(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    for task in tasks.tasks(kernel):
        task.smaps()


def _zones(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    counters = vmstat.Counters(kernel)
    _show(zones.zones(kernel), counters.vmstat())
    for node in zones.nodes(kernel):
        counters.node(node, exact=True)
    for zone in zones.zones(kernel):
        counters.zone(kernel.view("zone", zone.address), exact=True)


def _buddy(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    memmap, names = MemMap(kernel), buddy.migratetypes(kernel)
    blocks = buddy.free_blocks(kernel, memmap)
    buddy.per_cpu_pages(kernel, memmap, np.arange(memmap.end, dtype=np.uint64))
    for zone in zones.zones(kernel):
        buddy.counts(blocks, zone, len(names))


def _frames(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    found = frames.frames(kernel)
    _show(pages.page(kernel, Pfn(rng.randrange(len(found.state)))))


def _pages(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    found = owners.owners(kernel)
    for _each in range(8):
        _show(pages.page(kernel, Pfn(rng.randrange(MemMap(kernel).end)), found))


def _owners(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    found = owners.owners(kernel)
    found.counts()
    for owner in owners.Owner:
        found.by_label(owner)


def _reverse_map(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    index, end = ReverseMap.build(kernel), MemMap(kernel).end
    index.user_mapped(end)
    mapped = np.unique(index.rows["pa"] // np.uint64(4096))  # few are the page that espfix maps 65,536 times
    for pfn in mapped[:: max(len(mapped) // 8, 1)]:
        _show(index.of(Pfn(int(pfn))))


def _slabs(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    _show(slabs.slabs(kernel))


def _objects(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    found = slab_objects.objects(kernel)
    slab_objects.allocated_count(kernel)
    for address in found["address"][:: max(len(found) // 3, 1)]:
        _show(slab_objects.object_at(kernel, VirtAddr(int(address) + 1)))
    if caches := slabs.slabs(kernel):
        slab_objects.objects(kernel, rng.choice(caches))


def _vmalloc(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    table = vmalloc.area_table(kernel)
    _show(vmalloc.areas(kernel, table))
    vmalloc.area_frames(kernel, table)
    vmalloc.area_pages(kernel, table)


def _modules(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    loaded = modules.modules(kernel)
    modules.module_frames(kernel, loaded)
    if loaded and (symbols_of := ksyms.module_symbols(kernel, rng.choice(loaded))):
        _show(ksyms.symbol_at(kernel, rng.choice(symbols_of).address))
    _show(loaded)
    for name in ("no_such_type", "ext4_inode_info"):  # types of modules are looked for in their own BTF
        kernel.types.has(name)


def _small(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    _show(resources.iomem(kernel), swap.areas(kernel), cma.cma_areas(kernel), dma.device_pools(kernel))
    _show(dma.atomic_pools(kernel), swiotlb.swiotlb(kernel), cpus.idle_tasks(kernel))
    _show(devices.pci_devices(kernel), dma_buffers.dma_buffers(kernel))
    for cpu in kernel.online_cpus():
        cpus.current_task(kernel, cpu).text("comm")


def _meminfo(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    meminfo.meminfo(kernel)


def _memcg(_: Recording, kernel: Kernel, rng: random.Random) -> None:
    groups = memcg.memory_groups(kernel)
    _show(groups)
    memcg.charges(kernel, groups=groups)


def _attach(recording: Recording, kernel: Kernel, rng: random.Random) -> None:
    found = symbols.attach(kernel.memory, recording.cpus)
    READERS[rng.choice(("tasks", "zones", "slabs", "vmalloc", "iomem and others"))](recording, found, rng)


def _btf(recording: Recording, kernel: Kernel, rng: random.Random) -> None:
    start, stop = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
    types = Btf(kernel.space.read(start, stop - start))
    found = Kernel(
        kernel.memory,
        kernel.space,
        kernel.symbols,
        KernelTypes(types, kernel.space, kernel.symbols),
        kernel.vmcoreinfo,
    )
    READERS[rng.choice([name for name in READERS if name not in ("attach", "BTF")])](recording, found, rng)


SHARES: dict[str, tuple[int, Reader]] = {
    "tasks": (10, _tasks),
    "mappings": (8, _mappings),
    "smaps": (6, _smaps),
    "zones": (6, _zones),
    "buddy": (6, _buddy),
    "frames": (4, _frames),
    "pages": (4, _pages),
    "owners": (4, _owners),
    "reverse map": (6, _reverse_map),
    "slabs": (8, _slabs),
    "objects": (8, _objects),
    "vmalloc": (8, _vmalloc),
    "modules": (8, _modules),
    "iomem and others": (6, _small),
    "meminfo": (4, _meminfo),
    "memcg": (4, _memcg),
    "attach": (4, _attach),
    "BTF": (6, _btf),
}
"""Name -> its share of the cases, and the reading."""

READERS: dict[str, Reader] = {name: reader for name, (_, reader) in SHARES.items()}
