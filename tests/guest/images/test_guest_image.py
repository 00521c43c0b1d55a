"""The guest as it comes up, and the lab programs, by the word of its own /proc."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from inspector import Guest

Start = Callable[[Guest, str], int]


def smaps(guest: Guest, pid: int, address: int) -> dict[str, int]:
    """Fields of one VMA in KiB, from /proc/PID/smaps."""
    text = guest.run(f"cat /proc/{pid}/smaps").check().stdout
    block = re.search(rf"^{address:08x}-.*\n((?:\w+: .*\n)+)", text, re.MULTILINE)
    assert block, f"no VMA begins at {address:#x}"
    return {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB", block[1], re.MULTILINE)}


def said(guest: Guest, pid: int) -> list[str]:
    """The words that a spawned program printed."""
    return guest.run(f"cat /tmp/spawn-{pid}.log").check().stdout.split()


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/shm", "tmpfs"),
        ("/tmp", "tmpfs"),
        ("/dev/hugepages", "hugetlbfs"),
        ("/sys/kernel/debug", "debugfs"),
        ("/sys/fs/cgroup", "cgroup2"),
    ],
)
def test_mounts(guest: Guest, place: str, kind: str) -> None:
    mounts = [line.split()[1:3] for line in guest.run("cat /proc/mounts").check().stdout.splitlines()]
    assert [place, kind] in mounts


def test_modules_and_agent(guest: Guest) -> None:
    loaded = {line.split()[0] for line in guest.run("cat /proc/modules").check().stdout.splitlines()}
    assert {"qemu_fw_cfg", "zram"} <= loaded
    assert guest.run("cat /proc/1/comm").check().stdout == "init\n"
    # A bug, a warning or an oops while booting would taint the kernel.
    assert guest.run("cat /proc/sys/kernel/tainted").check().stdout == "0\n"


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ("4M --no-thp", 4096, {"Rss": 4096, "AnonHugePages": 0, "Private_Dirty": 4096, "KernelPageSize": 4}),
        ("4M --thp", 4096, {"Rss": 4096, "AnonHugePages": 4096}),
        ("4M --huge 2M", 4096, {"Private_Hugetlb": 4096, "KernelPageSize": 2048}),
        ("1M --shared", 1024, {"Rss": 1024, "Anonymous": 0}),
        ("1M --no-thp --mlock", 1024, {"Rss": 1024, "Locked": 1024}),
        # The zero page is nobody's resident page.
        ("1M --no-thp --read", 1024, {"Rss": 0}),
        ("5000 --no-thp", 8, {"Rss": 8}),
    ],
)
def test_touch(guest: Guest, start: Start, options: str, size: int, expected: dict[str, int]) -> None:
    pid = start(guest, f"/labs/touch {options}")
    told, address, length = said(guest, pid)
    fields = smaps(guest, pid, int(address, 16))
    guest.run(f"kill {pid}")
    assert (int(told), int(length)) == (pid, size << 10)
    assert {name: fields[name] for name in expected} == expected
    assert fields["Size"] == size


def test_fork(guest: Guest, start: Start) -> None:
    pid = start(guest, "/labs/fork 4M")
    parent, child, address, _ = said(guest, pid)
    found = [smaps(guest, int(who), int(address, 16)) for who in (parent, child)]
    guest.run(f"kill {pid}")
    # Each owns its half of 2 MiB, the other half is shared.
    for fields in found:
        assert (fields["Private_Dirty"], fields["Shared_Dirty"]) == (2048, 2048)
    assert guest.run(f"sleep 0.1; test -e /proc/{child}").returncode  # the child dies with its parent


def test_maps(guest: Guest, start: Start) -> None:
    pid = start(guest, "/labs/maps")
    maps = guest.run(f"cat /proc/{pid}/maps").check().stdout.splitlines()
    comms = guest.run(f"cat /proc/{pid}/task/*/comm").check().stdout.splitlines()
    guest.run(f"kill {pid}")
    names = {line[73:] for line in maps}
    folder = f"/tmp/maps.{pid}"
    for name in ("private", "with space", "deleted (deleted)", r"new\012line", "esc\x1b[31mred"):
        assert f"{folder}/{name}" in names
    assert {"[heap]", "[stack]", "[vdso]", "/memfd:lab (deleted)", "/dev/zero (deleted)"} <= names
    assert {line.split()[1] for line in maps} >= {"rw-p", "r--p", "r-xp", "---p", "rw-s", "r--s"}
    assert comms == ["maps", "worker-1", "worker-2", "with space", "esc\x1b[31mred"]


def test_burn(guest: Guest, start: Start) -> None:
    pid = start(guest, "/labs/burn")
    state = guest.run(f"cat /proc/{pid}/stat").check().stdout.rpartition(")")[2].split()[0]
    guest.run(f"kill {pid}")
    assert state == "R"
