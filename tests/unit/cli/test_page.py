"""One frame, drawn and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Kmi = Callable[..., Any]


def test_json(kmi: Kmi) -> None:
    data = json.loads(kmi("page", "0xc8", "--json").out)
    assert data["pfn"] == 200
    assert data["phys"] == "0xc8000"
    assert data["state"] == "anon"
    assert data["struct_page"] == hex(0xFFFF_EA00_0000_0000 + 64 * 200)
    assert data["flag_names"] == ["uptodate", "head"]
    assert (data["refcount"], data["mapcount"], data["head"], data["order"]) == (3, 2, 199, 3)
    assert data["read_stopped"] is True
    assert data["owner"] == "anon"
    assert data["owner_label"].endswith("(7)")
    assert (data["charge"], data["memory_group"], data["migratetype"]) == ("user", "/lab", "Movable")
    assert [(alias["pid"], alias["va"]) for alias in data["mapped_by"]] == [
        (7, "0x7000"),
        (None, "0xffffffff81000040"),
    ]
    assert [(alias["count"], alias["stride_bytes"]) for alias in data["mapped_by"]] == [(1, 0), (3, 2 << 20)]
    assert data["cache_modes"] == ["UC", "WB"]


def test_drawn(kmi: Kmi) -> None:
    out = kmi("page", "200").out
    assert out.startswith("PFN 200 (0xc8), physical 0xc8000 to 0xc8fff\n")
    for text in (
        "anon, zone DMA32 of node 0",
        "/lab, as user memory",
        "Movable",
        "anon: [red]x\\x1b[2J (7)",
        "direct map",
        "differ in their cache attributes (PAT, PCD, PWT): UC, WB.",
        "to 0xffffffff81400040",
        "3 times",
        "2 MiB apart",
        "uptodate head",
        "0xffff888000001230 (anon)",
        "order 3: 32 KiB",
    ):
        assert text in out
    assert "begins at PFN 199 (0xc7)" in out
    assert "+0x00" not in out


def test_hundreds_of_tasks_are_not_all_drawn(kmi: Kmi, fake: Any) -> None:
    aliases = fake.mapped_by(200) * 100
    fake.mapped_by = lambda pfn: aliases
    out = kmi("page", "200").out
    assert out.count("direct map") == 25
    assert "and 150 more, which --json has" in out


def test_verbose_shows_the_bytes(kmi: Kmi) -> None:
    lines = kmi("page", "200", "-v").out.splitlines()
    assert lines[-4].split() == ["+0x00", "0706050403020100", "0f0e0d0c0b0a0908"]
    assert lines[-1].split() == ["+0x30", "3736353433323130", "3f3e3d3c3b3a3938"]


def test_a_page_type_instead_of_a_mapcount(kmi: Kmi, fake: Any) -> None:
    page = fake.page(200)
    page.mapcount, page.page_type = None, "table"
    fake.page = lambda pfn, owners: page
    assert "none: the word holds the page type table" in kmi("page", "200").out


def test_no_struct_page(kmi: Kmi) -> None:
    done = kmi("page", "256")
    assert done.status == 2
    assert done.error == "PFN 0x100 has no struct page; this guest has 0x0-0xff"
