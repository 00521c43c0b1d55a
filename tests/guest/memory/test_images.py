"""Images of a guest at one moment, by us and by QEMU, answer as the guest itself, which stands still."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import inspector
from inspector import Guest, images
from inspector.errors import MachineError, SymbolsError
from inspector.machine.registers import parse_registers
from inspector.memory import core
from inspector.units import Pfn, PhysAddr

KERNELS = ["debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"]


@pytest.fixture(scope="module", params=KERNELS)
def held(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of each kernel with two CPUs, a busy task and tmpfs files, which then stands still."""
    with boot_guest(request.param, "512M", 2) as guest:
        pid = guest.spawn("/labs/touch 8M")
        guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
        guest.spawn("/labs/burn --syscall")
        guest.run("dd if=/dev/urandom of=/tmp/noise bs=64k count=32 2>/dev/null").check()
        guest.pause()
        yield guest


def answers(guest: Guest) -> dict[str, Any]:
    """Much of what can be asked of a guest, as plain values."""
    owners = guest.owners()
    return {
        "zones": guest.zones(),
        "buddy": [(free.node, free.zone, free.migratetypes, free.counts.tolist()) for free in guest.buddy()],
        "tasks": [
            (task.pid, task.tgid, task.comm, task.state, task.uid) for task in guest.tasks(threads=True)
        ],
        "vmas": [(task.pid, task.vmas()) for task in guest.tasks() if task.mm],
        "owners": owners.counts(),
        "labels": list(owners.labels),
        "slabs": guest.slabs(),
        "vmalloc": guest.vmalloc_areas(),
        "modules": guest.modules(),
        "iomem": guest.iomem(),
        "meminfo": guest.meminfo(),
        "symbols": [(symbol.name, symbol.address) for symbol in guest.kernel.symbols],
        "cpus": [(cpu.number, cpu.root, cpu.root_kind, cpu.pid, cpu.comm) for cpu in guest.cpus()],
        "kaslr": guest.kernel.kaslr_offset,
        "paging": guest.kernel.space.format.name,
    }


def check_equal(image: Guest, guest: Guest) -> None:
    """The image's answers are the guest's, one by one, and so is every frame, mapping and byte."""
    ours, theirs = answers(image), answers(guest)
    for question, answer in theirs.items():
        assert ours[question] == answer, question
    mine_all, their_all = image.owners(), guest.owners()
    np.testing.assert_array_equal(mine_all.rows, their_all.rows)
    for mine, other in zip(image.tasks(), guest.tasks(), strict=True):
        np.testing.assert_array_equal(mine.mappings(), other.mappings())
    for pfn in np.linspace(0x100, 0x1F000, 50).astype(int).tolist():
        assert image.page(Pfn(pfn), mine_all) == guest.page(Pfn(pfn), their_all)
    for block in image.memory.blocks:
        if guest.memory.contains(np.array([block.start], np.uint64), block.size)[0]:
            assert image.read_phys(block.start, block.size) == guest.read_phys(block.start, block.size)


@pytest.mark.parametrize("format_", ["elf", "kdump"])
def test_what_we_save_answers_as_the_guest(
    held: Guest, tmp_path: Path, format_: Literal["elf", "kdump"]
) -> None:
    path = tmp_path / "image"
    held.save(path, format=format_)
    with inspector.open(path) as image:
        check_equal(image, held)
        for mine, other in zip(image.cpus(), held.cpus(), strict=True):
            assert mine.registers.general == other.registers.general
            assert mine.registers.segments == other.registers.segments
            assert mine.registers.cr3 == other.registers.cr3
        again = tmp_path / "again"
        image.save(again, format="kdump" if format_ == "elf" else "elf")
        with inspector.open(again) as copy:
            check_equal(copy, held)
    assert held.state().kind == "paused"


@pytest.mark.parametrize("form", ["elf", "paging", "kdump-zlib"])
def test_what_qemu_dumps_answers_as_the_guest(held: Guest, tmp_path: Path, form: str) -> None:
    path = tmp_path / "image"
    dump = {"paging": form == "paging", "protocol": f"file:{path}"}
    if form == "kdump-zlib":
        dump["format"] = form
    held.machine.qmp("dump-guest-memory", **dump)
    with inspector.open(path) as image:
        check_equal(image, held)


