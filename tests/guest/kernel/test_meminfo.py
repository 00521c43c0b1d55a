"""/proc/meminfo, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from inspector import Guest
from inspector.kernel.meminfo import meminfo

pytestmark = pytest.mark.guest

_TRIES = 6
# The kernel asks each of zswap's allocators while it prints; there is no number to read.
_ASKED = {"Zswap"}
# Reading it makes every CPU hand in what it has counted.
_REFRESH = "/proc/sys/vm/stat_refresh"
_NAMED = {
    "MemFree", "AnonPages", "Mapped", "Shmem", "PageTables", "KernelStack", "Slab", "Cached", "SwapTotal",
    "Active", "Inactive",
}  # fmt: skip


def parse(text: str) -> dict[str, int]:
    """Numbers by name, in kB but for the counts of huge pages."""
    return {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in text.splitlines())}


def test_agrees_with_proc(any_guest: Guest, witness: Any) -> None:
    path = "/proc/meminfo"
    settled: set[str] = set()
    for _ in range(_TRIES):
        witnessed, ours = witness(any_guest, [_REFRESH, path], lambda: meminfo(any_guest.kernel))
        first, second = (parse(reading.decode()) for reading in witnessed.readings[path])
        assert [name for name in first if name in ours] == list(ours), "the lines and their order"
        assert set(first) - set(ours) <= _ASKED
        agreed = {name: value for name, value in first.items() if second[name] == value and name in ours}
        wrong = {name: (value, ours[name]) for name, value in agreed.items() if ours[name] != value}
        if not wrong:  # what moves has been where we saw it on its way from one reading to the other
            settled |= {
                name
                for name in set(ours) & set(first)
                if min(first[name], second[name]) <= ours[name] <= max(first[name], second[name])
            }
        if settled >= _NAMED:
            return
    pytest.fail(f"/proc said, and we found: {wrong}; never in between: {_NAMED - settled}")
