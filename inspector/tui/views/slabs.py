"""The kernel's object caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.kernel.owners import Owner
from inspector.kernel.slabs import SlabCache
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Slabs, Source
from inspector.tui.views.base import Go
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import format_size

_FILL = 10
_PAGE = 4096  # only to sort by: every cache has the same factor


def _share(row: SlabCache) -> float:
    return row.active / row.objects if row.objects else 0.0


def _pages(row: SlabCache) -> int:
    """Usual slabs: few, made when memory was short, are smaller."""
    return row.slabs << row.order


def _name_color(row: SlabCache) -> str:
    return f"bold {palette.FOREGROUND}" if row.slabs else palette.FAINT


def _use_color(row: SlabCache) -> str:
    share = _share(row)
    return palette.GOOD if share > 0.8 else palette.WARN if share > 0.5 else palette.BAD


def columns(page_size: int) -> tuple[Column[SlabCache], ...]:
    """The columns, for pages of so many bytes."""
    return (
        Column("name", lambda row: row.name, lambda row: row.name.casefold(), 0, color=_name_color),
        Column("active", lambda row: str(row.active), lambda row: row.active, 8, True, falls=True),
        Column("objects", lambda row: str(row.objects), lambda row: row.objects, 8, True, falls=True),
        Column("active share", lambda row: bar(_share(row), _FILL), _share, 13, color=_use_color, falls=True),
        Column(
            "object", lambda row: format_size(row.object_size), lambda row: row.object_size, 9, True,
            falls=True,
        ),
        Column("slabs", lambda row: str(row.slabs), lambda row: row.slabs, 6, True, rank=2, falls=True),
        Column(
            "a slab", lambda row: f"{row.objects_per_slab} in {format_size(page_size << row.order)}",
            lambda row: (row.order, row.objects_per_slab), 13, True, rank=3,
        ),
        Column("memory", lambda row: format_size(_pages(row) * page_size), _pages, 10, True, falls=True),
    )  # fmt: skip


class OneSlab(Drawing):
    """How a cache cuts its slabs into objects, and what else is known of it."""

    def __init__(self) -> None:
        super().__init__(id="one-slab")
        self._cache: SlabCache | None = None
        self._page_size = 0

    def show(self, cache: SlabCache | None, page_size: int) -> None:
        """A cache."""
        self._cache, self._page_size = cache, page_size
        self.redraw()

    def draw(self, width: int) -> Text:
        """A slab drawn to scale, and two lines of facts."""
        text = Text()
        cache = self._cache
        if cache is None:
            return text
        whole = self._page_size << cache.order
        taken = cache.objects_per_slab * cache.size
        note = f"{cache.objects_per_slab} objects of {cache.size} bytes, {whole - taken} bytes left over"
        heading(text, f"A slab of {cache.name}: {format_size(whole)}", width, note)
        text.append_text(self._scale(cache, whole, width))
        facts = [f"align {cache.align}", f"padding {cache.size - cache.object_size} an object"]
        facts += [f"{cache.aliases} names merged into it"] if cache.aliases else []
        facts += [f"constructor {cache.ctor}"] if cache.ctor else []
        facts += [] if cache.sheaf_capacity is None else [f"sheaves of {cache.sheaf_capacity}"]
        for line in (" · ".join(facts), " ".join(cache.flag_names) or "no flags"):
            part = Text(line, palette.DIM)
            part.truncate(width, overflow="ellipsis")
            text.append("\n").append_text(part)
        return text

    def _scale(self, cache: SlabCache, whole: int, width: int) -> Text:
        """Objects in two shades by turns; padding at an object's end and the rest of the slab darker."""
        colors = (
            palette.OWNERS[Owner.SLAB].color,
            palette.blend(palette.OWNERS[Owner.SLAB].color, palette.BACKGROUND, 0.7),
        )
        text = Text()
        for cell in range(width):
            index, inside = divmod((2 * cell + 1) * whole // (2 * width), cache.size)
            if index >= cache.objects_per_slab:
                text.append(" ", f"on {palette.PANEL}")
            else:
                padded = inside >= cache.object_size and cache.size * width > 4 * whole
                text.append("░" if padded else "█", colors[index % 2])
        return text


class SlabsView(ListView[Slabs, SlabCache]):
    """Every cache; Enter shows its frames in the map."""

    NAME = ViewName.SLABS
    EVERY = 2.0
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.SLABS])

    def __init__(self) -> None:
        super().__init__()
        self._all = False

    def compose(self) -> ComposeResult:
        """Summary, table, one slab, filter."""
        yield Static(id="slabs-summary", classes="summary", markup=False)
        yield VirtualTable(columns(_PAGE), lambda row: row.name, _search, sort=7, id="slab-table")
        yield OneSlab()
        yield self.filter_input()

    def request(self, place: Place) -> Callable[[Source], Slabs]:
        """All caches."""
        return lambda source: source.slabs()

    def enter(self, place: Place) -> None:
        """The list is the same whichever cache the cursor is to go to."""
        data = self.data
        self.place = place
        self.data = data
        if place.label is not None:
            self.table.want(place.label)

    def show(self, data: Slabs) -> None:
        """Rows, summary, the cache under the cursor."""
        super().show(data)
        self.table.columns = columns(data.page_size)
        self.table.empty = "no slab cache"
        wanted = self.place.label
        self.table.set_rows([row for row in data.caches if self._all or row.slabs or row.name == wanted])
        self._draw()
        text = Text(no_wrap=True, overflow="ellipsis")
        used = [row for row in data.caches if row.slabs]
        for number, what in (
            (str(len(data.caches)), f" caches, {len(data.caches) - len(used)} of them empty"),
            (format_size(sum(map(_pages, used)) * data.page_size), " in slabs"),
            (format_size(sum(row.active * row.size for row in used)), " in active objects"),
            (str(sum(row.active for row in used)), f" of {sum(row.objects for row in used)} objects active"),
        ):
            text.append(" · " if text else "", palette.DIM)
            text.append(number, f"bold {palette.FOREGROUND}")
            text.append(what, palette.DIM)
        self.query_one("#slabs-summary", Static).update(text)

    def on_virtual_table_moved(self) -> None:
        """The drawing follows the cursor."""
        self._draw()

    def _draw(self) -> None:
        self.query_one(OneSlab).show(self.table.row, self.data.page_size if self.data else _PAGE)

    def action_open(self) -> None:
        """The cache's frames."""
        if self.table.row:
            place = Place(ViewName.FRAMES, owner=int(Owner.SLAB), label=self.table.row.name)
            self.post_message(Go(place))

    def action_used(self) -> None:
        """Show or hide caches without slabs."""
        self._all = not self._all
        if self.data is not None:
            self.show(self.data)


def _search(row: SlabCache) -> str:
    return f"{row.name} {' '.join(row.flag_names)}"
