"""Each VMA's use of memory against /proc/PID/smaps: shared, forked, file, huge, locked and swapped pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inspector import Guest

pytestmark = pytest.mark.guest

_TRIES = 8
_GROUP = "/sys/fs/cgroup/smaps"
_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
_FIELDS = {
    "Rss": "rss", "Pss": "pss", "Pss_Dirty": "pss_dirty", "Shared_Clean": "shared_clean",
    "Shared_Dirty": "shared_dirty", "Private_Clean": "private_clean", "Private_Dirty": "private_dirty",
    "Referenced": "referenced", "Anonymous": "anonymous", "KSM": "ksm", "LazyFree": "lazy_free",
    "AnonHugePages": "anon_huge_pages", "ShmemPmdMapped": "shmem_pmd_mapped",
    "FilePmdMapped": "file_pmd_mapped", "Shared_Hugetlb": "shared_hugetlb",
    "Private_Hugetlb": "private_hugetlb", "Swap": "swap", "SwapPss": "swap_pss", "Locked": "locked",
}  # fmt: skip
_COMMANDS = (
    # The second fork's child has half of a huge page for itself, and small entries for the half it shares.
    "/labs/fork 4M", "/labs/fork 2M --thp", "/labs/touch 4M --shared --thp", "/labs/touch 4M --thp",
    "/labs/touch 1M --mlock", "/labs/touch 1M --read", "/labs/touch 4M --huge 2M",
    "/labs/touch 4M --huge 2M --shared", "/labs/maps",
)  # fmt: skip
_SMALL = "$(test -e /sys/kernel/mm/transparent_hugepage && echo --no-thp)"


@pytest.fixture(scope="module")
def busy_guest(any_guest: Guest, start: Any) -> Guest:
    """A guest whose tasks share, fork, lock and map files, huge pages of both kinds and nothing at all."""
    huge = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    before = any_guest.run(f"sed 's/.*\\[\\(.*\\)\\].*/\\1/' {huge} && echo advise >{huge}").stdout.strip()
    for command in _COMMANDS:
        start(any_guest, command)
    any_guest.run(f"echo {before} >{huge}")
    return any_guest


@pytest.fixture(scope="module")
def swapping_guest(busy_guest: Guest) -> Iterator[Guest]:
    """The same, where private, forked and shared memory is swapped out to zram."""
    guest = busy_guest
    if guest.run("echo 128M >/sys/block/zram0/disksize").returncode:
        pytest.skip("zram finds no compressor: the guest image does not load this kernel's")
    guest.run(f"mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 && mkdir {_GROUP}").check()
    pids = []
    for command in (f"/labs/touch 8M {_SMALL}", "/labs/touch 4M --shared", "/labs/fork 4M"):
        pid = guest.spawn(f"sh -c 'echo 0 >{_GROUP}/cgroup.procs; exec {command}'")
        guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
        pids.append(pid)
    guest.run(f"echo 2M >{_GROUP}/memory.high; sleep 1").check()
    yield guest
    guest.run(
        f"kill {' '.join(map(str, pids))}; until rmdir {_GROUP}; do sleep 0.1; done;"
        " swapoff /dev/zram0; echo 1 >/sys/block/zram0/reset"
    ).check()


def compared(guest: Guest, witness: Any, comms: set[str]) -> dict[str, NDArray[np.void]]:
    """Our rows of each task by its command, all found to agree with the guest's own."""
    for _ in range(_TRIES):
        files = [f"/proc/{task.pid}/smaps" for task in guest.tasks() if task.comm in comms]
        witnessed, ours = witness(
            guest,
            files,
            lambda: {
                f"/proc/{task.pid}/smaps": (task.comm, task.smaps()) for task in guest.tasks() if task.mm
            },
        )
        if all(witnessed.same(path) for path in files):
            break
    else:
        pytest.fail("the tasks never stood still")
    wrong = []
    for path in files:
        comm, rows = ours[path]
        areas = parsed(witnessed.text(path))
        assert [(area["start"], area["end"]) for area in areas] == [
            (int(row["start"]), int(row["end"])) for row in rows
        ]
        for area, row in zip(areas, rows, strict=True):
            wrong += [
                (comm, path, f"{area['start']:#x}", name, int(row[name]) // 1024, area[name])
                for name in _FIELDS.values()
                if name in area and int(row[name]) // 1024 != area[name]
            ]
    assert not wrong, wrong[:20]
    return {f"{comm} {path}": rows for path, (comm, rows) in ours.items() if comm in comms}


def parsed(text: str) -> list[dict[str, int]]:
    """A dictionary a VMA: addresses, and what this kernel tells of our fields, in kB."""
    areas: list[dict[str, int]] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            areas.append({"start": int(header[1], 16), "end": int(header[2], 16)})
        elif (name := line.partition(":")[0]) in _FIELDS:
            areas[-1][_FIELDS[name]] = int(line.split()[1])
    return areas


def test_every_number_of_every_vma(busy_guest: Guest, witness: Any) -> None:
    found = compared(busy_guest, witness, {"init", "fork", "touch", "maps"})
    total = {name: sum(int(rows[name].sum()) for rows in found.values()) for name in _FIELDS.values()}
    seen = {name for name, size in total.items() if size}
    assert seen >= {
        "rss", "pss", "shared_clean", "shared_dirty", "private_clean", "private_dirty", "referenced",
        "anonymous", "anon_huge_pages", "shmem_pmd_mapped", "private_hugetlb", "locked",
    }  # fmt: skip
    assert total["pss"] < total["rss"]


def test_swapped_pages(swapping_guest: Guest, witness: Any) -> None:
    found = compared(swapping_guest, witness, {"fork", "touch"})
    swap = sum(int(rows["swap"].sum()) for rows in found.values())
    share = sum(int(rows["swap_pss"].sum()) for rows in found.values())
    # The fork's slots have two entries each, and shared memory's have none: SwapPss leaves them out.
    assert swap > share > 4 << 20
