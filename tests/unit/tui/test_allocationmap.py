"""Where cells of the maps of allocations light up: places are computed by hand."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from inspector.kernel.zones import Watermarks, Zone
from inspector.trace import Allocation
from inspector.trace.ledger import FREED, Holdings
from inspector.tui import palette
from inspector.tui.tracing import Watched
from inspector.tui.widgets.allocationmap import MapData, block_text, map_text
from inspector.units import Pfn, VirtAddr

MOVABLE, UNMOVABLE = 2, 1
FRAMES = 4096


def zone(name: str, start: int, pages: int) -> Zone:
    return Zone(
        node=0, index=0, name=name, start_pfn=Pfn(start), spanned=pages, present=pages, managed=pages,
        free=0, watermarks=Watermarks(1, 2, 3, 0), lowmem_reserve=(), free_by_order=(), per_cpu=(),
        address=VirtAddr(0),
    )  # fmt: skip


WATCHED = Watched(
    0, "", None, "", (zone("DMA", 1, 1023), zone("Normal", 1024, 3072)), np.ones(8, np.uint8), 9,
    ("Unmovable", "Movable"), 4096,
)  # fmt: skip


def data(frames: dict[int, int], record: Allocation | None = None) -> MapData:
    """These frames are known."""
    known = np.zeros(8192, np.uint8)
    for pfn, kind in frames.items():
        known[pfn] = kind
    return MapData(Holdings(0, 0, 0, 0, 0, (), known), WATCHED, record)


def record(pfn: int, order: int) -> Allocation:
    return Allocation(1, False, Pfn(pfn), order, 0xCC0, (), 1, 1, "a", 0, ())


def cells(text: Text, columns: int) -> list[str]:
    """The colour of each cell: lines hold two rows, the upper in the foreground."""
    found = [
        str(span.style).split(" on ")
        for span in text.spans
        if text.plain[span.start] == "▀"
        for _ in range(span.start, span.end)
    ]
    lines = [found[at : at + columns] for at in range(0, len(found), columns)]
    return [pair[half] for line in lines for half in (0, 1) for pair in line]


def test_all_of_memory() -> None:
    """73 cells wide are 64 columns; two lines of them 256 cells of 16 frames."""
    text = map_text(data({0x900: MOVABLE, 0xB00: UNMOVABLE, 0xB01: FREED, 0x777: FREED}), 73, 3)
    assert "a cell is 64 KiB" in text.plain
    assert "1 unmovable  ██ 1 movable  ██ 2 freed pages" in text.plain
    found = cells(text, 64)
    assert len(found) == 256
    dark, other = found[0], found[-1]
    assert dark != other, "one zone is told from the next"
    assert found[63] == dark
    assert found[64] == other
    assert {cell for cell, color in enumerate(found) if color not in (dark, other)} == {0x90, 0xB0, 0x77}
    assert found[0x77] == palette.GONE
    assert found[0x90] != found[0xB0]


def test_more_pages_are_brighter() -> None:
    few = cells(map_text(data({0x900: MOVABLE}), 73, 3), 64)[0x90]
    many = cells(map_text(data(dict.fromkeys(range(0x900, 0x910), MOVABLE)), 73, 3), 64)[0x90]
    assert many == palette.MIGRATETYPES[1].color
    assert sum(bytes.fromhex(few[1:])) < sum(bytes.fromhex(many[1:]))


def test_what_most_of_a_cell_is_held_as() -> None:
    frames = {0x900: UNMOVABLE, 0x901: MOVABLE, 0x902: MOVABLE, 0x903: FREED}
    mixed = cells(map_text(data(frames), 73, 3), 64)[0x90]
    of_one = [
        cells(map_text(data(dict.fromkeys(range(0x900, 0x903), kind)), 73, 3), 64)[0x90] for kind in (1, 2)
    ]
    assert mixed == of_one[1]


def test_the_cursor_covers_a_block() -> None:
    found = cells(map_text(data({}, record(0x900, 6)), 73, 3), 64)
    assert [cell for cell, color in enumerate(found) if color == palette.CURSOR] == [0x90, 0x91, 0x92, 0x93]


def test_a_cursor_past_all_zones() -> None:
    found = cells(map_text(data({}, record(0x5000, 0xFFFFFFFF)), 73, 3), 64)
    assert palette.CURSOR not in found


def test_a_pageblock() -> None:
    """512 frames in four lines of 64 columns: a cell each; in two lines two."""
    known = data({0x900: MOVABLE, 0x9FF: FREED, 0x7FF: MOVABLE, 0xA00: MOVABLE}, record(0x903, 0))
    text = block_text(known, 80, 64, 4, title=True)
    assert text.plain.startswith("Pageblock 0x800 Movable, a cell is 4 KiB")
    found = cells(text, 64)
    assert len(found) == 512
    assert found[0x100] == palette.MIGRATETYPES[1].color
    assert found[0x103] == palette.CURSOR
    assert found[0x1FF] == palette.GONE
    assert len({*found}) == 4
    assert len(cells(block_text(known, 80, 64, 2, title=False), 64)) == 256


def test_a_wide_map_fits_its_place() -> None:
    for width, lines in ((42, 12), (62, 30), (200, 50), (20, 3)):
        text = map_text(data({0x900: MOVABLE}), width, lines)
        rows = text.plain.split("\n")
        assert len(rows) <= lines
        assert all(len(row) <= width for row in rows)
