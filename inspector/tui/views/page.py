"""All that is known of one page frame, and where one can go from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Static

from inspector.kernel.owners import Owner
from inspector.kernel.pages import Page
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import PageView, Source
from inspector.tui.views.base import Go, View
from inspector.tui.widgets.drawing import Body, Picture, heading
from inspector.tui.widgets.hexdump import Hexdump
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import Pfn, VirtAddr, format_size

_BLOCK = 512  # frames of a pageblock (C: pageblock_nr_pages)
_TASKS = re.compile(r"\((\d+)\)$")  # how labels that name a task end
_MAPPED = (Owner.ANON, Owner.SWAP_CACHE, Owner.SHMEM, Owner.PAGE_CACHE, Owner.HUGETLB)
_OF_TASKS = (Owner.ANON, Owner.KERNEL_STACK, Owner.PAGE_TABLE, Owner.DRIVER)


@dataclass(frozen=True, slots=True)
class Link:
    """Somewhere to go from a page."""

    name: str
    what: str
    place: Place


def _mapping(data: PageView) -> bool:
    """Whether the word `mapping` is one: struct slab and others lie over it."""
    return bool(data.page.mapping) and data.owner in _MAPPED


class Fields(Picture[PageView]):
    """What the struct page says."""

    def __init__(self) -> None:
        super().__init__(id="fields")

    def picture(self, data: PageView, width: int) -> Text:
        """A line a member."""
        text = Text()
        page = data.page
        look = palette.OWNERS[data.owner]
        heading(text, "struct page", width, f"at {page.address:#x}")
        flags = Text(f"{page.flags:#018x}")
        whose = Text.assemble((f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}"), f" {look.name} ")
        whose.append(data.label, f"bold {palette.FOREGROUND}")
        if data.owned:
            size = format_size(data.owned * data.page_size)
            whose.append(f"  {data.owned} frames, {size} in all", palette.DIM)
        lines: list[tuple[str, Text]] = [("owner", whose), ("flags", flags), ("", self._flags(page))]
        if data.charge:
            lines.append(("charged to", Text.assemble(data.charge, ("  a memory cgroup", palette.DIM))))
        if len(modes := sorted({alias.cache_mode for alias in data.aliases})) > 1:
            differ = "  its addresses differ in their cache attributes (PAT, PCD, PWT)"
            lines.append(("cache", Text.assemble((", ".join(modes), palette.WARN), (differ, palette.DIM))))
        lines.append(("_refcount", Text.assemble(str(page.refcount), (self._refcount(page), palette.DIM))))
        if page.page_type is not None:
            lines.append(
                (
                    "page_type",
                    Text.assemble(page.page_type, ("  a type: the page is not mapped", palette.DIM)),
                )
            )
        else:
            meaning = "  user page table entries that map it, those of huge pages too"
            lines.append(("_mapcount", Text.assemble(str(page.mapcount), (meaning, palette.DIM))))
        kinds = {
            "anon": "struct anon_vma: anonymous memory",
            "file": "struct address_space: a file's pages",
            "ksm": "a KSM node: merged pages",
            "movable": "a driver's movable page",
        }
        kind = kinds.get(page.mapping_kind or "", "") if _mapping(data) else ""
        if page.mapping and not kind:
            kind = "not a mapping: what owns the frame has other uses for the word"
        lines.append(
            ("mapping", Text.assemble(f"{page.mapping:#x}", (f"  {kind}" if kind else "", palette.DIM)))
        )
        lines.append(("index", Text(f"{page.index:#x}")))
        lines.append(("private", Text(f"{page.private:#x}")))
        size = format_size(data.page_size << page.order)
        if page.compound:
            role = f"tail of PFN {page.head:#x}" if page.is_tail else "head"
            lines.append(("compound", Text.assemble(role, (f"  order {page.order}, {size}", palette.DIM))))
        elif page.order:
            lines.append(
                ("order", Text.assemble(str(page.order), (f"  a free block of {size}", palette.DIM)))
            )
        if page.migratetype:
            kept = "  what the whole pageblock is kept for"
            lines.append(("migratetype", Text.assemble(page.migratetype, (kept, palette.DIM))))
        for index, (name, value) in enumerate(lines):
            line = Text.assemble((f" {name:<12}", palette.DIM), value)
            line.truncate(width, overflow="ellipsis")
            text.append_text(line)
            if index < len(lines) - 1:
                text.append("\n")
        return text

    @staticmethod
    def _flags(page: Page) -> Text:
        names = page.flag_names
        if not names:
            return Text("none set", palette.DIM)
        return Text(" ").join(Text(f" {name} ", f"{palette.BACKGROUND} on {palette.WARN}") for name in names)

    @staticmethod
    def _refcount(page: Page) -> str:
        if page.is_tail:
            return "  a tail: references are counted on the head"
        return (
            "  free, or frozen"
            if not page.refcount
            else "  reference"
            if page.refcount == 1
            else "  references"
        )


class Neighbours(Picture[PageView]):
    """The owners of the frames around, the page itself in the middle, and how its block is shared out."""

    def __init__(self) -> None:
        super().__init__(id="neighbours")

    def picture(self, data: PageView, width: int) -> Text:
        """A line of letters on colours, and a mark under the page."""
        text = Text()
        at = data.page.pfn - data.around_first
        first = max(0, min(at - width // 2, data.around.size - width))
        states = data.around[first : first + width].tolist()
        edge = first + data.around_first
        note = f"PFN {edge:#x} to {edge + len(states) - 1:#x}"
        heading(text, "Neighbours", width, note)
        for index, state in enumerate(states):
            look = palette.OWNERS[state]
            here = first + index == at
            style = (
                f"bold {palette.BACKGROUND} on {palette.CURSOR}"
                if here
                else f"{palette.BACKGROUND} on {look.color}"
            )
            text.append(look.glyph if look.glyph.strip() else "×" if here else " ", style)
        text.append("\n" + " " * (at - first) + "▲\n", palette.CURSOR)
        text.append_text(self._block(data, width))
        return text

    @staticmethod
    def _block(data: PageView, width: int) -> Text:
        """The pageblock that the frame is in, by owner."""
        start = data.page.pfn & ~(_BLOCK - 1)
        first = max(0, start - data.around_first)
        owners = data.around[first : start - data.around_first + _BLOCK]
        counts = np.bincount(owners)
        text = Text.assemble((f"its {format_size(_BLOCK * data.page_size)} at PFN {start:#x}", palette.DIM))
        for owner in np.argsort(-counts, kind="stable").tolist():
            if counts[owner]:
                look = palette.OWNERS[owner]
                text.append("  ").append(f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}")
                text.append(f" {look.name} {counts[owner]}")
        text.truncate(width, overflow="ellipsis")
        return text


class Objects(Picture[PageView]):
    """The objects of the slab that the page is in; those that do not touch the page itself are dim."""

    def __init__(self) -> None:
        super().__init__(id="objects")

    def show(self, data: PageView | None) -> None:
        """Out of the way where there is no slab."""
        self.display = data is not None and data.objects.size > 0
        super().show(data)

    def picture(self, data: PageView, width: int) -> Text:
        """A letter an object in the order of their addresses, and what the letters mean."""
        text = Text()
        if not data.objects.size:
            return text
        states = data.objects["state"]
        heading(text, "Objects", width, f"{states.size} in the slab that this frame is of")
        cells = data.objects["address"] + np.uint64(0)
        ends = np.append(cells[1:], cells[-1] + np.uint64(1))
        start = np.uint64(data.direct_map)
        here = (ends > start) & (cells < start + np.uint64(data.page_size))
        for index, (state, inside) in enumerate(zip(states.tolist(), here.tolist(), strict=True)):
            look = palette.OBJECTS[state]
            color = look.color if inside else palette.blend(look.color, palette.BACKGROUND, 0.4)
            text.append("\n" if index and not index % width else "")
            text.append(look.glyph, f"{palette.BACKGROUND} on {color}")
        legend = Text()
        for state, count in enumerate(np.bincount(states).tolist()):
            if count:
                look = palette.OBJECTS[state]
                legend.append(f" {look.glyph} ", f"{palette.BACKGROUND} on {look.color}")
                legend.append(f" {count} {look.meaning}  ")
        legend.truncate(width, overflow="ellipsis")
        return text.append("\n").append_text(legend)


_LINKS: tuple[Column[Link], ...] = (
    Column("go to", lambda link: link.name, lambda link: link.name, 15, color=lambda _: palette.ACCENT),
    Column("which is", lambda link: link.what, lambda link: link.what, 0),
)


class PageScreen(View[PageView]):
    """A frame: state, members, raw bytes, neighbours, links."""

    NAME = ViewName.PAGE
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.PAGE])

    def compose(self) -> ComposeResult:
        """Members and links; raw bytes beside them where there is room."""
        yield Static(id="page-summary", classes="summary", markup=False)
        with Body(), Vertical(id="page-columns"):
            with Vertical(id="page-left"):
                yield Neighbours()
                yield Objects()
                yield VirtualTable(_LINKS, lambda link: link.place, lambda link: link.name, id="links")
                yield Fields()
            with Vertical(id="page-right"):
                yield Hexdump("raw-page")
                yield Hexdump("contents")

    def request(self, place: Place) -> Callable[[Source], PageView]:
        """The frame; the first one where none is named."""
        pfn = place.pfn if place.pfn is not None else Pfn(0)
        return lambda source: source.page(pfn)

    def show(self, data: PageView) -> None:
        """All parts."""
        super().show(data)
        self._links.set_rows(_links(data))
        self._summarize(data)
        for widget in (self.query_one(Fields), self.query_one(Neighbours), self.query_one(Objects)):
            widget.show(data)
        self.query_one("#raw-page", Hexdump).show("struct page, raw", f"{len(data.raw)} bytes", data.raw)
        note = f"the first {len(data.contents)} of {format_size(data.page_size)}"
        self.query_one("#contents", Hexdump).show("Contents", note, data.contents)

    def forget(self) -> None:
        """Nothing yet; the links' cursor stays, so that one can step through frames."""
        self.query_one("#page-summary", Static).update("")

    @property
    def _links(self) -> VirtualTable[Link]:
        return self.query_one("#links", VirtualTable)

    def _summarize(self, data: PageView) -> None:
        page, look = data.page, palette.OWNERS[data.owner]
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"PFN {page.pfn:#x} ", f"bold {palette.ACCENT}")
        text.append(f" {look.glyph} {look.name} ", f"{palette.BACKGROUND} on {look.color}")
        text.append(f" {data.label}" if data.label else "", f"bold {palette.FOREGROUND}")
        text.append(f" {look.meaning} · ", palette.DIM)
        text.append(f"physical {page.pfn * data.page_size:#x}", palette.FOREGROUND)
        if page.zone is not None:
            text.append(f" · zone {page.zone}, node {page.node}", palette.DIM)
        self.query_one("#page-summary", Static).update(text)

    def focus_first(self) -> None:
        """The links."""
        self._links.focus()

    def memento(self) -> Any:
        """The link under the cursor."""
        return self._links.cursor_key

    def restore(self, memento: Any) -> None:
        """Back on it."""
        self._links.want(memento)

    def on_virtual_table_chosen(self) -> None:
        """A click on the link under the cursor."""
        self.action_open()

    def action_open(self) -> None:
        """Follow the link."""
        if self._links.row:
            self.post_message(Go(self._links.row.place))

    def action_frame(self, step: int) -> None:
        """The next frame."""
        pfn = (self.place.pfn or 0) + step
        if pfn >= 0:
            self.post_message(Go(Place(ViewName.PAGE, pfn=Pfn(pfn)), history=False))

    def action_map(self) -> None:
        """Show it in the map."""
        self.post_message(Go(Place(ViewName.FRAMES, pfn=self.place.pfn or Pfn(0))))

    def action_watch(self) -> None:
        """Who takes and frees it."""
        self.post_message(Go(Place(ViewName.ALLOCATIONS, pfn=self.place.pfn or Pfn(0))))


