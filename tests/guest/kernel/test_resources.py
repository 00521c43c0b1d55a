"""The resource tree against /proc/iomem."""

from __future__ import annotations

from typing import Any

import pytest

from inspector import Guest
from inspector.kernel import resources

pytestmark = pytest.mark.guest


def test_agrees_with_iomem(any_guest: Guest, witness: Any) -> None:
    path = "/proc/iomem"
    witnessed, ours = witness(any_guest, [path], lambda: resources.iomem(any_guest.kernel))
    assert witnessed.same(path)
    assert [str(resource) for resource in ours] == witnessed.text(path).splitlines()
    assert sum(each.name == "System RAM" for each in ours) > 1


def test_the_tree(any_guest: Guest) -> None:
    """What is inside lies inside, and flags tell RAM from devices."""
    found = resources.iomem(any_guest.kernel)
    for each in found:
        if each.parent is not None:
            parent = found[each.parent]
            assert parent.start <= each.start < each.end <= parent.end
            assert parent.depth == each.depth - 1
    assert {each.name for each in found if "SYSRAM" in each.flag_names} >= {"System RAM", "Kernel code"}
    (code,) = (each for each in found if each.name == "Kernel code")
    assert code.start == any_guest.kernel.virt_to_phys(any_guest.symbol("_text"))