def test_a_kernels_own_dump_has_no_control_registers(held: Guest, tmp_path: Path) -> None:
    """Without QEMU's notes, as /proc/vmcore is: the kernel is found by VMCOREINFO, roots by the CPUs' mm."""
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    held.save(whole)
    data = bytearray(whole.read_bytes()[:4096])
    shutil.copyfile(whole, bare)
    while (at := data.find(b"QEMU\0")) >= 0:
        data[at : at + 4] = b"NONE"
    with bare.open("r+b") as file:
        file.write(data)
    image = core.open_image(bare)
    assert [cpu.control for cpu in image.cpus] == [None, None]
    image.close()
    with inspector.open(bare) as opened:
        assert answers(opened) | {"cpus": None} == answers(held) | {"cpus": None}
        for mine, other in zip(opened.cpus(), held.cpus(), strict=True):
            assert (mine.pid, mine.registers.rip) == (other.pid, other.registers.rip)
            if other.registers.cpl == 0 or not held.info().page_table_isolation:
                assert mine.root == other.root & ~0xFFF


def test_an_image_does_not_run(held: Guest, tmp_path: Path) -> None:
    path = tmp_path / "image"
    held.save(path)
    with inspector.open(path) as image:
        assert (image.running, image.state().kind) == (False, "saved")
        for ask in (
            lambda: image.run("true"),
            lambda: image.spawn("true"),
            image.resume,
            lambda: image.load_module("lender"),
            lambda: image.trace_faults(1).__enter__(),
            lambda: image.machine.qmp("query-status"),
        ):
            with pytest.raises(MachineError, match="image is a saved image"):
                ask()
        with image.paused():
            assert image.tasks()


def test_a_file_with_no_linux_in_it(tmp_path: Path, held: Guest) -> None:
    path = tmp_path / "image"
    held.save(path)
    with path.open("rb") as file:
        head = file.read(4096)
    blank = tmp_path / "blank"
    with blank.open("wb") as file:
        file.write(head)
        file.truncate(path.stat().st_size)
    with pytest.raises(SymbolsError, match="no Linux kernel found"):
        inspector.open(blank)


# A QEMU that somebody else started


def hmp(address: Path, command: str) -> str:
    """What the monitor of a QEMU answers, over its QMP socket, by hand."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(address))
        file = line.makefile("rwb")
        file.readline()
        for request in ({"execute": "qmp_capabilities"}, {"execute": "human-monitor-command",
                        "arguments": {"command-line": command}}):  # fmt: skip
            file.write(json.dumps(request).encode() + b"\n")
            file.flush()
            while "return" not in (answer := json.loads(file.readline())):
                assert "error" not in answer, answer
        return str(answer["return"])


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A QEMU with its own command line: no sharing of RAM, no vmcoreinfo device, i440fx, 3 CPUs."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no QEMU")
    files = images.fetch_kernel("debian-6.1")
    address, log = tmp_path / "qmp", tmp_path / "console"
    process = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-accel", "tcg", "-m", "256M", "-smp", "3", "-nographic", "-no-reboot"),
            *("-kernel", str(files.bzimage), "-initrd", str(images.guest_image(files))),
            *("-append", "console=ttyS0 panic=-1 no_timer_check", "-serial", f"file:{log}"),
            *("-monitor", "none"),
            *("-qmp", f"unix:{address},server=on,wait=off"),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        while "Run /init" not in (log.read_text(errors="replace") if log.exists() else ""):
            assert process.poll() is None
            time.sleep(0.2)
        time.sleep(3)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("options", ["", "-z"])
def test_the_dump_of_a_guest_that_we_did_not_start(foreign: Path, tmp_path: Path, options: str) -> None:
    """Its answers are its own registers, and its memory as QEMU's pmemsave has it."""
    hmp(foreign, "stop")
    path, raw = tmp_path / "image", tmp_path / "raw"
    assert not hmp(foreign, f"dump-guest-memory {options} {path}").strip()
    assert not hmp(foreign, f'pmemsave 0x100000 {255 << 20} "{raw}"').strip()
    registers = parse_registers(hmp(foreign, "info registers -a"))
    with inspector.open(path) as image:
        assert image.kernel.release == images.fetch_kernel("debian-6.1").release
        assert image.read_phys(PhysAddr(0x100000), 255 << 20) == raw.read_bytes()
        assert [cpu.registers.rip for cpu in image.cpus()] == [each.rip for each in registers]
        assert [cpu.root for cpu in image.cpus()] == [each.cr3 & ~0xFFF for each in registers]
        assert [task.comm for task in image.tasks() if task.pid == 2] == ["kthreadd"]
        assert sum(zone.managed for zone in image.zones()) < 256 << 20 >> 12
        assert image.owners().counts()
