"""Buffers for DMA: a disk's, which come and go through swiotlb, and those of a driver whose book is read."""

from __future__ import annotations

import lzma
import re
import time
from collections.abc import Callable, Iterator

import pytest

from inspector import Guest, images, machine
from inspector.images.manifest import manifest
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.swiotlb import SLOT, Swiotlb
from inspector.machine import MachineConfig
from inspector.units import Pfn

pytestmark = pytest.mark.guest

Start = Callable[[Guest, str], int]

_PAGE = 4096
_DEBUG = "/sys/kernel/debug/swiotlb"
# A disk behind a bridge, whose driver maps all that it is told to read by the DMA API.
_DISK = (
    *("-device", "pcie-root-port,id=bridge,slot=1"),
    *("-drive", "if=none,id=disk,driver=null-co,size=64M,read-zeroes=on,latency-ns=5000000"),
    *("-device", "virtio-blk-pci,drive=disk,bus=bridge,iommu_platform=on,disable-legacy=on"),
)
# Each reader may be given pages that lie side by side, and are mapped as one: none reads for long.
_READ = "while :; do dd if=/dev/vda of=/dev/null bs=9k count=50 iflag=direct 2>/dev/null; done"


@pytest.fixture(scope="module", params=["debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"])
def disk_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest with forced bounce buffers, and a disk."""
    files = images.fetch_kernel(request.param)
    config = MachineConfig(
        kernel=files.bzimage,
        initrd=images.guest_image(files),
        cmdline="swiotlb=force",
        extra=_DISK,
    )
    with Guest(machine.start(config)) as guest:
        for name in ("virtio_pci", "virtio_blk"):
            load_stock(guest, files, name)
        yield guest


def load_stock(guest: Guest, files: images.KernelFiles, name: str) -> None:
    """Load a module of the kernel's own package where it is not built in, after those that it depends on."""
    assert files.modules_dir
    if not guest.run(f"[ -d /sys/module/{name} ]").returncode:
        return
    (path,) = (each for each in files.modules_dir.rglob("*.ko*") if each.name.split(".")[0] == name)
    data = path.read_bytes()
    data = lzma.decompress(data) if path.suffix == ".xz" else data
    (depends,) = re.findall(rb"\0depends=([^\0]*)\0", data)
    for each in filter(None, depends.decode().split(",")):
        load_stock(guest, files, each)
    guest.machine.put(data, f"/tmp/{name}.ko")
    guest.run(f"insmod /tmp/{name}.ko; rm /tmp/{name}.ko").check()


def test_a_device_behind_a_bridge(disk_guest: Guest) -> None:
    port, disk = (
        next(each for each in disk_guest.pci_devices() if each.driver == driver)
        for driver in ("pcieport", "virtio-pci")
    )
    bus, _ = disk.address.split(":")[1:]
    assert int(bus, 16) == port.bridge_to
    windows = [bar for bar in port.bars if bar.name.startswith("window") and bar.kind == "MEM"]
    for bar in disk.bars:
        assert any(window.start <= bar.start and bar.end <= window.end for window in windows)
    lines = disk_guest.run(f"cat /sys/bus/pci/devices/{port.address}/resource").stdout.splitlines()
    theirs = [tuple(int(word, 16) for word in line.split()) for line in lines]
    ours = {bar.index: (bar.start, bar.end - 1, bar.flags) for bar in port.bars}
    assert theirs == [ours.get(index, (0, 0, 0)) for index in range(len(theirs))]


def test_bounces(disk_guest: Guest) -> None:
    """A read of 9 KiB maps two pages and a quarter, and what the disk is told; slots as the kernel counts."""
    pid = disk_guest.spawn(_READ)
    found, mapped = caught(disk_guest)
    disk_guest.run(f"kill {pid}; killall dd; until [ $(cat {_DEBUG}/io_tlb_used) = 0 ]; do sleep 0.1; done")
    assert found.forced
    assert found.buffer.used == sum(bounce.slots for bounce in found.bounces)
    assert found.buffer.slots == int(disk_guest.run(f"cat {_DEBUG}/io_tlb_nslabs").stdout)
    for bounce in found.bounces:
        assert found.buffer.start <= bounce.start < bounce.end <= found.buffer.end
    data = [bounce for bounce in found.bounces if (bounce.size or bounce.slots * SLOT) >= 1024]
    whole = [bounce for bounce in data if bounce.slots == 2]
    assert len(whole) == 2
    assert mapped >= {bounce.origin for bounce in whole}  # the reader's own pages
    if found.bounces[0].size is not None:
        assert sorted(bounce.size or 0 for bounce in data) == [1024, _PAGE, _PAGE]
    after = disk_guest.swiotlb()
    assert after
    assert (after.buffer.used, after.bounces) == (0, ())


def caught(guest: Guest) -> tuple[Swiotlb, set[int]]:
    """Swiotlb while a read is under way, and where the reader's pages lie."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with guest.paused():
            found = guest.swiotlb()
            reader = next((task for task in guest.tasks() if task.comm == "dd"), None)
            if found and reader and sum(bounce.slots == 2 for bounce in found.bounces) == 2:
                return found, set(reader.mappings()["pa"].tolist())
        time.sleep(0.02)
    raise AssertionError("no read was seen under way")


# A driver's book


@pytest.fixture(scope="module", params=manifest().loaded_into)
def edu_guest(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest whose device reaches all of RAM, and has the driver whose book is read."""
    with boot_guest(request.param, "512M", 1, cmdline="swiotlb=force") as guest:
        guest.load_module("edu", mask=32)
        yield guest


