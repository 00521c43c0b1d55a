"""The report: JSON as documented, drawings that hold their numbers, names that cannot reach a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inspector.cli import report_view
from inspector.cli.report import gather
from inspector.kernel.frames import FrameState

Kmi = Callable[..., Any]

ESC_NAME = "[red]x\x1b[2J"


def zone(free: int, low: int = 20, high: int = 30) -> Any:
    return SimpleNamespace(
        free=free, managed=100, watermarks=SimpleNamespace(min=10, low=low, high=high), free_by_order=()
    )


def test_json(kmi: Kmi, fake: Any) -> None:
    done = kmi("report", "--json")
    assert done.status == 0
    data = json.loads(done.out)
    assert list(data) == [
        "read_stopped",
        "page_size_bytes",
        "guest",
        "cpus",
        "zones",
        "free_blocks",
        "frames",
        "owners",
        "tasks",
        "dma",
    ]
    assert data["read_stopped"] is True
    assert data["guest"]["memory_bytes"] == 1 << 20
    assert data["guest"]["kaslr_offset"] == "0x3000000"
    assert data["cpus"][0] | {"symbol": "init_task+0x0", "cr3": "0x1001", "root": "0x1000"} == data["cpus"][0]
    assert data["cpus"][1]["symbol"] is None
    assert [zone["name"] for zone in data["zones"]] == ["DMA32"]
    assert data["zones"][0]["watermark_low_pages"] == 20
    assert data["zones"][0]["free_blocks_by_order"] == [2, 0, 12]
    assert data["free_blocks"][0]["by_migratetype_and_order"] == {
        "Unmovable": [2, 0, 5],
        "Movable": [0, 0, 7],
    }
    assert data["owners"]["anon"] == {"frames": 56, "bytes": 56 * 4096}
    assert data["frames"]["free"] == {"frames": 184, "bytes": 184 * 4096}
    assert data["frames"]["hole"]["frames"] == 16
    assert [task["pid"] for task in data["tasks"]] == [1, 2, 7]
    assert data["tasks"][0]["rss_bytes"] == 12288
    assert data["tasks"][1]["rss_bytes"] is None
    assert data["dma"] == {
        "pci_devices": 1,
        "drivers": {"0000:00:01.0": ESC_NAME},
        "buffers": 2,
        "buffers_bytes": 3072 + 4096,
        "swiotlb_bytes": 16384,
        "swiotlb_used_slots": 2,
    }
    assert (fake.closed, fake.pauses) == (1, 1)


def test_live_does_not_stop_the_guest(kmi: Kmi, fake: Any) -> None:
    data = json.loads(kmi("report", "--json", "--live").out)
    assert data["read_stopped"] is False
    assert fake.pauses == 0
    assert fake.live is False


def test_a_paused_guest_read_live_is_whole(fake: Any) -> None:
    fake.running = False
    assert gather(fake, live=True).read_stopped is True


def test_live_is_put_back_after_an_error(fake: Any) -> None:
    fake.zones = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        gather(fake, live=True)
    assert fake.live is False


def test_drawn(kmi: Kmi) -> None:
    out = kmi("report").out
    assert max(map(len, out.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in out.splitlines())
    for text in ("6.1.0-test", "init_task+0x0", "0x401234 (CPL 3)", "0x3000 (user)", "TCG was asked for"):
        assert text in out
    assert "400 KiB  200 KiB" in out
    assert "40K/80K/120K" in out
    assert "stopped while it was read" in out
    assert "2 buffers known for DMA (7 KiB), swiotlb 16 KiB" in " ".join(out.split())


def test_kernel_threads_are_counted_or_listed(kmi: Kmi) -> None:
    short, whole = kmi("report").out, kmi("report", "--all").out
    assert "kthreadd" not in short
    assert "and 1 kernel threads" in short
    assert "kthreadd" in whole


def test_hostile_names_show_literally(kmi: Kmi) -> None:
    out = kmi("report").out
    assert "\x1b" not in out
    assert "[red]x\\x1b[2J" in out


@pytest.mark.parametrize(
    ("free", "cells", "style"),
    [
        (100, "█|||██████", "green"),
        (50, "█|||█░░░░░", "green"),
        (25, "█|||░░░░░░", "yellow"),
        (5, "░|||░░░░░░", "red"),
    ],
)
def test_zone_bar(free: int, cells: str, style: str) -> None:
    bar = report_view.zone_bar(zone(free), width=10)
    assert bar.plain == cells
    assert style in {str(span.style) for span in bar.spans}


def test_marks_of_a_small_zone_stand_side_by_side() -> None:
    assert report_view.zone_bar(zone(100, low=11, high=12), width=10).plain == "█|||██████"


def test_majority_counts_by_runs() -> None:
    free, anon, slab = FrameState.FREE, FrameState.ANON, FrameState.SLAB
    states = np.array([free, free, anon, slab, slab, free, anon], np.uint8)
    assert report_view.majority(states, 3).tolist() == [free, slab, anon]
    assert report_view.majority(states, 100).tolist() == states.tolist()


def test_strip_needs_no_colour() -> None:
    assert report_view.strip(np.arange(len(FrameState), dtype=np.uint8)).plain == " R.:STAFK"
