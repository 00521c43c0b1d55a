"""What `kmi` says of a live guest, against the guest's own /proc."""

from __future__ import annotations

import json
import struct
import subprocess
from typing import Any

import pytest

from inspector import Guest

pytestmark = pytest.mark.guest


def _words(guest: Guest, path: str, index: int) -> int:
    """The u64 at an index of a file in the guest."""
    command = f"dd if={path} bs=8 skip={index} count=1 2>/dev/null"
    return int(struct.unpack("<Q", guest.run(command).check().stdout_bytes)[0])


@pytest.fixture
def touched(guest: Guest) -> Any:
    """A task that touched 4 MiB: its PID and the address, as it says itself."""
    pid = guest.spawn("/labs/touch 4M --no-thp")
    said = guest.run(
        f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done; cat /tmp/spawn-{pid}.log"
    ).stdout
    number, address, _ = said.split()
    yield number, int(address, 16)
    guest.run(f"kill -9 {number}")


def test_walk_and_page(guest: Guest, host: Any, served: str, touched: tuple[str, int]) -> None:
    pid, address = touched
    walk = json.loads(host.run("walk", pid, f"{address + 0x1234:#x}", "--json", "--guest", served).stdout)
    entry = _words(guest, f"/proc/{pid}/pagemap", (address + 0x1234) // 4096)
    assert entry >> 63 & 1
    assert walk["pfn"] == entry & (1 << 55) - 1
    assert walk["phys"] == hex(walk["pfn"] * 4096 + 0x234)
    assert (walk["writable"], walk["user"], walk["fault"]) == (True, True, None)

    page = json.loads(host.run("page", str(walk["pfn"]), "--json", "--guest", served).stdout)
    assert page["mapcount"] == _words(guest, "/proc/kpagecount", walk["pfn"])
    flags = _words(guest, "/proc/kpageflags", walk["pfn"])
    assert (page["state"] == "anon") == bool(
        flags >> 12 & 1
    )  # KPF_ANON, Documentation/admin-guide/mm/pagemap.rst
    assert ("lru" in page["flag_names"]) == bool(flags >> 5 & 1)  # KPF_LRU
    assert ("swapbacked" in page["flag_names"]) == bool(flags >> 14 & 1)  # KPF_SWAPBACKED


def test_walk_of_what_is_not_mapped(host: Any, served: str, touched: tuple[str, int]) -> None:
    done = host.run("walk", touched[0], "0x1000", "--guest", served)
    assert "No translation, entry not present" in done.stdout


def test_walk_by_names(guest: Guest, host: Any, served: str) -> None:
    line = next(
        line for line in guest.run("cat /proc/1/maps").stdout.splitlines() if line.endswith("[stack]")
    )
    end = int(line.split()[0].partition("-")[2], 16)
    walk = json.loads(host.run("walk", "1", "[stack]", "--json", "--guest", served).stdout)
    assert walk["va"] == hex(end - 4096)
    table = guest.run("grep ' init_task$' /proc/kallsyms").stdout
    walk = json.loads(host.run("walk", "kernel", "init_task", "--json", "--guest", served).stdout)
    assert int(walk["va"], 16) == int(table.split()[0], 16)
    assert walk["phys"] is not None


def test_spawned(guest: Guest, host: Any, served: str) -> None:
    done = host.run(
        "walk", "spawned", "[anon]", "--spawn", "/labs/touch 2M --no-thp", "--json", "--guest", served
    )
    walk = json.loads(done.stdout)
    entry = _words(guest, f"/proc/{walk['pid']}/pagemap", int(walk["va"], 16) // 4096)
    assert walk["pfn"] == entry & (1 << 55) - 1
    guest.run(f"kill -9 {walk['pid']}")


def test_report(guest: Guest, host: Any, served: str) -> None:
    report = json.loads(host.run("report", "--json", "--guest", served).stdout)
    assert report["read_stopped"] is True
    assert report["guest"]["release"] == guest.run("uname -r").stdout.strip()
    pids = set(map(int, guest.run("cd /proc; echo [0-9]*").stdout.split()))
    ours = {task["pid"] for task in report["tasks"]}
    assert {1, 2} <= ours & pids
    managed = [int(line.split()[1]) for line in guest.run("grep managed /proc/zoneinfo").stdout.splitlines()]
    assert sum(zone["managed_pages"] for zone in report["zones"]) == sum(managed)
    frames = report["frames"]
    assert (
        sum(state["bytes"] for state in frames.values()) == sum(s["frames"] for s in frames.values()) * 4096
    )
    assert guest.running


def test_devices(guest: Guest, host: Any, served: str) -> None:
    found = json.loads(host.run("devices", "--json", "--guest", served).stdout)
    folder = "/sys/bus/pci/devices"
    assert [each["address"] for each in found["devices"]] == guest.run(f"ls {folder}").stdout.split()
    for each in found["devices"]:
        words = guest.run(
            f"cd {folder}/{each['address']}; cat vendor device class dma_mask_bits"
        ).stdout.split()
        names = ("vendor", "device", "class")
        assert [int(each[name], 16) for name in names] == [int(word, 16) for word in words[:3]]
        assert int(each["dma"]["mask"], 16).bit_length() == int(words[3])


def test_shell(host: Any, served: str, guest: Guest) -> None:
    source = "print(guest.info().release, guest.task(1).comm)"
    done = subprocess.run(
        host.command("shell", "--guest", served),
        env=host.environment, input=source, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split() == guest.run("uname -r; cat /proc/1/comm").stdout.split()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["walk", "999999", "0"], "no task has PID 999999"),
        (["walk", "kernel", "no_such_symbol"], "no symbol 'no_such_symbol'"),
        (["walk", "cpu9", "0"], "no CPU 9; this guest has 0 to 1"),
        (["page", "0x7777777777"], "no struct page"),
        (["report", "--vmlinux", "/bin/busybox"], "kmi: "),
        (["walk", "spawned", "0", "--spawn", "/labs/none"], "ended at once"),
    ],
)
def test_bad_input(host: Any, served: str, arguments: list[str], says: str) -> None:
    done = host.run(*arguments, "--guest", served, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("kmi: Starting ")]
    assert len(lines) == 1
    assert says in lines[0]


def test_no_such_guest(host: Any, served: str) -> None:
    done = host.run("report", "--guest", "nobody", check=False)
    assert done.returncode == 2
    said, _, names = done.stderr.partition(" open are ")
    assert said == "kmi: no guest named 'nobody' is open:"
    assert served in names.strip().split(", ")
