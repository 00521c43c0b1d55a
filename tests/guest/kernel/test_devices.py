"""PCI devices against sysfs, and against QEMU, which made them."""

from __future__ import annotations

import re

import pytest

from inspector import Guest
from inspector.kernel.devices import Bar, PciDevice

pytestmark = pytest.mark.guest

_FILES = (
    "vendor",
    "device",
    "subsystem_vendor",
    "subsystem_device",
    "revision",
    "class",
    "irq",
    "enable",
    "dma_mask_bits",
    "consistent_dma_mask_bits",
    "numa_node",
)


def sysfs(guest: Guest, command: str) -> dict[str, list[str]]:
    """What a command prints in each device's folder, by its address; $d is the device."""
    script = f"cd /sys/bus/pci/devices; for d in *; do echo @$d; {command}; done"
    parts = guest.run(script).check().stdout.split("@")[1:]
    lines = [part.splitlines() for part in parts]
    return {first: rest for first, *rest in lines}


def test_what_they_are(any_guest: Guest) -> None:
    theirs = sysfs(any_guest, f"for f in {' '.join(_FILES)}; do cat $d/$f; done")
    ours = {each.address: each for each in any_guest.pci_devices()}
    assert list(ours) == sorted(theirs)
    assert len(ours) > 4
    for address, values in theirs.items():
        device = ours[address]
        assert [int(value, 0) for value in values] == [
            device.vendor,
            device.device,
            device.subsystem_vendor,
            device.subsystem_device,
            device.revision,
            device.class_code,
            device.irq,
            device.enabled,
            (device.dma_mask or 0).bit_length(),
            device.coherent_dma_mask.bit_length(),
            -1 if device.numa_node is None else device.numa_node,
        ]


def test_drivers(any_guest: Guest) -> None:
    name = 'readlink $d/driver | sed "s,.*/,,"; readlink -f $d/driver/module | sed "s,.*/,,"'
    theirs = sysfs(any_guest, name)
    for device in any_guest.pci_devices():
        assert [each for each in (device.driver, device.module) if each] == theirs[device.address]


def test_bars(any_guest: Guest) -> None:
    """Every line of `resource`; those of zeros are of what a device does not have."""
    theirs = sysfs(any_guest, "cat $d/resource")
    listing = any_guest.run("sed 's/^ *//' /proc/iomem /proc/ioports").stdout.splitlines()
    for device in any_guest.pci_devices():
        bars = {bar.index: (bar.start, bar.end - 1, bar.flags) for bar in device.bars}
        for index, line in enumerate(theirs[device.address]):
            start, end, flags = (int(word, 16) for word in line.split())
            assert bars.get(index, (0, 0, 0)) == (start, end, flags)
        assert all(bar.index < len(theirs[device.address]) for bar in device.bars if bar.index < 13)
        for bar in device.bars:
            if bar.name.startswith("BAR"):
                line = f"{bar.start:04x}-{bar.end - 1:04x} : {device.address}"
                assert line in listing


def test_agrees_with_qemu(any_guest: Guest) -> None:
    """What `info pci` says: addresses as the devices decode them."""
    devices = {device.address: device for device in any_guest.pci_devices()}
    parts = re.split(r"^ *Bus +", any_guest.machine.hmp("info pci"), flags=re.M)[1:]
    assert len(parts) == len(devices)
    seen = 0
    for part in parts:
        bus, number, function = map(int, re.findall(r"\d+", part)[:3])
        device = devices[f"0000:{bus:02x}:{number:02x}.{function}"]
        assert f"{device.vendor:04x}:{device.device:04x}" in part
        for index, bits, start, end in re.findall(
            r"BAR(\d): (\d+) bit (?:prefetchable )?memory at 0x(\w+) \[0x(\w+)\]", part
        ):
            if int(start, 16) in (0, (1 << int(bits)) - 1, (1 << 64) - 1):  # it decodes none
                continue
            bar = bar_of(device, int(index))
            assert (bar.start, bar.end - 1, bar.is_64) == (int(start, 16), int(end, 16), bits == "64")
            assert bar.prefetch == ("prefetchable" in part.split(f"BAR{index}")[1].split("\n")[0])
            seen += 1
    assert seen > 2


def bar_of(device: PciDevice, index: int) -> Bar:
    """A BAR by number."""
    (bar,) = (bar for bar in device.bars if bar.index == index)
    return bar
