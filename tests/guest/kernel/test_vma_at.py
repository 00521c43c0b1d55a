"""The VMA at an address, against the list of all that other tests hold against /proc/PID/maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from inspector import Guest
from inspector.kernel import vmas
from inspector.kernel.vmas import Vma
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("kernel", ["debian-5.10", "debian-6.1", "debian-6.12"])
def test_every_vma_is_found_and_nothing_between(kernel: str, boot_guest: Callable[..., Guest]) -> None:
    with boot_guest(kernel, "256M", 1) as guest:
        pid = guest.spawn("/labs/maps")
        guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done", timeout=60).check()
        with guest.paused():
            task = guest.task(pid)
            assert task.mm is not None
            listed = [vma for vma in task.vmas() if vma.name != "[vsyscall]"]
            assert len(listed) > 50

            def at(address: int) -> Vma | None:
                assert task.mm is not None
                return vmas.find(task.mm, VirtAddr(address))

            for vma in listed:
                assert at(vma.start) == at(vma.end - 1) == vma
            for before, after in itertools.pairwise(listed):
                if before.end < after.start:
                    assert at(before.end) is None
                    assert at(after.start - 1) is None
            assert at(0) is None
            assert at((1 << 47) - 1) is None
