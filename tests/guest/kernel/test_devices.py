"""PCI devices against sysfs, and against QEMU, which made them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from inspector import Guest
from inspector.kernel.devices import PciDevice

pytestmark = pytest.mark.guest

_FILES = (
    "vendor device subsystem_vendor subsystem_device revision class irq enable dma_mask_bits "
    "consistent_dma_mask_bits numa_node"
).split()


@pytest.fixture(scope="module")
def edu_guest(any_guest: Guest) -> Iterator[Guest]:
    """A guest in which a device has a driver that has told the DMA API its mask."""
    any_guest.load_module("edu", mask=30)
    yield any_guest
    any_guest.unload_module("edu")


def sysfs(guest: Guest, command: str) -> dict[str, list[str]]:
    """What a command prints in each device's folder, by its address; $d is the device."""
    script = f"cd /sys/bus/pci/devices; for d in *; do echo @$d; {command}; done"
    parts = guest.run(script).check().stdout.split("@")[1:]
    lines = [part.splitlines() for part in parts]
    return {first: rest for first, *rest in lines}


def test_what_they_are(edu_guest: Guest) -> None:
    theirs = sysfs(edu_guest, f"for f in {' '.join(_FILES)}; do cat $d/$f; done")
    ours = {each.address: each for each in edu_guest.pci_devices()}
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


def test_drivers(edu_guest: Guest) -> None:
    name = 'readlink $d/driver | sed "s,.*/,,"; readlink -f $d/driver/module | sed "s,.*/,,"'
    theirs = sysfs(edu_guest, name)
    for device in edu_guest.pci_devices():
        assert [each for each in (device.driver, device.module) if each] == theirs[device.address]
    (edu,) = (device for device in edu_guest.pci_devices() if device.driver == "edu")
    assert (edu.module, edu.bus_master, edu.reach) == ("edu", True, (1 << 30) - 1)
    assert edu.dma_ops == "direct"  # the guest has no IOMMU
    msi = edu_guest.run(f"ls /sys/bus/pci/devices/{edu.address}/msi_irqs").stdout.split()
    assert (edu.interrupts, str(edu.irq)) == ("MSI", msi[0])


def test_bars(edu_guest: Guest) -> None:
    """Every line of `resource`; those of zeros are of what a device does not have."""
    theirs = sysfs(edu_guest, "cat $d/resource")
    listing = edu_guest.run("cat /proc/iomem /proc/ioports").stdout
    for device in edu_guest.pci_devices():
        bars = {bar.index: (bar.start, bar.end - 1, bar.flags) for bar in device.bars}
        for index, line in enumerate(theirs[device.address]):
            start, end, flags = (int(word, 16) for word in line.split())
            assert bars.get(index, (0, 0, 0)) == (start, end, flags)
        assert all(bar.index < len(theirs[device.address]) for bar in device.bars if bar.index < 13)
        for bar in device.bars:
            if bar.name.startswith("BAR"):
                assert re.search(rf"^ *{bar.start:0>4x}-{bar.end - 1:0>4x} : {device.address}$", listing, re.M)


def test_agrees_with_qemu(edu_guest: Guest) -> None:
    """info pci: addresses as the device decodes them."""
    devices = {device.address: device for device in edu_guest.pci_devices()}
    parts = re.split(r"^ *Bus +", edu_guest.machine.hmp("info pci"), flags=re.M)[1:]
    assert len(parts) == len(devices)
    seen = 0
    for part in parts:
        bus, number, function = map(int, re.match(r"(\d+), device +(\d+), function (\d+)", part).groups())
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


def bar_of(device: PciDevice, index: int) -> object:
    """A BAR by number; 6 is the ROM."""
    (bar,) = (bar for bar in device.bars if bar.index == index)
    return bar
