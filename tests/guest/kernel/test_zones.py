"""Zones and free lists against /proc/zoneinfo, buddyinfo and pagetypeinfo."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel.frames import FrameState, frames
from inspector.kernel.memmap import MemMap
from inspector.symbols import Kernel
from inspector.units import Pfn, VirtAddr

pytestmark = pytest.mark.guest

_TRIES = 5

Facts = dict[tuple[str, ...], int]


def zoneinfo(text: str) -> Facts:
    """Numbers of /proc/zoneinfo by (zone, name), those of per-CPU lists by (zone, cpu, name)."""
    facts: Facts = {}
    zone = cpu = ""
    for line in text.splitlines():
        if match := re.match(r"Node (\d+), zone +(\w+)", line):
            zone, cpu = f"{match[1]} {match[2]}", ""
        elif match := re.match(r" +cpu: (\d+)", line):
            cpu = match[1]
        elif match := re.match(
            r"(?:  pages)? +(free|boost|min|low|high|spanned|present|managed|count|batch):? +(\d+)$", line
        ):
            facts[(zone, cpu, match[1]) if cpu else (zone, match[1])] = int(match[2])
        elif match := re.match(r" +protection: \((.*)\)", line):
            facts |= {(zone, "protection", str(i)): int(n) for i, n in enumerate(match[1].split(", "))}
    return facts


def buddyinfo(text: str) -> Facts:
    """Free blocks by (zone, order)."""
    facts: Facts = {}
    for line in text.splitlines():
        match = re.match(r"Node (\d+), zone +(\w+) +(.*)", line)
        assert match, line
        facts |= {(f"{match[1]} {match[2]}", str(order)): int(n) for order, n in enumerate(match[3].split())}
    return facts


def pagetypeinfo(text: str) -> Facts:
    """Free blocks by (zone, migratetype, order)."""
    facts: Facts = {}
    for line in text.splitlines():
        if match := re.match(r"Node +(\d+), zone +(\w+), type +(\w+) +(.*)", line):
            key = (f"{match[1]} {match[2]}", match[3])
            facts |= {(*key, str(order)): int(n) for order, n in enumerate(match[4].split())}
    return facts


def our_zoneinfo(guest: Guest) -> Facts:
    """The same numbers as zoneinfo(), from memory; zones without memory show no more there than here."""
    facts: Facts = {}
    for zone in guest.zones():
        name = f"{zone.node} {zone.name}"
        marks = zone.watermarks
        facts |= {(name, "free"): zone.free, (name, "boost"): marks.boost, (name, "min"): marks.min}
        facts |= {(name, "low"): marks.low, (name, "high"): marks.high, (name, "spanned"): zone.spanned}
        facts |= {(name, "present"): zone.present, (name, "managed"): zone.managed}
        facts |= {(name, "protection", str(i)): pages for i, pages in enumerate(zone.lowmem_reserve)}
        for lists in zone.per_cpu:
            cpu = str(lists.cpu)
            facts |= {(name, cpu, "count"): lists.count, (name, cpu, "high"): lists.high}
            facts |= {(name, cpu, "batch"): lists.batch}
    return facts


def our_buddyinfo(guest: Guest) -> Facts:
    """The same numbers as buddyinfo(): the zones' own counters."""
    return {
        (f"{zone.node} {zone.name}", str(order)): count
        for zone in guest.zones()
        if zone.populated
        for order, count in enumerate(zone.free_by_order)
    }


def our_pagetypeinfo(guest: Guest) -> Facts:
    """The same numbers as pagetypeinfo(): the blocks that are really on the lists."""
    return {
        (f"{free.node} {free.zone}", name, str(order)): int(free.counts[kind, order])
        for free in guest.buddy()
        for kind, name in enumerate(free.migratetypes)
        for order in range(free.counts.shape[1])
    }


@pytest.mark.parametrize(
    ("path", "parse", "ours"),
    [
        ("/proc/zoneinfo", zoneinfo, our_zoneinfo),
        ("/proc/buddyinfo", buddyinfo, our_buddyinfo),
        ("/proc/pagetypeinfo", pagetypeinfo, our_pagetypeinfo),
    ],
    ids=["zoneinfo", "buddyinfo", "pagetypeinfo"],
)
def test_agrees_with_proc(
    any_guest: Guest,
    witness: Any,
    path: str,
    parse: Callable[[str], Facts],
    ours: Callable[[Guest], Facts],
) -> None:
    for _ in range(_TRIES):
        witnessed, found = witness(any_guest, [path], lambda: ours(any_guest))
        first, second = (parse(reading.decode()) for reading in witnessed.readings[path])
        agreed = {key: value for key, value in first.items() if second.get(key) == value}
        wrong = {key: (value, found.get(key)) for key, value in agreed.items() if found.get(key) != value}
        # A try counts only if the guest stood still for nearly all that it tells.
        if not wrong and len(agreed) > 0.9 * len(first):
            assert len(first) > 20
            return
    pytest.fail(f"{path} said, and we found: {wrong}; {len(agreed)} of {len(first)} numbers stood still")


def test_who_points_into_a_list_is_not_on_it(
    any_guest: Guest, private_copy: Callable[[Guest], Kernel]
) -> None:
    """In a copy of memory two pages in use lose their references, and get links as if once on a list."""
    with any_guest.paused():
        kernel = private_copy(any_guest)
        memmap, before = MemMap(kernel), frames(kernel).state
        listed = np.flatnonzero(before == FrameState.PER_CPU)
        lru, references = (kernel.types.offsetof("page", name) for name in ("lru", "_refcount"))
        victims = np.flatnonzero(before == FrameState.ANON)[:2]
        first, second, on_list = (memmap.address(Pfn(int(pfn))) for pfn in (*victims, listed[0]))

        def write(at: int, *words: int) -> None:
            data = b"".join(word.to_bytes(8, "little") for word in words)
            kernel.memory.write(kernel.virt_to_phys(VirtAddr(at)), data)

        for page in (first, second):
            count = kernel.space.read(VirtAddr(page + references), 8)
            write(page + references, int.from_bytes(count, "little") & ~0xFFFF_FFFF)
        write(first + lru, second + lru)
        write(second + lru, on_list + lru, first + lru)

        found = frames(kernel).state
        assert np.array_equal(np.flatnonzero(found == FrameState.PER_CPU), listed)
