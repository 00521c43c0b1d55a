"""Guests of the matrix with something in them that several modules look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inspector import Guest


@pytest.fixture(scope="module")
def swapping_guest(any_guest: Guest) -> Iterator[Guest]:
    """A guest that swaps to zram."""
    any_guest.run("echo 64M >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0").check()
    yield any_guest
    any_guest.run("swapoff /dev/zram0 && echo 1 >/sys/block/zram0/reset").check()
