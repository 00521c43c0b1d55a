"""Guests of the matrix with something in them that several modules look at."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import pytest

from inspector import Guest
from inspector.arch import AddressSpace
from inspector.memory import MappedRam
from inspector.symbols import Kernel


def _private_copy(guest: Guest) -> Kernel:
    """The guest's kernel over a copy of its memory, to write to: the guest, to be paused, sees none of it."""
    assert guest.machine.ram_fd is not None
    copy = mmap.mmap(guest.machine.ram_fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    real = guest.kernel
    memory = MappedRam(copy, guest.memory.blocks)
    space = AddressSpace(memory, real.space.format, real.space.root)
    return Kernel(memory, space, real.symbols, real.types, real.vmcoreinfo)


@pytest.fixture(scope="session")
def private_copy() -> Callable[[Guest], Kernel]:
    """What makes a kernel over a copy of a guest's memory."""
    return _private_copy


@pytest.fixture(scope="module")
def swapping_guest(any_guest: Guest) -> Iterator[Guest]:
    """A guest that swaps to zram."""
    any_guest.run("echo 64M >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0").check()
    yield any_guest
    any_guest.run("swapoff /dev/zram0 && echo 1 >/sys/block/zram0/reset").check()
