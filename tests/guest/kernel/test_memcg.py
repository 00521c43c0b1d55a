"""Memory cgroups against cgroup2's files, and every page's charge against /proc/kpagecgroup."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel import memcg
from inspector.kernel.memcg import CHARGE, ChargeKind, MemoryGroup
from inspector.kernel.memmap import MemMap

pytestmark = pytest.mark.guest

_TRIES = 5
_PAGE = 4096
_ROOT = "/sys/fs/cgroup"


@pytest.fixture(scope="module")
def grouped_guest(any_guest: Guest) -> Iterator[Guest]:
    """A guest with cgroups in cgroups, a task of 8 MiB in one, and pages of a group that is gone."""
    guest = any_guest
    guest.run(
        f"mkdir -p {_ROOT}/outer/inner {_ROOT}/outer/gone {_ROOT}/quiet"
        f" && echo +memory >{_ROOT}/outer/cgroup.subtree_control"
        f" && echo 64M >{_ROOT}/outer/inner/memory.max && echo 32M >{_ROOT}/outer/inner/memory.high"
        f" && sh -c 'echo 0 >{_ROOT}/outer/gone/cgroup.procs; head -c 300000 /dev/zero >/dev/shm/kept'"
        f" && rmdir {_ROOT}/outer/gone"
    ).check()
    pid = guest.spawn(f"sh -c 'echo 0 >{_ROOT}/outer/inner/cgroup.procs; exec /labs/touch 8M --no-thp'")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
    yield guest
    guest.run(
        f"kill {pid}; rm /dev/shm/kept; until rmdir {_ROOT}/outer/inner; do sleep 0.1; done;"
        f" rmdir {_ROOT}/outer {_ROOT}/quiet"
    )


def groups(guest: Guest) -> dict[str, MemoryGroup]:
    """Our cgroups by path, those that are gone left out."""
    with guest.paused():
        return {group.path: group for group in memcg.memory_groups(guest.kernel) if group.online}


def test_the_tree(grouped_guest: Guest) -> None:
    listing = grouped_guest.run(f"find {_ROOT} -type d | xargs stat -c '%i %n'").stdout
    theirs = {}
    for row in listing.splitlines():
        inode, path = row.split(maxsplit=1)
        theirs[path.removeprefix(_ROOT) or "/"] = int(inode)
    assert {path: group.inode for path, group in groups(grouped_guest).items()} == theirs
    assert "/outer/inner" in theirs


def test_limits_and_usage(grouped_guest: Guest, witness: Any) -> None:
    files = [f"{_ROOT}/outer/inner/memory.{name}" for name in ("current", "max", "high", "swap.current")]
    for _ in range(_TRIES):
        witnessed, found = witness(grouped_guest, files, lambda: groups(grouped_guest))
        if all(witnessed.same(path) for path in files):  # what was freed late is uncharged late
            break
    else:
        pytest.fail("the group's numbers never stood still")
    current, most, high, swap = (int(witnessed.text(path)) // _PAGE for path in files)
    inner = found["/outer/inner"]
    assert (inner.usage, inner.max, inner.high, inner.swap_usage) == (current, most, high, swap)
    assert current * _PAGE > 8 << 20
    assert (found["/quiet"].max, found["/quiet"].high, found["/"].usage) == (None, None, None)


def test_every_frame_agrees_with_kpagecgroup(grouped_guest: Guest, witness: Any) -> None:
    path = "/proc/kpagecgroup"
    for _ in range(_TRIES):
        witnessed, (ours, heads) = witness(grouped_guest, [path], lambda: reading(grouped_guest))
        first, second = (np.frombuffer(each, np.uint64) for each in witnessed.readings[path])
        assert len(first) == len(ours)
        expected = ours["inode"].copy()
        tails = heads != np.arange(len(heads))
        if not first[tails].any():  # older kernels look at the tail's own struct page, which has none
            expected[tails] = 0
        stable = first == second
        wrong = np.flatnonzero(stable & (first != expected))
        if not wrong.size:
            break
    else:
        pytest.fail(f"PFN, theirs, ours: {[(int(p), int(first[p]), int(expected[p])) for p in wrong[:8]]}")
    assert stable.mean() > 0.99
    found = groups(grouped_guest)
    inner = found["/outer/inner"]
    assert (first == inner.inode).sum() >= (8 << 20) // _PAGE
    # The pages of the group that is gone are its parent's now.
    assert (first == found["/outer"].inode).sum() >= 300000 // _PAGE
    assert (ours["kind"][ours["inode"] == inner.inode] == ChargeKind.KERNEL).any(), "its page tables"
    assert (ours["kind"] == ChargeKind.OBJECTS).any()
    assert not ours["inode"][ours["kind"] == ChargeKind.OBJECTS].any()


def reading(guest: Guest) -> tuple[np.ndarray[Any, np.dtype[np.void]], np.ndarray[Any, np.dtype[np.int64]]]:
    """What every page is charged to, and its compound page's first PFN."""
    memmap = MemMap(guest.kernel)
    heads = np.arange(memmap.end)
    for first, end in memmap.runs:
        heads[first:end] = memmap.heads(first, end)
    found = memcg.charges(guest.kernel, memmap)
    assert found.dtype == CHARGE
    return found, heads
