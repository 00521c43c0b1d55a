"""Memory for DMA: atomic pools, bounce buffers and CMA as the kernel told of them, pools as sysfs does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from inspector import Guest
from inspector.kernel import cma, dma

pytestmark = pytest.mark.guest

_PAGE = 4096


@pytest.fixture(scope="module", params=["debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"])
def dma_guest(request: pytest.FixtureRequest, boot_guest: Any) -> Iterator[Guest]:
    """A guest with forced bounce buffers, and 16 MiB for CMA where the kernel has it."""
    with boot_guest(request.param, "512M", 2, cmdline="swiotlb=force cma=16M") as guest:
        yield guest


def test_atomic_pools(dma_guest: Guest) -> None:
    """What the kernel said at boot of each: DMA: preallocated 128 KiB GFP_KERNEL|GFP_DMA pool."""
    said = re.findall(r"DMA: preallocated (\d+) KiB GFP_KERNEL(\S*) pool", dma_guest.run("dmesg").stdout)
    names = {"": "atomic_pool_kernel", "|GFP_DMA": "atomic_pool_dma", "|GFP_DMA32": "atomic_pool_dma32"}
    theirs = {names[flags]: int(kib) << 10 for kib, flags in said}
    with dma_guest.paused():
        pools = dma.atomic_pools(dma_guest.kernel)
        assert pools is not None
        for pool in pools:
            for chunk in pool.chunks:
                assert dma_guest.kernel.virt_to_phys(chunk.start) == chunk.phys
                assert 0 < chunk.free <= chunk.size
    assert len(theirs) >= 2
    assert {pool.name: pool.size for pool in pools} == theirs


def test_bounce_buffer(dma_guest: Guest) -> None:
    debug = "/sys/kernel/debug/swiotlb"
    slots, used = (int(dma_guest.run(f"cat {debug}/io_tlb_{name}").stdout) for name in ("nslabs", "used"))
    buffer = dma_guest.bounce_buffer()
    assert buffer is not None
    assert (buffer.slots, buffer.used) == (slots, used)
    assert buffer.end - buffer.start == slots * 2048
    if said := re.search(r"software IO TLB: mapped \[mem (\S+)-(\S+)\]", dma_guest.run("dmesg").stdout):
        assert buffer.start == int(said[1], 16)


def test_device_pools(dma_guest: Guest) -> None:
    """NAME USED BLOCKS SIZE PAGES; the guest has no device that asks for a pool, and we find none either."""
    listing = dma_guest.run(
        "for each in $(find /sys/devices -name pools); do"
        ' tail -n +2 $each | sed "s/^/$(basename $(dirname $each)) /"; done'
    ).stdout
    theirs = sorted(re.findall(r"^(\S+) (.{16}) +(\d+) +(\d+) +(\d+) +(\d+)$", listing, re.MULTILINE))
    pools = dma.device_pools(dma_guest.kernel)
    ours = sorted(
        (
            pool.device,
            f"{pool.name:16}",
            *(str(number) for number in (pool.used, pool.blocks, pool.size, len(pool.pages))),
        )
        for pool in pools
    )
    assert ours == theirs


def test_cma(dma_guest: Guest) -> None:
    """Debian builds CMA in the newest kernels only; there the kernel said where it put it."""
    areas = cma.cma_areas(dma_guest.kernel)
    said = re.search(r"cma: Reserved 16 MiB at (0x[0-9a-f]+)", dma_guest.run("dmesg").stdout)
    if not said:
        assert areas is None
        return
    assert areas is not None
    (area,) = areas
    (run,) = area.ranges
    assert run.start * _PAGE == int(said[1], 16)
    assert area.pages * _PAGE == 16 << 20
    total = dma_guest.run("grep CmaTotal /proc/meminfo").stdout
    assert area.pages * 4 == int(total.split()[1])
    free = dma_guest.run("cat /sys/kernel/mm/cma/*/available_pages")
    if not free.returncode:
        assert area.pages - area.used == int(free.stdout)
