"""A table of any length: only the lines on the screen are ever made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from inspector.tui import palette
from inspector.tui.widgets.drawing import Edge

Row = TypeVar("Row")

_GAP = 1


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column. `width` in cells, 0 takes what is left. Where room is short the highest `rank` goes first.

    Text is shown as it is, never read as markup.
    """

    title: str
    text: Callable[[Row], str]
    sort: Callable[[Row], Any]
    width: int
    right: bool = False
    color: Callable[[Row], str] | None = None
    rank: int = 0
    falls: bool = False  # sorted from the largest down at first
    least: int = 16  # the column without a width gets this much, or others go


class VirtualTable(ScrollView, Generic[Row], can_focus=True, inherit_bindings=False):
    """Rows sorted by a column and filtered by a text; the cursor stays on its row when the rows change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "cursor(-1)", "Up", show=False),
        Binding("down", "cursor(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "cursor(-1000000000)", "First", show=False),
        Binding("end", "cursor(1000000000)", "Last", show=False),
    ]
    DEFAULT_CSS = """
    VirtualTable { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    """

    class Moved(Message):
        """The cursor is on another row."""

        def __init__(self, table: VirtualTable[Any]) -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> VirtualTable[Any]:
            """The table."""
            return self.table

    class Chosen(Moved):
        """The row under the cursor was clicked again."""

    def __init__(
        self,
        columns: Sequence[Column[Row]],
        key: Callable[[Row], Hashable],
        search: Callable[[Row], str],
        *,
        sort: int | None = None,
        id: str | None = None,
    ) -> None:
        """`sort` is the column to sort by at first; None keeps the order of the rows."""
        super().__init__(id=id)
        self.columns = tuple(columns)
        self._key = key
        self._search = search
        self._sort = sort
        self._reverse = False if sort is None else self.columns[sort].falls
        self._rows: Sequence[Row] = ()
        self._shown: list[Row] = []
        self._cursor = 0
        self._filter = ""
        self._wanted: Hashable = None
        self.empty = "reading…"

    # What it holds

    @property
    def shown(self) -> Sequence[Row]:
        """The rows that pass the filter, in order."""
        return self._shown

    @property
    def total(self) -> int:
        """How many rows there are, filtered out ones included."""
        return len(self._rows)

    @property
    def cursor(self) -> int:
        """The index of the row under the cursor among those shown."""
        return self._cursor

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self._shown[self._cursor] if self._shown else None

    @property
    def cursor_key(self) -> Hashable:
        """The key of the row under the cursor; None where there is none."""
        return self._key(self._shown[self._cursor]) if self._shown else None

    @property
    def filter_text(self) -> str:
        """What rows must contain to be shown."""
        return self._filter

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show other rows."""
        self._rows = rows
        self._arrange()
        if self._wanted is not None and rows:
            wanted, self._wanted = self._wanted, None
            self.move_to(wanted)

    def clear(self) -> None:
        """No rows, and the cursor back at the top."""
        self._shown, self._cursor = [], 0
        self.set_rows(())

    def set_filter(self, text: str) -> None:
        """Show only rows that contain `text`, upper and lower case alike."""
        self._filter = text
        self._arrange()

    def sort_by(self, column: int, reverse: bool | None = None) -> None:
        """Sort by a column, in its natural direction unless told otherwise."""
        self._sort = column
        self._reverse = self.columns[column].falls if reverse is None else reverse
        self._arrange()

    def sort_next(self, step: int) -> None:
        """Sort by the column so many visible ones further."""
        visible = [index for index, _, _ in self._layout()]
        at = visible.index(self._sort) if self._sort in visible else -1 if step > 0 else 0
        self.sort_by(visible[(at + step) % len(visible)])

    def reverse(self) -> None:
        """Turn the order round."""
        self.sort_by(self._sort if self._sort is not None else 0, not self._reverse)

    def move_to(self, key: Hashable) -> bool:
        """Put the cursor on the row with that key; False where no such row is shown."""
        for index, row in enumerate(self._shown):
            if self._key(row) == key:
                self._go(index)
                return True
        return False

    def want(self, key: Hashable) -> None:
        """Put the cursor on the row with that key now, or when the next rows come."""
        if not self.move_to(key):
            self._wanted = key

    # Keys and mouse

    def action_cursor(self, step: int) -> None:
        """Move the cursor; past the first or last row the focus goes on."""
        if abs(step) == 1 and not 0 <= self._cursor + step < len(self._shown):
            self.post_message(Edge(step))
        self._go(self._cursor + step)

    def action_page(self, step: int) -> None:
        """Move the cursor by a screen."""
        self._go(self._cursor + step * max(1, self.size.height - 2))

    def on_click(self, event: events.Click) -> None:
        """Sort by the header clicked, or move to the row clicked."""
        if event.y == 0:
            for index, start, width in self._layout():
                if start <= event.x < start + width + _GAP:
                    self.sort_by(index, not self._reverse if index == self._sort else None)
            return
        index = self.scroll_offset.y + event.y - 1
        if index < len(self._shown):
            again = index == self._cursor
            self._go(index)
            if again:
                self.post_message(self.Chosen(self))

    def _go(self, index: int) -> None:
        index = max(0, min(index, len(self._shown) - 1))
        moved = index != self._cursor
        self._cursor = index
        self._follow()
        if moved:
            self.post_message(self.Moved(self))
        self.refresh()

    def _follow(self) -> None:
        """Scroll as little as keeps the cursor visible; the header covers the first line."""
        room = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, force=True)
        elif self._cursor >= top + room:
            self.scroll_to(y=self._cursor - room + 1, animate=False, force=True)

    def _arrange(self) -> None:
        at = self.cursor_key
        wanted = self._filter.casefold()
        rows = (
            [row for row in self._rows if wanted in self._search(row).casefold()]
            if wanted
            else list(self._rows)
        )
        if self._sort is not None:
            rows.sort(key=self.columns[self._sort].sort, reverse=self._reverse)
        before = self.row
        self._shown = rows
        stay = max(0, min(self._cursor, len(rows) - 1))  # about there, where its row is gone
        self._cursor = (
            0 if at is None else next((i for i, row in enumerate(rows) if self._key(row) == at), stay)
        )
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        self._follow()
        if self.row is not before:
            self.post_message(self.Moved(self))
        self.refresh()

    # Drawing

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self.virtual_size = Size(self.size.width, len(self._shown) + 1)
        self._follow()

    def _layout(self) -> list[tuple[int, int, int]]:
        """(column, first cell, width) of the columns that there is room for."""
        room = self.size.width
        chosen = list(range(len(self.columns)))

        def need() -> int:
            return sum((self.columns[i].width or self.columns[i].least) + _GAP for i in chosen)

        for index in sorted(chosen, key=lambda i: -self.columns[i].rank):
            if need() <= room or not self.columns[index].rank:
                break
            chosen.remove(index)
        spare = room - sum(self.columns[i].width + _GAP for i in chosen)
        layout, at = [], 0
        for index in chosen:
            width = self.columns[index].width or max(4, spare)
            layout.append((index, at, width))
            at += width + _GAP
        return layout

    def render_line(self, y: int) -> Strip:
        """The header, or a row."""
        width = self.size.width
        index = self.scroll_offset.y + y - 1
        background = Style.parse(f"on {palette.BACKGROUND}")
        if y == 0:
            return self._strip(self._header(), Style.parse(f"{palette.DIM} on {palette.SURFACE}"), width)
        if index == 0 and not self._shown:
            note = (
                f"no row contains {self._filter!r}; Esc shows all"
                if self._filter and self._rows
                else self.empty
            )
            return self._strip([Segment(f" {note}", Style(color=palette.DIM))], background, width)
        if index >= len(self._shown):
            return Strip.blank(width, background)
        cursor = index == self._cursor
        base = background
        if cursor:
            base = Style.parse(f"bold on {palette.CURSOR_ROW if self.has_focus else palette.SURFACE}")
        return self._strip(self._cells(self._shown[index]), base, width)

    def _strip(self, segments: list[Segment], base: Style, width: int) -> Strip:
        styled = [Segment(text, base + style if style else base) for text, style, _ in segments]
        return Strip(styled).adjust_cell_length(width, base)

    def _header(self) -> list[Segment]:
        segments = []
        for index, _, width in self._layout():
            column = self.columns[index]
            arrow = ("▼" if self._reverse else "▲") if index == self._sort else ""
            style = Style.parse(f"bold {palette.ACCENT}") if arrow else None
            segments += [Segment(_fit(column.title + arrow, width, column.right), style), Segment(" " * _GAP)]
        return segments

    def _cells(self, row: Row) -> list[Segment]:
        segments = []
        for index, _, width in self._layout():
            column = self.columns[index]
            style = Style.parse(column.color(row)) if column.color else None
            segments += [Segment(_fit(column.text(row), width, column.right), style), Segment(" " * _GAP)]
        return segments

    def watch_has_focus(self, value: bool) -> None:
        """The cursor looks different without focus."""
        super().watch_has_focus(value)
        self.refresh(Region(0, 0, self.size.width, self.size.height))


def _fit(text: str, width: int, right: bool) -> str:
    """Text in exactly `width` cells; what is cut off shows as an ellipsis."""
    fitted = set_cell_size(text, width)
    if fitted.rstrip() != text.rstrip():
        return set_cell_size(text, max(0, width - 1)) + "…"
    if right:
        bare = fitted.rstrip()
        return " " * (len(fitted) - len(bare)) + bare
    return fitted
