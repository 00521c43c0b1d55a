"""A guest that is put back: what it knows of the kernel still holds, and its own /proc agrees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inspector
from inspector import Guest
from inspector.errors import GuestDied, MachineError
from inspector.images.manifest import manifest
from inspector.machine import LocalMachine, serve
from inspector.units import Pfn

pytestmark = pytest.mark.guest

_TRIES = 5
KERNELS = [("debian-5.10", False), ("debian-6.1", False), ("debian-6.12", True), ("debian-7.2", True)]


@pytest.fixture(scope="module", params=KERNELS, ids=[f"{kernel}{'-la57' * la57}" for kernel, la57 in KERNELS])
def own(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of the test's own that was put back after some use."""
    kernel, la57 = request.param
    with boot_guest(kernel, "512M", 2, la57=la57) as guest:
        before = guest.info().kaslr_offset
        guest.spawn("/labs/touch 64M")
        guest.run("dd if=/dev/zero of=/tmp/file bs=1M count=32; sync").check()
        guest.tasks()
        guest.frames()
        guest.restore()
        assert guest.info().kaslr_offset == before
        yield guest


def test_the_witness_agrees(own: Guest, witness: Callable[..., Any]) -> None:
    """Free blocks and init's mappings, read between two readings of the guest's own."""

    def ours() -> tuple[Any, list[tuple[int, int]]]:
        return own.buddy(), [(vma.start, vma.end) for vma in own.task(1).vmas()]

    for _ in range(_TRIES):
        said, (buddy, vmas) = witness(own, ["/proc/buddyinfo", "/proc/1/maps"], ours)
        counts = {free.zone: free.counts.sum(axis=0).tolist() for free in buddy}
        agreed = [line.partition("zone")[2].split() for line in said.agreed_lines("/proc/buddyinfo") if line]
        wrong = {zone: theirs for zone, *theirs in agreed if [int(n) for n in theirs] != counts[zone]}
        if agreed and not wrong:  # a worker may have taken a page, and given it back
            break
    else:
        pytest.fail(f"said: {wrong}; we found: {counts}")
    ranges = [line.split()[0].split("-") for line in said.text("/proc/1/maps").splitlines()]
    listed = [(int(start, 16), int(end, 16)) for start, end in ranges if not start.startswith("ffff")]
    assert [vma for vma in vmas if vma in listed] == listed


def test_what_was_there_is_gone(own: Guest) -> None:
    assert not any(task.comm == "touch" for task in own.tasks())
    assert own.run("ls /tmp/file").returncode
    pid = own.spawn("/labs/touch 8M --no-thp")
    task = own.task(pid)
    own.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done").check()
    assert task.mappings().size >= 2048


@pytest.mark.parametrize("kernel", manifest().loaded_into)
def test_a_driver_finds_its_device(kernel: str, boot_guest: Callable[..., Guest]) -> None:
    """QEMU does not migrate edu: it must be there all the same, with its interrupt and its DMA."""
    with boot_guest(kernel, "512M", 2) as guest:
        for _ in range(2):
            assert not any(module.name == "edu" for module in guest.modules())
            guest.load_module("edu")
            pid = guest.spawn("/labs/dma coherent")
            guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done").check()
            assert "came" in guest.run(f"cat /tmp/spawn-{pid}.log").stdout
            guest.restore()


def test_after_a_panic(boot_guest: Callable[..., Guest]) -> None:
    with boot_guest("debian-6.1", "512M", 2) as guest:
        page = guest.page(Pfn(0x1000))
        with pytest.raises(GuestDied):
            guest.run("echo c > /proc/sysrq-trigger; sleep 60", timeout=60)
        guest.restore()
        assert guest.page(Pfn(0x1000)).owner == page.owner
        assert guest.run("echo back").stdout == "back\n"


def test_where_it_cannot_be(boot_guest: Callable[..., Guest]) -> None:
    name = f"held-{os.getpid()}"
    with boot_guest("debian-6.1", "512M", 2, name=name) as guest:
        with guest.paused(), pytest.raises(MachineError, match=r"inside paused\(\)"):
            guest.restore()
        assert isinstance(guest.machine, LocalMachine)
        with serve(guest.machine), inspector.attach(name) as other:
            with pytest.raises(MachineError, match="only who booted a guest can put it back"):
                other.restore()
            guest.run("echo here > /tmp/file").check()
            guest.restore()
            assert other.run("ls /tmp/file").returncode
            assert {task.pid for task in other.tasks()} >= {1, 2}
