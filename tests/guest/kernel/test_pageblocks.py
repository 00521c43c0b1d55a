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


def test_blocks_of_each_type(any_guest: Guest, witness: Any) -> None:
    """Each zone's blocks are counted from its first PFN on, wherever in a block that lies."""
    witnessed, (kinds, zones) = witness(
        any_guest, [_PATH], lambda: (pageblocks.migratetypes(any_guest.kernel), any_guest.zones())
    )
    assert witnessed.same(_PATH)
    text = witnessed.text(_PATH)
    assert int(re.findall(r"Pages per block:\s+(\d+)", text)[0]) == 1 << pageblocks.order(any_guest.kernel)
    _, _, table = text.partition("Number of blocks type")
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
