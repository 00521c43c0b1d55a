"""Pageblocks' migratetypes against /proc/pagetypeinfo, which counts them zone by zone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel import buddy, pageblocks

pytestmark = pytest.mark.guest

_PATH = "/proc/pagetypeinfo"
_TRIES = 5


def test_blocks_of_each_type(any_guest: Guest, witness: Any) -> None:
    """Each zone's blocks are counted from its first PFN on, wherever in a block that lies."""
    for _ in range(_TRIES):
        witnessed, (kinds, zones) = witness(
            any_guest, [_PATH], lambda: (pageblocks.migratetypes(any_guest.kernel), any_guest.zones())
        )
        text, later = (reading.decode() for reading in witnessed.readings[_PATH])
        table = text.partition("Number of blocks type")[2]  # above it are free blocks, which come and go
        if table == later.partition("Number of blocks type")[2]:
            break
    else:
        pytest.fail("the pageblocks never stood still")
    assert int(re.findall(r"Pages per block:\s+(\d+)", text)[0]) == 1 << pageblocks.order(any_guest.kernel)
    titles, *lines = table.splitlines()
    names = buddy.migratetypes(any_guest.kernel)
    assert titles.split() == list(names)
    theirs = {}
    for line in lines:
        if found := re.match(r"Node (\d+), zone\s+(\S+)\s+(.*)", line):
            theirs[int(found[1]), found[2]] = [int(count) for count in found[3].split()]
    ours = {}
    for zone in zones:
        if zone.populated:
            firsts = np.arange(zone.start_pfn, zone.end_pfn, 1 << pageblocks.order(any_guest.kernel))
            blocks = kinds[firsts >> pageblocks.order(any_guest.kernel)]
            ours[zone.node, zone.name] = [int((blocks == kind).sum()) for kind in range(len(names))]
    assert ours == theirs
    assert sum(map(sum, theirs.values())) > 100
