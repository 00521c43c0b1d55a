"""Guests that come up, and guests that do not: what is said, and that nothing is left."""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from inspector.errors import BootError, GuestDied, MachineError, UsageError
from inspector.machine import LocalMachine, list_guests, serve, start

from .conftest import Config

pytestmark = pytest.mark.guest


def ram_files() -> list[str]:
    """Our open guest RAM."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return [link for link in links if "kmi-ram" in link]


def test_it_comes_up_and_goes_without_a_trace(config: Config, runtime: Path) -> None:
    before, threads = len(ram_files()), set(threading.enumerate())
    machine = start(config())
    pid = machine.qemu_pid
    assert pid is not None
    assert machine.folder.parent == runtime / "kmi"
    assert machine.alive
    assert machine.running
    assert machine.run("echo hello").stdout == "hello\n"
    machine.close()
    machine.close()
    assert not machine.alive
    assert not Path(f"/proc/{pid}").exists()
    assert not machine.folder.exists()
    assert len(ram_files()) == before
    for thread in set(threading.enumerate()) - threads:  # they have heard that it is over
        thread.join(20)
        assert not thread.is_alive(), thread.name
    with pytest.raises(GuestDied, match="closed"):
        machine.run("true")
    assert machine.state().reason == "dead: closed"


def test_what_was_asked_for_is_there(machine: LocalMachine) -> None:
    assert machine.run("nproc").stdout == "2\n"
    total = int(machine.run("awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert 180 << 10 < total < 256 << 10
    devices = machine.run("cat /sys/bus/pci/devices/*/vendor /sys/bus/pci/devices/*/device").stdout.split()
    assert "0x1234" in devices, "edu's vendor (QEMU docs: specs/edu)"
    assert "0x11e8" in devices
    assert "nokaslr" not in machine.run("cat /proc/cmdline").stdout
    assert "la57" not in machine.run("cat /proc/cpuinfo").stdout.split()


def test_la57_on_request(config: Config, runtime: Path) -> None:
    with start(config(la57=True, memory=192 << 20)) as machine:
        assert "la57" in machine.run("cat /proc/cpuinfo").stdout.split()
        assert all(cpu.cr4 & 1 << 12 for cpu in machine.registers()), "CR4.LA57"


def test_ram_above_the_pci_hole(config: Config, runtime: Path) -> None:
    """8 GiB: where Linux has System RAM we have a block, and a byte lies where QEMU says that it lies."""
    with start(config(memory=8 << 30)) as machine:
        assert sum(size for _, size, _ in machine.blocks) <= 8 << 30
        for line in machine.run("cat /proc/iomem").stdout.splitlines():
            if line.endswith(" : System RAM"):
                first, last = (int(word, 16) for word in line.split(" : ")[0].split("-"))
                assert any(s <= first and last < s + n for s, n, _ in machine.blocks), line
        high = [block for block in machine.blocks if block[0] >= 1 << 32]
        assert high
        assert all(start != offset for start, _, offset in high), "the file has no hole"
        machine.pause()
        for start_, size, offset in machine.blocks:
            for at in (0, size // 2 & ~7, size - 8):
                said = machine.hmp(f"xp /1gx {start_ + at:#x}").split()[1]
                assert os.pread(machine.ram_fd, 8, offset + at) == struct.pack("<Q", int(said, 16))


def test_an_own_initrd_without_an_agent(config: Config, runtime: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    busybox = Path("/bin/busybox").read_bytes()
    script = b"#!/bin/busybox sh\necho my own init\nwhile :; do /bin/busybox sleep 100; done\n"
    entries = {"bin": (0o40755, b""), "bin/busybox": (0o100755, busybox), "init": (0o100755, script)}
    initrd.write_bytes(newc(entries))
    with start(config(initrd=initrd, agent=False, ready_text="my own init")) as machine:
        assert "my own init" in machine.console_tail()
        assert machine.registers()[0].cr3
        with pytest.raises(MachineError, match="no agent speaks in this guest"):
            machine.run("true")
    with start(config(initrd=initrd, agent=False)) as machine:
        assert "my own init" in machine.console_tail(), "it was up when it had gone quiet"


def newc(entries: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = b""
    for number, (name, (mode, data)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def flipped(data: bytes) -> bytes:
    """Its middle changed: the compressed kernel, of which the decompressor knows a checksum."""
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0x55 for b in data[middle : middle + 64]) + data[middle + 64 :]


def elf_without_pvh() -> bytes:
    """A 64-bit executable with one segment and no note (elf(5))."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 1 << 24, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 1 << 24, 1 << 24, 16, 16, 0x1000)
    return (head + segment).ljust(0x1000, b"\0") + b"\xf4" * 16


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("empty", "neither a bzImage nor an ELF"),
        ("text", "neither a bzImage nor an ELF"),
        ("cut", r"cut off: .* has 3000000 of \d+ bytes"),
        ("flipped", "compressed data is corrupt"),
        ("no-pvh", r"no PVH entry, CONFIG_PVH: give its bzImage"),
    ],
)
def test_a_corrupt_kernel(config: Config, runtime: Path, tmp_path: Path, what: str, says: str) -> None:
    good = config().kernel.read_bytes()
    bad = tmp_path / "bzImage"
    bad.write_bytes(
        {
            "empty": b"",
            "text": b"no kernel\n" * 1000,
            "cut": good[:3_000_000],
            "flipped": flipped(good),
            "no-pvh": elf_without_pvh(),
        }[what]
    )
    with pytest.raises(BootError, match=says) as caught:
        start(config(kernel=bad))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cmdline", "says"),
    [
        ("rdinit=/bin/busybox", "Kernel panic - not syncing: Attempted to kill init!"),
        ("panic=0 rdinit=/bin/busybox", "Kernel panic - not syncing: Attempted to kill init!"),
    ],
    ids=["reboots", "stays"],
)
def test_a_panic_at_boot(config: Config, runtime: Path, cmdline: str, says: str) -> None:
    with pytest.raises(BootError, match=says):
        start(config(cmdline=cmdline))


def test_a_corrupt_initrd(config: Config, runtime: Path, tmp_path: Path) -> None:
    bad = tmp_path / "initrd"
    bad.write_bytes(b"no archive\n" * 1000)
    with pytest.raises(BootError, match=r"Kernel panic .*Initramfs unpacking failed"):
        start(config(initrd=bad))


def test_too_little_memory_says_so(config: Config, runtime: Path) -> None:
    with pytest.raises(BootError, match="64 MiB enough for it"):
        start(config(memory=64 << 20))


def test_no_answer_in_time(config: Config, runtime: Path) -> None:
    with pytest.raises(BootError, match=r"not up within 1 s"):
        start(config(boot_timeout=1.0))


def test_an_argument_that_qemu_refuses(config: Config, runtime: Path) -> None:
    with pytest.raises(BootError, match=r"QEMU exited 1: .*no-such-device"):
        start(config(extra=("-device", "no-such-device")))


def test_a_taken_name_is_refused_before_the_boot(config: Config, machine: LocalMachine) -> None:
    with serve(machine, f"taken-{os.getpid()}"):
        assert f"taken-{os.getpid()}" in list_guests()
        with pytest.raises(UsageError, match="is already open"):
            start(config(name=f"taken-{os.getpid()}"))
        assert machine.alive
