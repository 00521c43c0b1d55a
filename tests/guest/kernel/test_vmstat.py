"""Counters against /proc/vmstat and /proc/zoneinfo, and exact ones against the free lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from inspector import Guest
from inspector.kernel import vmstat, zones
from inspector.kernel.vmstat import Counters

pytestmark = pytest.mark.guest

_TRIES = 5

Facts = dict[tuple[str, ...], int]


def proc_vmstat(text: str) -> Facts:
    """Every line."""
    return {(name,): int(value) for name, value in (line.split() for line in text.splitlines())}


def proc_zoneinfo(text: str) -> Facts:
    """The counters that end in a plain number: by (`node 0`, name) and (`0 DMA`, name)."""
    facts: Facts = {}
    zone, section = "", ""
    for line in text.splitlines():
        if match := re.match(r"Node (\d+), zone +(\w+)", line):
            zone = section = f"{match[1]} {match[2]}"
        elif line.strip() == "per-node stats":
            section = f"node {zone.split()[0]}"
        elif line.startswith("  pages free"):
            section = zone
        elif line.startswith("  pagesets"):
            section = ""
        elif section and (match := re.match(r" {6}(\w+) +(\d+)$", line)):
            facts[section, match[1]] = int(match[2])
    return facts


def our_vmstat(guest: Guest) -> Facts:
    return {(name,): value for name, value in vmstat.vmstat(guest.kernel).items()}


def our_zoneinfo(guest: Guest) -> Facts:
    counters = Counters(guest.kernel)
    facts: Facts = {}
    for node in zones.nodes(guest.kernel):
        facts |= {(f"node {node.int('node_id')}", name): n for name, n in counters.node(node).items()}
    for zone in zones.zones(guest.kernel):
        if zone.populated:
            view = guest.kernel.view("zone", zone.address)
            facts |= {(f"{zone.node} {zone.name}", name): n for name, n in counters.zone(view).items()}
    return facts


@pytest.mark.parametrize(
    ("path", "parse", "ours", "computed"),
    [
        (
            "/proc/vmstat",
            proc_vmstat,
            our_vmstat,
            # Worked out while it prints; and a constant, for those who still look for it.
            {("nr_dirty_threshold",), ("nr_dirty_background_threshold",), ("nr_unstable",)},
        ),
        ("/proc/zoneinfo", proc_zoneinfo, our_zoneinfo, set()),
    ],
    ids=["vmstat", "zoneinfo"],
)
def test_agrees_with_proc(
    any_guest: Guest,
    witness: Any,
    path: str,
    parse: Callable[[str], Facts],
    ours: Callable[[Guest], Facts],
    computed: set[tuple[str, ...]],
) -> None:
    for _ in range(_TRIES):
        witnessed, found = witness(any_guest, [path], lambda: ours(any_guest))
        first, second = (parse(reading.decode()) for reading in witnessed.readings[path])
        assert set(found) == set(first) - computed
        agreed = {key: value for key, value in first.items() if second[key] == value and key not in computed}
        wrong = {key: (value, found[key]) for key, value in agreed.items() if found[key] != value}
        if not wrong and len(agreed) > 0.8 * len(first):
            assert len(first) > 50
            return
    pytest.fail(f"{path} said, and we found: {wrong}; {len(agreed)} of {len(first)} numbers stood still")


def test_exact_counters_agree_with_the_free_lists(any_guest: Guest) -> None:
    """With what the CPUs hold, nr_free_pages is what lies on the lists, to the page."""
    for _ in range(_TRIES):
        with any_guest.paused():
            counters = Counters(any_guest.kernel)
            found = {
                zone.name: (
                    counters.zone(any_guest.kernel.view("zone", zone.address), exact=True)["nr_free_pages"],
                    sum(count << order for order, count in enumerate(zone.free_by_order)),
                )
                for zone in any_guest.zones()
                if zone.populated
            }
        if all(ours == listed for ours, listed in found.values()):
            return
    pytest.fail(f"counted, and on the lists: {found}")
