"""What we save opens in drgn and in crash, and holds for them what it holds for us."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inspector
from inspector import Guest
from inspector.units import VirtAddr


@pytest.fixture(scope="module", params=["elf", "kdump"])
def saved(request: pytest.FixtureRequest, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest, which is paused, in a file of each format."""
    path = tmp_path_factory.mktemp("saved") / "vmcore"
    guest.save(path, format=request.param)
    return path


@pytest.fixture(scope="module")
def theirs(drgn: Any, saved: Path, debug_vmlinux: Path) -> Any:
    """The drgn program on that file."""
    program = drgn.Program()
    program.set_core_dump(str(saved))
    program.load_debug_info([str(debug_vmlinux)])
    return program


def tasks(guest: Guest) -> list[tuple[int, str]]:
    """PID and name of each thread."""
    return sorted((task.pid, task.comm) for task in guest.tasks(threads=True))


def test_drgn_sees_the_same_tasks(guest: Guest, theirs: Any) -> None:
    pid = importlib.import_module("drgn.helpers.linux.pid")
    found = sorted((task.pid.value_(), task.comm.string_().decode()) for task in pid.for_each_task(theirs))
    assert found == [task for task in tasks(guest) if task[0]]
    assert len(found) > 30


def test_drgn_sees_the_same_free_pages(guest: Guest, theirs: Any) -> None:
    """The zones' counters, and the blocks of each order in their free lists."""
    mm = importlib.import_module("drgn.helpers.linux.mmzone")
    zones = [
        zone
        for node in mm.for_each_online_pgdat(theirs)
        for zone in node.node_zones
        if zone.present_pages.value_()
    ]
    nr_free = theirs.constant("NR_FREE_PAGES").value_()
    ours = [zone for zone in guest.zones() if zone.present]
    assert [zone.free for zone in ours] == [zone.vm_stat[nr_free].counter.value_() for zone in zones]
    assert [list(zone.free_by_order) for zone in ours] == [
        [area.nr_free.value_() for area in zone.free_area] for zone in zones
    ]


def test_drgn_sees_the_same_symbols(guest: Guest, theirs: Any) -> None:
    named = {(symbol.name, symbol.address) for symbol in theirs.symbols()}
    _, end = theirs.main_module().address_range
    assert [s for s in guest.kernel.symbols if (s.name, s.address) not in named and s.address != end] == []


def test_drgn_finds_where_the_cpus_were(guest: Guest, theirs: Any) -> None:
    """From NT_PRSTATUS: the innermost frame of what each CPU ran."""
    cpu = next(cpu for cpu in guest.cpus() if cpu.registers.cpl == 0)  # one at least idles
    idle = cpu.pid == 0 and cpu.number == 0
    trace = theirs.stack_trace(theirs["init_task"].address_of_() if idle else cpu.pid)
    assert trace[0].pc == cpu.registers.rip


@pytest.fixture(scope="module")
def crash(
    saved: Path, crash_program: Path, debug_vmlinux: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """What the crash utility prints for commands on that file."""
    folder = tmp_path_factory.mktemp("crash")

    def ask(*commands: str) -> str:
        script = folder / "commands"
        script.write_text("\n".join(("set scroll off", *commands, "quit", "")))
        done = subprocess.run(
            [crash_program, "-s", "-i", str(script), str(debug_vmlinux), str(saved)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            env={"HOME": str(folder), "TERM": "dumb", "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return ask


def test_crash_sees_the_same(guest: Guest, crash: Callable[..., str]) -> None:
    """One start for all, as it takes long: processes, free pages, symbols, and where CPU 0 was.

    `ps` would show but the idle tasks: crash before 8.0.4 cannot read a struct pid of Linux 6.5, which 6.1
    has by now too (b69f0aeb0689). What `list` follows it can.
    """
    names = ["init_top_pgt", "handle_mm_fault", "jiffies_64", "init_uts_ns", "init_task"]
    first = guest.symbol("init_task")
    said = crash(
        f"list task_struct.tasks -s task_struct.pid,comm -h {first:x}",
        "kmem -f",
        *(f"sym {name}" for name in names),
        "sys",
        "bt -c 0",
    )

    line = re.compile(r'^([0-9a-f]{16})\n  pid = (\d+),\n  comm = "([^"\\]*)', re.M)
    found = {(int(pid), int(address, 16), comm) for address, pid, comm in line.findall(said)}
    ours = {(task.pid, int(task.address), task.comm) for task in guest.tasks()}
    assert {row for row in found if row[0]} == {row for row in ours if row[0]}
    assert len(found) > 30

    counted = re.search(r"nr_free_pages: (\d+)\s+\(verified\)", said)
    assert counted, said
    assert int(counted[1]) == sum(zone.free for zone in guest.zones())

    for name in names:
        address = re.search(rf"^([0-9a-f]{{16}}) \(\w\) {name}\b", said, re.M)
        assert address, name
        assert VirtAddr(int(address[1], 16)) == guest.symbol(name)
    assert f"RELEASE: {guest.kernel.release}" in said
    assert f"RIP: {guest.cpus()[0].registers.rip:016x}" in said


@pytest.mark.parametrize("options", [("-l", "-d", "31"), ("-c", "-d", "1"), ("-E", "-d", "31"), ("-F", "-c")])
def test_what_makedumpfile_makes_of_it(
    guest: Guest, makedumpfile: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """It packs what we save, and leaves out pages that hold nothing of the kernel's; we open that."""
    whole, packed = tmp_path / "whole", tmp_path / "packed"
    guest.save(whole)
    if "-F" in options:  # the flattened form goes to stdout
        with packed.open("wb") as out:
            subprocess.run([makedumpfile, *options, whole], stdout=out, stderr=subprocess.PIPE, check=True)
    else:
        subprocess.run([makedumpfile, *options, whole, packed], capture_output=True, check=True)
    with inspector.open(packed) as image:
        assert tasks(image) == tasks(guest)
        assert image.zones() == guest.zones()
        assert image.slabs() == guest.slabs()
        np.testing.assert_array_equal(image.frames(), guest.frames())
        left_out = "read as zeros" in image.machine.accel_reason
        assert left_out == ("31" in options)
