"""Nodes and zones: sizes, watermarks and counters (include/linux/mmzone.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inspector.errors import CorruptGuest
from inspector.symbols import Kernel, StructView
from inspector.units import Pfn, VirtAddr

N_ONLINE = 1  # enum node_states
_MAX_NODES = 1 << 10  # CONFIG_NODES_SHIFT is 10 at most


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Pages below which the allocator acts, the boost added (C: wmark_pages).

    kswapd wakes below `low` and sleeps above `high`; below `min` only a few may still allocate.
    """

    min: int
    low: int
    high: int
    boost: int


@dataclass(frozen=True, slots=True)
class PerCpuPages:
    """One CPU's lists of free pages in a zone (C: struct per_cpu_pages): all counts in pages."""

    cpu: int
    count: int
    high: int
    batch: int


@dataclass(frozen=True, slots=True)
class Zone:
    """A struct zone. All counts are in pages; `free_by_order[n]` counts free blocks of 2**n pages."""

    node: int
    index: int
    name: str
    start_pfn: Pfn
    spanned: int
    present: int
    managed: int
    free: int
    watermarks: Watermarks
    lowmem_reserve: tuple[int, ...]
    free_by_order: tuple[int, ...]
    per_cpu: tuple[PerCpuPages, ...]
    address: VirtAddr

    @property
    def populated(self) -> bool:
        """Whether the zone has any memory (C: populated_zone)."""
        return self.present > 0

    @property
    def end_pfn(self) -> Pfn:
        """One past the zone's last PFN."""
        return Pfn(self.start_pfn + self.spanned)

    @property
    def per_cpu_free(self) -> int:
        """Pages that wait on the per-CPU lists."""
        return sum(lists.count for lists in self.per_cpu)


def nodes(kernel: Kernel) -> list[StructView]:
    """Every online node's struct pglist_data."""
    if not kernel.symbols.has("node_data"):  # a kernel without NUMA
        return [kernel.variable("pglist_data", "contig_page_data")]
    mask_size = kernel.types.sizeof("nodemask_t")
    mask = kernel.space.read(VirtAddr(kernel.symbol("node_states") + N_ONLINE * mask_size), mask_size)
    online = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
    table = kernel.symbol("node_data")
    found = []
    for node in online:
        address = kernel.space.u64(VirtAddr(table + int(node) * kernel.pointer_size))
        if address:
            found.append(kernel.view("pglist_data", VirtAddr(address)))
    return found


def zones(kernel: Kernel) -> list[Zone]:
    """Every zone of every online node, those without memory too, in the order of /proc/zoneinfo.

    Raises CorruptGuest.
    """
    return [
        _zone(node_id(node), index, node.at(f"node_zones[{index}]"))
        for node in nodes(kernel)
        for index in range(kernel.types.enum("zone_type")["__MAX_NR_ZONES"])
    ]


def node_id(node: StructView) -> int:
    """A struct pglist_data's number. Raises CorruptGuest where no node can have it."""
    number = node.int("node_id")
    if not 0 <= number < _MAX_NODES:
        raise CorruptGuest(f"the node at {node.address:#x} has number {number}")
    return number


def _zone(node: int, index: int, zone: StructView) -> Zone:
    kernel = zone.kernel
    free = kernel.types.enum("zone_stat_item")["NR_FREE_PAGES"]
    present = zone.int("present_pages")
    return Zone(
        node=node,
        index=index,
        name=kernel.space.cstring(zone.ptr("name"), 64) if zone.ptr("name") else f"zone {index}",
        start_pfn=Pfn(zone.ptr("zone_start_pfn")),
        spanned=zone.int("spanned_pages"),
        present=present,
        managed=zone.int("managed_pages.counter"),
        free=max(0, zone.int(f"vm_stat[{free}].counter")),
        watermarks=_watermarks(zone),
        lowmem_reserve=_longs(zone, "lowmem_reserve"),
        free_by_order=tuple(
            zone.int(f"free_area[{order}].nr_free") for order in range(_count(zone, "free_area"))
        ),
        per_cpu=_per_cpu(zone) if present else (),
        address=zone.address,
    )


def _watermarks(zone: StructView) -> Watermarks:
    level = zone.kernel.types.enum("zone_watermarks")
    boost = zone.int("watermark_boost")

    def pages(name: str) -> int:
        return zone.int(f"_watermark[{level[name]}]") + boost

    return Watermarks(pages("WMARK_MIN"), pages("WMARK_LOW"), pages("WMARK_HIGH"), boost)


def _per_cpu(zone: StructView) -> tuple[PerCpuPages, ...]:
    return tuple(
        PerCpuPages(cpu, lists.int("count"), lists.int("high"), lists.int("batch"))
        for cpu, lists in per_cpu_lists(zone)
    )


def per_cpu_lists(zone: StructView) -> list[tuple[int, StructView]]:
    """Each online CPU's struct per_cpu_pages of the zone."""
    kernel = zone.kernel
    if zone.has("per_cpu_pageset"):  # 28f836b6777b (5.14) took the lists out of struct per_cpu_pageset
        base, type_name, inner = zone.ptr("per_cpu_pageset"), "per_cpu_pages", ""
    else:
        base, type_name, inner = zone.ptr("pageset"), "per_cpu_pageset", "pcp"
    found = []
    for cpu in kernel.online_cpus():
        view = kernel.view(type_name, kernel.per_cpu_address(base, cpu))
        found.append((cpu, view.at(inner) if inner else view))
    return found


def _count(view: StructView, path: str) -> int:
    field = view.kernel.field(view.type, path)
    return field.type.count if field else 0


def _longs(view: StructView, path: str) -> tuple[int, ...]:
    return tuple(view.int(f"{path}[{i}]") for i in range(_count(view, path)))