@pytest.fixture(scope="module")
def buffers(edu_guest: Guest, start: Start) -> dict[str, tuple[int, DmaBuffer]]:
    """A buffer of each kind by our reading, and the PID of who has it."""
    kinds = ("pages", "kmalloc", "coherent", "pinned", "stale")
    pids = {kind: start(edu_guest, f"/labs/dma {kind} 1500") for kind in kinds}
    found = edu_guest.dma_buffers()
    return {
        kind: (pid, next(each for each in found if (each.source, each.kind) == ("edu", kind)))
        for kind, pid in pids.items()
    }


def test_its_device(edu_guest: Guest) -> None:
    (edu,) = (device for device in edu_guest.pci_devices() if device.driver == "edu")
    folder = f"/sys/bus/pci/devices/{edu.address}"
    assert edu_guest.run(f"readlink -f {folder}/driver/module").stdout.strip() == f"/sys/module/{edu.module}"
    masks = edu_guest.run(f"cat {folder}/dma_mask_bits {folder}/consistent_dma_mask_bits").stdout.split()
    assert masks == ["32", "32"]
    assert (edu.dma_mask, edu.reach, edu.coherent_dma_mask) == ((1 << 32) - 1,) * 3
    assert edu.dma_ops == "direct"  # the guest has no IOMMU
    config = edu_guest.run(f"dd if={folder}/config bs=1 skip=4 count=2 2>/dev/null | od -An -tu2").stdout
    assert edu.bus_master == bool(int(config) & 4)  # PCI_COMMAND_MASTER
    vectors = edu_guest.run(f"ls {folder}/msi_irqs").stdout.split()
    assert (edu.interrupts, [str(edu.irq)]) == ("MSI", vectors)


def test_the_book_agrees_with_the_log(edu_guest: Guest, buffers: dict[str, tuple[int, DmaBuffer]]) -> None:
    (device,) = (each for each in edu_guest.pci_devices() if each.driver == "edu")
    log = edu_guest.run("dmesg").stdout
    for kind, (pid, buffer) in buffers.items():
        number, place, bus = re.findall(rf"(buffer \d+) {kind}(?: at 0x(\w+))? bus 0x(\w+)$", log, re.M)[-1]
        assert (buffer.device, buffer.label, buffer.pid) == (device.address, number, pid)
        assert (buffer.size, buffer.bus) == (1500, int(bus, 16))
        assert buffer.phys == int(place or bus, 16)
        assert buffer.phys is not None
        assert sum(size for _, size in buffer.extents) == 1500
        if buffer.address:
            assert edu_guest.kernel.virt_to_phys(buffer.address) == buffer.phys
        if kind != "stale":  # its slots were given back when it was let go of: the bytes stay in them
            assert edu_guest.read_phys(buffer.phys, 13) == b"edu was here "


def test_the_bounces_of_a_book(edu_guest: Guest, buffers: dict[str, tuple[int, DmaBuffer]]) -> None:
    """Those that are mapped go through swiotlb, as the kernel counts its slots; a stale one is unmapped."""
    used = int(edu_guest.run(f"cat {_DEBUG}/io_tlb_used").stdout)
    bounces = {each.bus: each for each in edu_guest.dma_buffers() if each.kind == "bounce"}
    assert len(bounces) == used == 3
    found = edu_guest.swiotlb()
    assert found
    for kind in ("pages", "kmalloc", "pinned"):
        _, buffer = buffers[kind]
        bounce = bounces[buffer.bus]
        assert (bounce.device, bounce.size, bounce.pid) == (buffer.device, 1500, buffer.pid)
        assert bounce.phys is not None
        assert int(bounce.phys) == bounce.bus == buffer.bus
        assert buffer.phys in {each.origin for each in found.bounces} - {bounce.phys}
        assert edu_guest.read_phys(bounce.phys, 13) == b"edu was here "


def test_a_transfer_under_way(edu_guest: Guest, buffers: dict[str, tuple[int, DmaBuffer]]) -> None:
    pid = edu_guest.spawn("/labs/dma pages 2048 100000")
    seen: set[str | None] = set()
    counts: list[int] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not {"to RAM", "from RAM"} <= seen:
        for each in edu_guest.dma_buffers():
            if each.pid == pid and each.source == "edu":
                seen.add(each.transfer)
                counts.append(each.transfers or 0)
        time.sleep(0.03)
    edu_guest.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.05; done")
    assert {"to RAM", "from RAM"} <= seen
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert all(each.pid != pid for each in edu_guest.dma_buffers())


def test_frames(edu_guest: Guest, buffers: dict[str, tuple[int, DmaBuffer]]) -> None:
    """The frames under a buffer: a pinned page is its owner's, by the owner's own pagemap."""
    pid, buffer = buffers["pinned"]
    (frame,) = buffer.frames(_PAGE).tolist()
    entry = int(edu_guest.run(f"cat /tmp/spawn-{pid}.log").stdout.split()[2], 16)
    assert frame == entry & (1 << 55) - 1
    assert edu_guest.page(Pfn(frame)).refcount > 1024  # GUP_PIN_COUNTING_BIAS
