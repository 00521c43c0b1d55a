"""Allocations drawn: who holds how much, and a record with its stack."""

from __future__ import annotations

from rich.text import Text

from inspector.trace import Allocation
from inspector.trace import telling as tell
from inspector.trace.ledger import Holdings
from inspector.tui import palette
from inspector.tui.tracing import Watched
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.units import format_size, printable

_PLACE = 25  # cells at least for a function and its offset
_SIZED = 50  # cells from which on bytes are told beside pages
_NAME = 24  # cells of a caller's name


def amount(pages: int, page_size: int) -> str:
    """`12 pages (48 KiB)`."""
    return f"{pages} page{'s' if pages != 1 else ''} ({format_size(pages * page_size)})"


def size(record: Allocation, page_size: int) -> str:
    """Its pages in bytes."""
    return format_size(page_size << min(record.order, 40))


class Holders(Drawing):
    """Who holds how much: a bar a caller, its bright part what is held, the rest what was freed."""

    def __init__(self, id: str, most: int) -> None:
        """At most so many lines of callers."""
        super().__init__(id=id)
        self._most = most
        self._holdings: Holdings | None = None
        self._page_size = 1

    def show(self, holdings: Holdings, page_size: int) -> None:
        """The sums so far."""
        self._holdings, self._page_size = holdings, page_size
        self.redraw()

    def draw(self, width: int) -> Text:
        """A line a caller."""
        if self._holdings is None:
            return Text()
        return holders_text(self._holdings, self._page_size, width, self._most)


def holders_text(holdings: Holdings, page_size: int, width: int, most: int) -> Text:
    """Who holds most first; those past so many are summed up."""
    text = Text()
    heading(text, "Who holds", width, "pages, of all that it allocated")
    rows = holdings.holders
    longest = max((row.allocated for row in rows), default=1)
    sized = width >= _SIZED
    name = min(_NAME, width // 2 - 2)
    room = max(4, width - name - (24 if sized else 15))
    for index, row in enumerate(rows[:most]):
        full = max(1, round(room * row.allocated / longest))
        bright = min(full, -(-full * row.held // max(row.allocated, 1)))
        line = Text(no_wrap=True)
        line.append(printable(row.name)[: name - 1].ljust(name), palette.FOREGROUND)
        line.append("█" * bright, palette.ACCENT).append("█" * (full - bright), palette.GONE)
        line.append(" " * (room - full + 1))
        line.append(f"{row.held:>5}", f"bold {palette.FOREGROUND}")
        line.append(f" of {row.allocated:<5}", palette.DIM)
        line.append(f"{format_size(row.held * page_size):>9}" if sized else "", palette.DIM)
        line.truncate(width, overflow="ellipsis")
        text.append("\n" if index else "").append_text(line)
    if len(rows) > most:
        held = sum(row.held for row in rows[most:])
        text.append(f"\nand {len(rows) - most} more callers: {amount(held, page_size)}", palette.DIM)
    elif not rows:
        text.append("nobody yet", palette.DIM)
    return text


class AllocationPicture(Drawing):
    """The record under the cursor, and its stack unfolded."""

    def __init__(self) -> None:
        super().__init__(id="allocation-picture")
        self._record: Allocation | None = None
        self._other: Allocation | None = None
        self._watched: Watched | None = None
        self._lines = 6

    def show(
        self, record: Allocation | None, other: Allocation | None, watched: Watched | None, lines: int
    ) -> None:
        """A record, its other half, where memory lies; the stack in so many lines."""
        self._record, self._other, self._watched, self._lines = record, other, watched, lines
        self.redraw()

    def draw(self, width: int) -> Text:
        """The same height whichever record it is, so that the list stays where it is."""
        text = Text()
        if self._record is not None:
            text = record_text(self._record, self._other, self._watched, width, self._lines)
        return text.append("\n" * max(0, self._lines + 2 - text.plain.count("\n")))


def record_text(
    record: Allocation, other: Allocation | None, watched: Watched | None, width: int, lines: int
) -> Text:
    """What came or went, why, and by whom; the stack in columns of so many lines."""
    text = Text()
    page_size = watched.page_size if watched else 4096
    what = "freed" if record.freed else "allocated"
    pages = amount(1 << min(record.order, 40), page_size)
    who = f"by {record.comm} ({record.pid}) on CPU {record.cpu}"
    heading(text, f"#{record.number} {what} PFN {record.pfn:#x}, {pages}", width, who)
    facts = [_facts(record, other, watched), _flags(record, watched)]
    for line in facts:
        line.truncate(width, overflow="ellipsis")
        text.append_text(line).append("\n")
    return text.append_text(_stack(record, width, lines))


def _facts(record: Allocation, other: Allocation | None, watched: Watched | None) -> Text:
    text = Text.assemble(("order ", palette.DIM), str(record.order))
    if watched and (zone := watched.zone(record.pfn)):
        text.append(" · zone ", palette.DIM).append(zone, palette.FOREGROUND)
    if watched and (kind := watched.kept_for(record.pfn)):
        text.append(" · pageblock ", palette.DIM).append(kind, palette.FOREGROUND)
    if other is not None:
        word = "allocated as" if record.freed else "freed as"
        text.append(f" · {word} ", palette.DIM).append(f"#{other.number}", f"bold {palette.FOREGROUND}")
        text.append(f" by {tell.caller(other)} ", palette.FOREGROUND).append("(o)", palette.DIM)
    elif record.freed:
        text.append(" · held from before", palette.DIM)
    else:
        text.append(" · held", f"bold {palette.GOOD}")
    return text


def _flags(record: Allocation, watched: Watched | None) -> Text:
    if record.gfp is None or record.migratetype is None:
        return Text("a free has no GFP flags", palette.DIM)
    look = palette.MIGRATETYPES[record.migratetype]
    text = Text.assemble((f" {look.name} ", f"{palette.BACKGROUND} on {look.color}"), " ")
    text.append(" ".join(record.gfp_names) or "no flags", palette.FOREGROUND)
    return text.append(f"  gfp {record.gfp:#x}", palette.DIM)


def _stack(record: Allocation, width: int, lines: int) -> Text:
    """From the page allocator outwards, down the columns; the one that called the allocator stands out."""
    frames, first = record.stack, tell.inner(record)
    columns = 1
    while -(-len(frames) // columns) > lines and width // (columns + 1) >= _PLACE:
        columns += 1
    rows = max(1, min(lines, -(-len(frames) // columns)))
    each = width // columns
    shown = frames[: rows * columns - (len(frames) > rows * columns)]
    cells = [_place(frame.place, index, first, each) for index, frame in enumerate(shown)]
    if len(shown) < len(frames):
        cells.append(Text(f"  and {len(frames) - len(shown)} more".ljust(each)[:each], palette.DIM))
    text = Text()
    for row in range(min(rows, len(cells))):
        text.append("\n" if row else "")
        for cell in cells[row::rows]:
            text.append_text(cell)
    return text


def _place(place: str, index: int, first: int, width: int) -> Text:
    name, plus, offset = printable(place).partition("+")
    here = index == first
    color = f"bold {palette.WARN}" if here else palette.DIM if index < first else palette.FOREGROUND
    cell = Text.assemble(("▶ " if here else "  ", color), (name, color), (plus + offset, palette.DIM))
    cell.truncate(width - 1, overflow="ellipsis")
    return cell.append(" " * (width - cell.cell_len))
