"""Who allocated each slab object, against what the kernel itself tells of it in debugfs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from inspector import Guest
from inspector.kernel.slab_tracks import jiffies, tracks
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest

_TRIES = 5
_CACHES = ("kmalloc-64", "kmalloc-256")  # what the reading itself does not take from


@pytest.fixture(scope="module", params=["debian-6.1", "debian-6.12"])
def tracked(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest that keeps who allocates."""
    with boot_guest(request.param, "512M", 1, cmdline="slub_debug=U") as guest:
        yield guest


@pytest.mark.parametrize("name", _CACHES)
def test_callers(tracked: Guest, name: str) -> None:
    """As mm/slub.c's alloc_traces, read before and after: callers that did not change in between."""
    read = f"cat /sys/kernel/debug/slab/{name}/alloc_traces"
    # `427 kprobe_add_ksym_blacklist+0x6a/0x90 age=...`; a stack follows, indented deeper.
    for _ in range(_TRIES):
        before, rows, after = (
            tracked.run(read).check().stdout,
            tracks(tracked.kernel, next(cache for cache in tracked.slabs() if cache.name == name)),
            tracked.run(read).check().stdout,
        )
        first, second = callers(before), callers(after)
        assert rows is not None
        found = Counter(place_of(tracked, VirtAddr(caller)) for caller in rows["caller"].tolist())
        still = [place for place in first if first[place] == second[place]]
        assert still
        wrong = {place: (first[place], found[place]) for place in still if found[place] != first[place]}
        if not wrong:  # a worker may have taken and given back an object, or the other way round
            return
    pytest.fail(f"(theirs, ours): {wrong}")


def callers(text: str) -> Counter[str]:
    """How many objects each caller has: a line for each of its stacks."""
    found: Counter[str] = Counter()
    for count, place in re.findall(r"^ +(\d+) (\w[\w.]*\+0x\w+)/", text, re.MULTILINE):
        found[place] += int(count)
    return found


def place_of(guest: Guest, address: VirtAddr) -> str:
    """`symbol+0xoffset`, without the module."""
    found = guest.symbol_at(address)
    assert found
    return f"{found[0].name.split()[0]}+{found[1]:#x}"


def test_when(tracked: Guest) -> None:
    """A task that starts now has a struct task_struct from now, taken by who forked it."""
    cache = next(cache for cache in tracked.slabs() if cache.name == "task_struct")
    started = jiffies(tracked.kernel)
    pid = tracked.spawn("sleep 100")
    rows = tracks(tracked.kernel, cache)
    address = tracked.task(pid).address
    tracked.run(f"kill {pid}")
    assert rows is not None
    (row,) = rows[rows["address"] == address]
    assert row["when"] >= started
    assert place_of(tracked, VirtAddr(int(row["caller"]))).startswith(("dup_task_struct", "copy_process"))


def test_not_kept(guest: Guest) -> None:
    assert tracks(guest.kernel, guest.slabs()[0]) is None
