"""The bench, run once, short, without a peer: that it measures what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.guest

PAGES_IN_A_GIB = 262144
SIZES = ("512M", "4G", "16G")
WHOLE = ("frames", "slab_objects", "reverse_map", "snapshot", "snapshot_diff")


def test_rows(host: Any) -> None:
    rows = {
        row["name"]: row for row in json.loads(host.run("bench", "--quick", "--no-peer", "--json").stdout)
    }
    whole = [f"{what}_{size}" for size in SIZES for what in WHOLE]
    assert list(rows) == [
        *("attach_cold_512M", "attach_cold_8G", "attach_warm_512M", "attach_warm_8G", "run_true"),
        *whole[:5],
        *("trace_faults", "trace_stops", "start", "restore", "screen"),
        *whole[5:],
        *("mappings", "walk", "zones_and_buddy"),
    ]
    assert PAGES_IN_A_GIB <= rows["mappings"]["count"] < PAGES_IN_A_GIB + 1000
    assert rows["frames_4G"]["count"] == 4 * PAGES_IN_A_GIB
    assert all(row["ours_s"] > 0 for row in rows.values())
    assert "% against 512 MiB" in rows["attach_warm_8G"]["note"]
    assert [name for name, row in rows.items() if row["floor_s"]] == [
        *("frames_512M", "snapshot_512M", "trace_stops", "screen"),
        *("frames_4G", "snapshot_4G", "frames_16G", "snapshot_16G", "mappings"),
    ]
    host.assert_clean()
