"""`kmi devices`: JSON as documented, and a drawing that holds its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Kmi = Callable[..., Any]


def test_json(kmi: Kmi, fake: Any) -> None:
    data = json.loads(kmi("devices", "--json").out)
    assert list(data) == ["read_stopped", "page_size_bytes", "devices", "buffers", "swiotlb"]
    assert (data["read_stopped"], fake.pauses, fake.closed) == (True, 1, 1)
    (device,) = data["devices"]
    assert (device["vendor"], device["device"], device["class"]) == ("0x1234", "0x11e8", "0x10802")
    assert (device["class_name"], device["irq"], device["interrupts"]) == ("NVM controller", 24, "MSI")
    assert device["dma"] == {
        "mask": "0xfffffff",
        "coherent_mask": "0xffffffffffffffff",
        "bus_limit": None,
        "ops": "direct",
        "max_segment_bytes": 65536,
        "segment_boundary_mask": "0xffffffff",
        "min_align_mask": None,
    }
    first, second = device["bars"]
    assert (first["start"], first["size_bytes"], first["kind"]) == ("0xfea00000", 8192, "MEM")
    assert (first["is_64_bit"], first["prefetchable"]) == (True, True)
    assert (second["start"], second["kind"]) == (None, "IO")
    assert device["managed"] == [{"release": "pcim_release", "bytes": None}]
    buffer, unknown = data["buffers"]
    assert buffer["extents"] == [
        {"phys": "0x7800", "size_bytes": 2048},
        {"phys": "0x9000", "size_bytes": 1024},
    ]
    assert (buffer["pfns"], buffer["bus"], buffer["size_bytes"]) == ([7, 9], "0x5800", 3072)
    assert (buffer["transfer"], buffer["device_transfers"], buffer["pid"]) == ("to RAM", 12, 7)
    assert (unknown["device"], unknown["bus"], unknown["pfns"]) == (None, None, [])
    assert data["swiotlb"] == {
        "start": "0x4000",
        "size_bytes": 16384,
        "slots": 8,
        "used_slots": 2,
        "forced": True,
        "mappings": [{"start": "0x5800", "slots": 2, "origin": "0x7800", "size_bytes": 3072}],
    }


def test_drawn(kmi: Kmi) -> None:
    out = kmi("devices").out
    flat = " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    for text in (
        "0000:00:01.0 1234:11e8 NVM controller, driver [red]x\\x1b[2J of module m",
        "28 bits, to 256 MiB; coherent 64 bits, all memory; direct; segments to 64 KiB",
        "MSI 24, enabled, bus master",
        "memory 0xfea00000 to 0xfea01fff, 8 KiB, 64-bit, prefetchable",
        "32 B, without a place",
        "1: pcim",
        "pages [red]x\\x1b[2J 0x5800 0x7800+ 3 KiB edu to RAM",
        "16 KiB at 0x4000: 2 of 8 slots of 2 KiB in use, for every mapping (swiotlb=force)",
        "not known",
    ):
        assert text in flat
    assert "\x1b" not in out


def test_without_swiotlb(kmi: Kmi, fake: Any) -> None:
    fake.swiotlb = lambda: None
    assert json.loads(kmi("devices", "--json").out)["swiotlb"] is None
    assert "none: what a device does not reach is refused" in kmi("devices").out
