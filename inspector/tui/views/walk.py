"""An address followed through the page tables, as the MMU does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Static

from inspector.arch import FaultKind
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source, WalkView
from inspector.tui.views.base import Go, View
from inspector.tui.widgets.bits import AddressBits, EntryFlags, Steps
from inspector.tui.widgets.drawing import Body, Picture
from inspector.units import Pfn, VirtAddr, format_size, printable


class Outcome(Picture[WalkView]):
    """Where the walk ends: a physical address, or what the MMU would do instead."""

    def __init__(self) -> None:
        super().__init__(id="outcome")

    def picture(self, data: WalkView, width: int) -> Text:
        """Two lines."""
        text = Text()
        walk = data.walk
        if walk.phys is None or walk.page_size is None:
            lines = [Text(f"✖ {walk.fault.what if walk.fault else 'no page'}", f"bold {palette.BAD}")]
            lines.append(Text(f"  {self._reading(data)}", palette.DIM))
        else:
            found = Text()
            found.append("✔ ", palette.GOOD)
            found.append(f"physical {walk.phys:#x}", f"bold {palette.GOOD}")
            found.append(" in frame ", palette.DIM)
            found.append(f"PFN {walk.pfn:#x}", f"bold {palette.FOREGROUND}")
            found.append(" of a ", palette.DIM)
            found.append(f"{format_size(walk.page_size)} page", f"bold {palette.FOREGROUND}")
            rights = Text("  ")
            for name, granted in (
                ("readable", True),
                ("writable", walk.writable),
                ("executable", walk.executable),
                ("user", walk.user),
            ):
                rights.append("● " if granted else "○ ", palette.GOOD if granted else palette.FAINT)
                rights.append(f"{name}  ", palette.FOREGROUND if granted else palette.FAINT)
            rights.append(f"memory type PAT[{walk.memory_type}]", palette.DIM)
            if walk.pkey:
                rights.append(f"  protection key {walk.pkey}", palette.DIM)
            lines = [found, rights]
        for index, line in enumerate(lines):
            line.truncate(width, overflow="ellipsis")
            text.append_text(line)
            if index < len(lines) - 1:
                text.append("\n")
        return text

    @staticmethod
    def _reading(data: WalkView) -> str:
        """What the kernel is likely to make of the fault."""
        fault = data.walk.fault
        if fault is None or fault.kind is FaultKind.NON_CANONICAL:
            return "no page table was read at all"
        if data.pid is None:
            return "in the kernel's own tables: an oops, unless a fixup expects it"
        if data.vma is None:
            return f"no VMA of PID {data.pid} covers it: the kernel would send SIGSEGV"
        if data.holds:
            return f"Linux keeps here, without P so that any access faults: {data.holds}"
        return "a VMA covers it: the kernel would bring a page in on first use, where the access is allowed"


class WalkScreen(View[WalkView]):
    """Bits, entries, the entry under the cursor spelled out, the outcome."""

    NAME = ViewName.WALK
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.WALK])

    def compose(self) -> ComposeResult:
        """From top to bottom as the MMU goes."""
        yield Static(id="walk-summary", classes="summary", markup=False)
        with Body():
            yield AddressBits()
            yield Steps()
            yield Outcome()
            yield EntryFlags()

    def request(self, place: Place) -> Callable[[Source], WalkView]:
        """The walk."""
        return lambda source: source.walk(place)

    def show(self, data: WalkView) -> None:
        """All parts."""
        super().show(data)
        self.query_one("#walk-summary", Static).update(_summary(data))
        self.query_one(Steps).show(data.walk)
        self.query_one(Outcome).show(data)
        self._draw()
        self.refresh_bindings()

    def forget(self) -> None:
        """Nothing yet; the cursor on the last step."""
        self.query_one("#walk-summary", Static).update("")
        self.query_one(Steps).top(None)
        self.query_one(Steps).show(None)
        self.query_one(Outcome).show(None)
        self._draw()

    def _draw(self) -> None:
        walk = self.data.walk if self.data else None
        step = self.query_one(Steps).step
        self.query_one(AddressBits).show(walk, step.level.name if step else None)
        self.query_one(EntryFlags).show(walk, step)

    def on_edge(self) -> None:
        """The cursor moved to another step."""
        self._draw()

    def focus_first(self) -> None:
        """The steps."""
        self.query_one(Steps).focus()

    def memento(self) -> Any:
        """The level that the cursor is on."""
        step = self.query_one(Steps).step
        return self.data.walk.steps.index(step) if step and self.data else None

    def restore(self, memento: Any) -> None:
        """Back to that level."""
        self.query_one(Steps).top(memento)

    def action_open(self) -> None:
        """The frame that the entry leads to: the page's, or the next table's."""
        step = self.query_one(Steps).step
        if self.data is None or step is None:
            return
        if step.target is None:
            if self.data.hidden is not None:
                self.post_message(Go(Place(ViewName.PAGE, pfn=self.data.hidden)))
            elif self.data.swapped:
                self.post_message(Go(Place(ViewName.SWAP)))
            return
        walk = self.data.walk
        pfn = walk.pfn if step.leaf and walk.pfn is not None else step.target // walk.format.page_size
        self.post_message(Go(Place(ViewName.PAGE, pfn=Pfn(pfn))))

    def action_table(self) -> None:
        """The frame that holds the table."""
        step = self.query_one(Steps).step
        if self.data is not None and step is not None:
            pfn = Pfn(step.entry_address // self.data.walk.format.page_size)
            self.post_message(Go(Place(ViewName.PAGE, pfn=pfn)))

    def action_page(self, step: int) -> None:
        """The next page, or over the hole that the entry that faults leaves."""
        if self.data is None:
            return
        walk = self.data.walk
        level = walk.fault.level if walk.fault else None
        size = walk.page_size or (level.span if level else walk.format.page_size)
        va = (walk.va & ~(size - 1)) + (size if step > 0 else -1)
        if step < 0:
            va &= ~(walk.format.page_size - 1)
        if 0 <= va < 1 << 8 * walk.format.pointer_size:
            place = replace(self.place, va=walk.format.canonical(va), symbol=None, pid=self.data.pid)
            self.post_message(Go(place, history=False))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only a task's walk leads to an address space."""
        return action != "space" or (self.data is not None and self.data.pid is not None)

    def action_space(self) -> None:
        """The address space that the address is of."""
        if self.data is not None and self.data.pid is not None:
            self.post_message(Go(Place(ViewName.SPACE, pid=self.data.pid)))


def _summary(data: WalkView) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{VirtAddr(data.walk.va):#x} ", f"bold {palette.ACCENT}")
    if data.symbol:
        text.append(f"{data.symbol} ", f"bold {palette.FOREGROUND}")
    text.append("in ", palette.DIM)
    text.append(data.whose, f"bold {palette.FOREGROUND}")
    if data.vma:
        text.append(
            f" {data.vma.permissions} {printable(data.vma.name) or '(anonymous)'}",
            palette.VMA_KINDS[palette.vma_kind(data.vma.permissions, data.vma.name)].color,
        )
    elif data.pid is not None:
        text.append(" in no VMA", palette.WARN)
    text.append(f" · root {data.walk.root:#x}, {data.root_kind}", palette.DIM)
    return text
