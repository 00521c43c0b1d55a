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
from inspector.tui.source import SlabRow, Slabs, Source
from inspector.tui.views.base import Go
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.bars import bar
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import format_size

_FILL = 10
_PAGE = 4096  # only to sort by: every cache has the same factor


def _name(row: SlabRow) -> str:
    return row.cache.name


def _object(row: SlabRow) -> int:
    return row.cache.object_size


def _held(row: SlabRow) -> int:
    """Objects that the kernel holds; where that is not known at the moment, those that are active."""
    return row.cache.active if row.held is None else row.held


def _share(row: SlabRow) -> float:
    return _held(row) / row.cache.objects if row.cache.objects else 0.0


def _pages(row: SlabRow) -> int:
    """Usual slabs: few, made when memory was short, are smaller."""
    return row.cache.slabs << row.cache.order


def _name_color(row: SlabRow) -> str:
    return f"bold {palette.FOREGROUND}" if row.cache.slabs else palette.FAINT


def _use_color(row: SlabRow) -> str:
    share = _share(row)
    return palette.GOOD if share > 0.8 else palette.WARN if share > 0.5 else palette.BAD


def _number(title: str, of: Callable[[SlabRow], int], width: int, rank: int = 0) -> Column[SlabRow]:
    return Column(title, lambda row: str(of(row)), of, width, True, rank=rank, falls=True)


def columns(page_size: int) -> tuple[Column[SlabRow], ...]:
    """The columns, for pages of so many bytes."""
    slab = "{} in {}".format
    return (
        Column("name", _name, lambda row: _name(row).casefold(), 0, color=_name_color),
        Column("held", lambda row: "-" if row.held is None else str(row.held), _held, 8, True, falls=True),
        _number("active", lambda row: row.cache.active, 8, rank=1),
        _number("objects", lambda row: row.cache.objects, 8),
        Column("held share", lambda row: bar(_share(row), _FILL), _share, 11, color=_use_color, falls=True),
        Column("object", lambda row: format_size(_object(row)), _object, 9, True, falls=True),
        _number("slabs", lambda row: row.cache.slabs, 6, rank=2),
        Column(
            "a slab",
            lambda row: slab(row.cache.objects_per_slab, format_size(page_size << row.cache.order)),
            lambda row: (row.cache.order, row.cache.objects_per_slab),
            13,
            True,
            rank=3,
        ),
        Column("memory", lambda row: format_size(_pages(row) * page_size), _pages, 10, True, falls=True),
    )


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


class SlabsView(ListView[Slabs, SlabRow]):
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
        yield VirtualTable(columns(_PAGE), lambda row: row.cache.name, _search, sort=8, id="slab-table")
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
        self.table.set_rows(
            [row for row in data.caches if self._all or row.cache.slabs or _name(row) == wanted]
        )
        self._draw()
        text = Text(no_wrap=True, overflow="ellipsis")
        used = [row for row in data.caches if row.cache.slabs]
        for number, what in (
            (str(len(data.caches)), f" caches, {len(data.caches) - len(used)} of them empty"),
            (format_size(sum(map(_pages, used)) * data.page_size), " in slabs"),
            (format_size(sum(_held(row) * row.cache.size for row in used)), " in objects held"),
            (str(sum(map(_held, used))), f" of {sum(row.cache.objects for row in used)} objects held"),
        ):
            text.append(" · " if text else "", palette.DIM)
            text.append(number, f"bold {palette.FOREGROUND}")
            text.append(what, palette.DIM)
        self.query_one("#slabs-summary", Static).update(text)

    def on_virtual_table_moved(self) -> None:
        """The drawing follows the cursor."""
        self._draw()

    def _draw(self) -> None:
        self.query_one(OneSlab).show(
            self.table.row.cache if self.table.row else None, self.data.page_size if self.data else _PAGE
        )

    def action_open(self) -> None:
        """The cache's frames."""
        if self.table.row:
            place = Place(ViewName.FRAMES, owner=int(Owner.SLAB), label=self.table.row.cache.name)
            self.post_message(Go(place))

    def action_used(self) -> None:
        """Show or hide caches without slabs."""
        self._all = not self._all
        if self.data is not None:
            self.show(self.data)


def _search(row: SlabRow) -> str:
    return f"{row.cache.name} {' '.join(row.cache.flag_names)}"