def _links(data: PageView) -> list[Link]:
    """Where one can go, the nearest first."""
    page = data.page

    def frame(pfn: int) -> Place:
        return Place(ViewName.PAGE, pfn=Pfn(pfn))

    def walk(va: VirtAddr) -> Place:
        return Place(ViewName.WALK, va=va)

    links = []
    if page.is_tail:
        links.append(Link("head", f"PFN {page.head:#x}, the compound page's first", frame(page.head)))
    links += _owner_links(data)
    for alias in data.aliases:
        if alias.va == data.direct_map:
            continue
        whose = f"in the kernel: {alias.who}" if alias.pid is None else f"in {alias.who} ({alias.pid})"
        what = f"{alias.va:#x} {alias.rights} {whose}, {format_size(alias.size)} page"
        what += f", {alias.count:,} times from there on" if alias.count > 1 else ""
        links.append(Link("mapped", what, Place(ViewName.WALK, pid=alias.pid, va=alias.va)))
    what = f"{data.direct_map:#x}, the kernel's address of its bytes"
    links.append(Link("direct map", what, walk(data.direct_map)))
    links.append(Link("struct page", f"{page.address:#x} in the vmemmap", walk(page.address)))
    if page.mapping_kind in ("file", "anon") and _mapping(data):
        what = f"{page.mapping:#x}, the {page.mapping_kind} mapping's struct"
        links.append(Link("mapping", what, walk(page.mapping)))
    if page.order:
        past = page.head + (1 << page.order)
        what = f"PFN {past:#x}, behind these {1 << page.order} frames"
        links.append(Link("past the block", what, frame(past)))
    if data.zone:
        what = f"{data.zone.name}: its first frame, PFN {data.zone.start_pfn:#x}, in the map"
        links.append(Link("zone", what, Place(ViewName.FRAMES, pfn=data.zone.start_pfn)))
    place = Place(ViewName.ALLOCATIONS, pfn=page.pfn)
    links.append(Link("trace", "who takes and frees this frame, as it happens", place))
    return links


def _owner_links(data: PageView) -> list[Link]:
    """The object that the frame belongs to, and all of its frames."""
    links = []
    if data.owner is Owner.SLAB and data.label:
        links.append(Link("cache", f"{data.label}, among the slabs", Place(ViewName.SLABS, label=data.label)))
    if data.owner is Owner.VMALLOC:
        areas = [alias.va for alias in data.aliases if alias.pid is None and alias.who == "vmalloc"]
        links += [
            Link("area", f"{va:#x}, of {data.label}", Place(ViewName.VMALLOC, va=va)) for va in areas[:1]
        ]
    if data.owner is Owner.SWAP_CACHE:
        links.append(Link("swap", "what tasks have in swap areas", Place(ViewName.SWAP)))
    if data.owner in _OF_TASKS and (match := _TASKS.search(data.label)):
        links.append(Link("task", data.label, Place(ViewName.SPACE, pid=int(match[1]))))
    if data.label:
        look = palette.OWNERS[data.owner]
        what = f"{look.name} {data.label}: its {data.owned} frames, lit in the map"
        place = Place(ViewName.FRAMES, pfn=data.page.pfn, owner=int(data.owner), label=data.label)
        links.append(Link("owner", what, place))
    return links
