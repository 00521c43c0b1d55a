"""Counters of zones, nodes and the whole system (mm/vmstat.c; /proc/vmstat, /proc/zoneinfo)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest, NoSuchType
from inspector.kernel import zones
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_MAX_NAME = 64
_MAX_ITEMS = 4096
_SECTORS_PER_KIB = 2
# Node counters that /proc shows in huge pages (C: vmstat_item_print_in_thp).
_IN_HUGE_PAGES = ("NR_ANON_THPS", "NR_FILE_THPS", "NR_SHMEM_THPS", "NR_SHMEM_PMDMAPPED", "NR_FILE_PMDMAPPED")


class Counters:
    """The kernel's counters. Build it anew for each question.

    Zone and node counters are in pages unless their name says otherwise (nr_kernel_stack: KiB). CPUs count by
    themselves and hand in what they counted when it grows past a threshold, or each second: `exact` adds what
    they hold, the rest is as /proc prints it.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        types = kernel.types
        self._zone_items = types.enum("zone_stat_item")
        self._node_items = types.enum("node_stat_item")
        self._events = types.enum("vm_event_item")["NR_VM_EVENT_ITEMS"]

    # One number

    def zone_state(self, item: str) -> int:
        """A zone counter summed over all zones (C: global_zone_page_state); 0 where it is negative."""
        return max(0, int(self._global_zone[self._zone_items[item]]))

    def node_state(self, item: str) -> int:
        """A node counter summed over all nodes (C: global_node_page_state); 0 where it is negative."""
        return max(0, int(self._global_node[self._node_items[item]]))

    def has_node_item(self, item: str) -> bool:
        """Whether this kernel counts it by node: counters moved from zones to nodes."""
        return item in self._node_items

    def state(self, item: str) -> int | None:
        """The counter of that name, of zones or of nodes; None where the kernel has none."""
        if item in self._node_items:
            return self.node_state(item)
        return self.zone_state(item) if item in self._zone_items else None

    # All numbers

    def vmstat(self) -> dict[str, int]:
        """/proc/vmstat, but for the two dirty thresholds, which it computes while it prints."""
        names = self._names
        rows = [max(0, int(value)) for value in self._global_zone]
        rows += self._numa_events(None)
        rows += self._node_values(self._global_node)
        found = dict(zip(names, rows, strict=False))
        last = len(names) - self._events
        found |= self._memmap_counts(names[len(rows) : last])
        found |= dict(zip(names[last:], self._event_sums(), strict=True))
        return found

    def node(self, node: StructView, *, exact: bool = False) -> dict[str, int]:
        """One node's counters by the names of /proc/vmstat, from a struct pglist_data."""
        values = self._atomics(node.addr("vm_stat"), len(self._global_node))
        if exact:
            values = values + self._diffs(
                node.ptr("per_cpu_nodestats"), "per_cpu_nodestat", "vm_node_stat_diff", len(values)
            )
        first = len(self._global_zone) + self._numa_count
        return dict(zip(self._names[first:], self._node_values(values), strict=False))

    def zone(self, zone: StructView, *, exact: bool = False) -> dict[str, int]:
        """One zone's counters by the names of /proc/vmstat, its NUMA events too, from a struct zone."""
        values = self._atomics(zone.addr("vm_stat"), len(self._global_zone))
        if exact and zone.has("per_cpu_zonestats"):  # 28f836b6777b (5.14) took them out of the lists of pages
            values = values + self._diffs(
                zone.ptr("per_cpu_zonestats"), "per_cpu_zonestat", "vm_stat_diff", len(values)
            )
        elif exact:
            values = values + self._diffs(zone.ptr("pageset"), "per_cpu_pageset", "vm_stat_diff", len(values))
        rows = [max(0, int(value)) for value in values] + self._numa_events(zone)
        return dict(zip(self._names, rows, strict=False))

    # How they lie in memory

    @cached_property
    def _global_zone(self) -> NDArray[np.int64]:
        return self._atomics(self.kernel.symbol("vm_zone_stat"), self._zone_items["NR_VM_ZONE_STAT_ITEMS"])

    @cached_property
    def _global_node(self) -> NDArray[np.int64]:
        return self._atomics(self.kernel.symbol("vm_node_stat"), self._node_items["NR_VM_NODE_STAT_ITEMS"])

    @cached_property
    def _numa_count(self) -> int:
        items = self.kernel.types.enum("numa_stat_item") if self.kernel.types.has("numa_stat_item") else {}
        return items.get("NR_VM_NUMA_EVENT_ITEMS", items.get("NR_VM_NUMA_STAT_ITEMS", 0))

    @cached_property
    def _names(self) -> list[str]:
        """vmstat_text[]: the names of zone, NUMA, node and other counters and of events, in that order."""
        kernel = self.kernel
        count = (
            len(self._global_zone)
            + self._numa_count
            + len(self._global_node)
            + self._other_count()
            + self._events
        )
        if count > _MAX_ITEMS:
            raise CorruptGuest(f"the kernel counts {count} things")
        table = kernel.space.array(kernel.symbol("vmstat_text"), count * kernel.pointer_size).view(np.uint64)
        return [kernel.space.cstring(VirtAddr(at), _MAX_NAME) for at in table.tolist()]

    def _other_count(self) -> int:
        # f4cb78af91e3 (6.11) added the memmap's pages to the two thresholds.
        for name, end in (
            ("vm_stat_item", "NR_VM_STAT_ITEMS"),
            ("writeback_stat_item", "NR_VM_WRITEBACK_STAT_ITEMS"),
        ):
            try:
                return self.kernel.types.enum(name)[end]
            except NoSuchType:
                continue
        return 0

    def _memmap_counts(self, names: list[str]) -> dict[str, int]:
        """What of the counters that are neither a zone's nor a node's has a place in memory."""
        symbols = self.kernel.symbols
        return {
            name: self.kernel.word(name) for name in names if name.startswith("nr_memmap") and name in symbols
        }

    def _node_values(self, values: NDArray[np.int64]) -> list[int]:
        rows = [max(0, int(value)) for value in values]
        # 69473e5de873 (5.12) counts them in pages, and /proc divides; before they were counted in huge pages.
        if "NR_SWAPCACHE" in self._node_items and has_huge_pages(self.kernel):  # b6038942480e (5.12)
            for name in _IN_HUGE_PAGES:
                if name in self._node_items:
                    rows[self._node_items[name]] //= huge_pages(self.kernel)
        return rows

    def _numa_events(self, zone: StructView | None) -> list[int]:
        """NUMA events of a zone or of all, with those that CPUs hold: reading /proc makes them hand in."""
        kernel, count = self.kernel, self._numa_count
        if not count:
            return []
        if "vm_numa_event" not in kernel.symbols:  # f19298b9516c (5.14) renamed it from vm_numa_stat
            at = zone.addr("vm_numa_stat") if zone else kernel.symbol("vm_numa_stat")
            values = self._atomics(at, count)
            if zone:
                values = values + self._diffs(
                    zone.ptr("pageset"), "per_cpu_pageset", "vm_numa_stat_diff", len(values)
                )
            return [int(value) for value in values]
        values = self._atomics(zone.addr("vm_numa_event") if zone else kernel.symbol("vm_numa_event"), count)
        views = (
            [zone]
            if zone
            else [kernel.view("zone", each.address) for each in zones.zones(kernel) if each.populated]
        )
        for view in views:
            values = values + self._diffs(
                view.ptr("per_cpu_zonestats"), "per_cpu_zonestat", "vm_numa_event", len(values)
            )
        return [int(value) for value in values]

    def _event_sums(self) -> list[int]:
        kernel = self.kernel
        sums = np.zeros(self._events, np.uint64)
        for cpu in kernel.online_cpus():
            at = kernel.per_cpu("vm_event_states", cpu)
            sums += kernel.space.array(at, self._events * 8).view(np.uint64)
        items = kernel.types.enum("vm_event_item")
        found = [int(value) for value in sums]
        for name in ("PGPGIN", "PGPGOUT"):
            found[items[name]] //= _SECTORS_PER_KIB
        return found

    def _atomics(self, at: VirtAddr, count: int) -> NDArray[np.int64]:
        return self.kernel.space.array(at, count * 8).view(np.int64)

    def _diffs(self, base: VirtAddr, type_name: str, member: str, count: int) -> NDArray[np.int64]:
        """What the online CPUs hold of an array of `count` counters, summed. Raises BadFormat."""
        kernel = self.kernel
        field = kernel.types.field(type_name, member)
        width = field.type.size // max(field.type.count, 1)
        signed = field.type.target is not None and field.type.target.signed
        if width not in (1, 2, 4, 8) or field.type.count != count:
            raise BadFormat(f"the types are corrupt: {type_name}.{member} is {field.type}")
        dtype = np.dtype(f"<{'i' if signed else 'u'}{width}")
        total = np.zeros(field.type.count, np.int64)
        for cpu in kernel.online_cpus():
            at = VirtAddr(kernel.per_cpu_address(base, cpu) + field.offset)
            total += kernel.space.array(at, field.type.size).view(dtype).astype(np.int64)
        return total


def has_huge_pages(kernel: Kernel) -> bool:
    """Whether the kernel has transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE; Debian's -rt has not)."""
    return "transparent_hugepage_flags" in kernel.symbols


def huge_pages(kernel: Kernel) -> int:
    """Pages in a transparent huge page (C: HPAGE_PMD_NR)."""
    levels = kernel.space.format.levels
    return 1 << levels[-2].shift - levels[-1].shift


def percpu_counter(view: StructView) -> int:
    """A struct percpu_counter with what the CPUs hold; never below zero (C: percpu_counter_sum_positive)."""
    kernel = view.kernel
    total = view.int("count")
    for cpu in kernel.online_cpus():
        raw = kernel.space.read(kernel.per_cpu_address(view.ptr("counters"), cpu), 4)
        total += int.from_bytes(raw, "little", signed=True)
    return max(0, total)


def vmstat(kernel: Kernel) -> Mapping[str, int]:
    """/proc/vmstat: every counter by its name there; see Counters.vmstat()."""
    return Counters(kernel).vmstat()
