"""What a config accepts, and the command line that it becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inspector.errors import UsageError
from inspector.machine.accel import Accel
from inspector.machine.config import MachineConfig, Wiring, kernel_cmdline, qemu_command
from inspector.units import GIB, MIB

TCG = Accel("TCG", "")


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    for name in ("bzImage", "initrd"):
        (tmp_path / name).touch()
    return MachineConfig(kernel=tmp_path / "bzImage", initrd=tmp_path / "initrd", memory=512 * MIB)


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    return Wiring(ram_fd=10, console_fd=11, shell_fd=12, qmp_fd=13, window_fd=14, folder=tmp_path)


def after(command: list[str], option: str) -> list[str]:
    return [command[i + 1] for i, word in enumerate(command) if word == option]


def test_ram_is_the_inherited_descriptor_shared(config: MachineConfig, wiring: Wiring) -> None:
    command = qemu_command(config, TCG, wiring)
    assert after(command, "-object") == [
        "memory-backend-file,id=ram,size=536870912,mem-path=/proc/self/fd/10,share=on",
        "memory-backend-file,id=window,size=8388608,mem-path=/proc/self/fd/14,share=on",
    ]
    assert after(command, "-m") == ["536870912B"]
    assert after(command, "-machine") == ["q35,memory-backend=ram"]


def test_devices_and_no_defaults(config: MachineConfig, wiring: Wiring) -> None:
    command = qemu_command(config, TCG, wiring)
    devices = ["vmcoreinfo", "edu,dma_mask=0xffffffff", "ivshmem-plain,memdev=window,master=on"]
    assert after(command, "-device") == devices
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(command)


def test_the_first_serial_line_is_the_console_the_second_the_shell(
    config: MachineConfig, wiring: Wiring
) -> None:
    command = qemu_command(config, TCG, wiring)
    assert after(command, "-serial") == ["chardev:console", "chardev:shell"]
    assert "socket,id=console,fd=11" in command
    assert "socket,id=shell,fd=12" in command


@pytest.mark.parametrize(
    ("accel", "la57", "cpu"),
    [
        ("TCG", False, "max,la57=off"),
        ("TCG", True, "max,la57=on"),
        ("KVM", False, "host,la57=off"),
    ],
)
def test_cpu_model(config: MachineConfig, wiring: Wiring, accel: str, la57: bool, cpu: str) -> None:
    command = qemu_command(replace(config, la57=la57), Accel(accel, ""), wiring)  # type: ignore[arg-type]
    assert after(command, "-cpu") == [cpu]
    assert after(command, "-accel") == [accel.lower()]


def test_a_comma_in_the_folder_does_not_end_the_socket_path(config: MachineConfig, wiring: Wiring) -> None:
    command = qemu_command(config, TCG, replace(wiring, folder=Path("/run/a,b")))
    assert after(command, "-gdb") == ["unix:/run/a,,b/gdb,server=on,wait=off"]
    assert after(command, "-qmp") == ["unix:/run/a,,b/qmp,server=on,wait=off"]


def test_kaslr_stays_on(config: MachineConfig) -> None:
    assert "nokaslr" not in kernel_cmdline(config)


def test_what_the_user_adds_comes_last(config: MachineConfig, wiring: Wiring) -> None:
    asked = replace(config, cmdline="hugepages=4", extra=("-device", "virtio-rng-pci"))
    command = qemu_command(asked, TCG, wiring)
    assert after(command, "-append")[0].endswith("panic=-1 hugepages=4")
    assert command[-2:] == ["-device", "virtio-rng-pci"]


def test_every_descriptor_is_inherited(wiring: Wiring) -> None:
    assert set(wiring.fds) == {10, 11, 12, 13, 14}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory": 32 * MIB}, "32 MiB"),
        ({"memory": 17 * GIB}, "17 GiB"),
        ({"memory": 64 * MIB + 1}, "whole pages"),
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 65}, "65 CPUs"),
        ({"arch": "pdp11"}, "pdp11"),
        ({"kernel": Path("/no/such/kernel")}, "no such kernel: /no/such/kernel"),
        ({"initrd": Path("/no/such/initrd")}, "no such initrd: /no/such/initrd"),
    ],
)
def test_nonsense_is_refused(config: MachineConfig, change: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(config, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [64 * MIB, 16 * GIB])
def test_the_limits_themselves_are_accepted(config: MachineConfig, memory: int) -> None:
    assert replace(config, memory=memory).memory == memory
