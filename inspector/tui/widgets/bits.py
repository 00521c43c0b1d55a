"""A virtual address as bits, cut into the indices that the MMU takes from it; and the entries on the way."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType

from inspector.arch import Walk, WalkStep
from inspector.tui import palette
from inspector.tui.widgets.drawing import Drawing, Edge, heading
from inspector.units import format_size


def level_color(name: str) -> str:
    """The colour of a level of tables."""
    return palette.LEVELS.get(name, palette.FOREGROUND)


class AddressBits(Drawing):
    """The address in binary: a colour and a number for each index, and for the offset that remains."""

    def __init__(self) -> None:
        super().__init__(id="address-bits")
        self._walk: Walk | None = None
        self._marked: str | None = None

    def show(self, walk: Walk | None, marked: str | None) -> None:
        """A walk; the field of the level `marked` is bright."""
        self._walk, self._marked = walk, marked
        self.redraw()

    def draw(self, width: int) -> Text:
        """Bit numbers, bits, names and values."""
        text = Text()
        if self._walk is None:
            return text
        fields = self._fields(self._walk)
        numbers, names, values = Text(), Text(), Text()
        bits = Text()
        for index, (name, high, low, color) in enumerate(fields):
            room = high - low + 1
            value = self._walk.va >> low & (1 << room) - 1
            marked = name == self._marked
            style = f"bold {palette.BACKGROUND} on {color}" if marked else f"{color} on {palette.PANEL}"
            edge = f"{high}".ljust(room - len(str(low))) + (str(low) if room > len(str(low)) + 1 else "")
            numbers.append(edge[:room].ljust(room), palette.DIM)
            bits.append(f"{value:0{room}b}", style)
            shown = f"{value:#x}" if name == "offset" else str(value) if name != "sign" else ""
            names.append(name.center(room), f"bold {color}" if marked else color)
            values.append(shown.center(room), color)
            if index < len(fields) - 1:
                for line in (numbers, bits, names, values):
                    line.append(" ")
        text.append_text(numbers).append("\n")
        text.append_text(bits).append("\n")
        text.append_text(names).append("\n")
        return text.append_text(values)

    @staticmethod
    def _fields(walk: Walk) -> list[tuple[str, int, int, str]]:
        """(name, highest bit, lowest bit, colour); what lies below a large page's entry is offset."""
        fields = []
        top = 8 * walk.format.pointer_size
        if top > walk.format.va_bits:
            fields.append(("sign", top - 1, walk.format.va_bits, palette.DIM))
        size = walk.page_size or walk.format.page_size
        for level in walk.format.levels:
            if level.span >= size:
                fields.append(
                    (level.name, level.shift + level.bits - 1, level.shift, level_color(level.name))
                )
        return [*fields, ("offset", size.bit_length() - 2, 0, palette.OFFSET)]


class Steps(Drawing, can_focus=True):
    """The entries on the way down; the cursor is on one of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="steps")
        self._walk: Walk | None = None
        self._cursor: int | None = None  # None: the last one, however many there are

    @property
    def step(self) -> WalkStep | None:
        """The step under the cursor."""
        if self._walk is None or not self._walk.steps:
            return None
        return self._walk.steps[self._at]

    @property
    def _at(self) -> int:
        count = len(self._walk.steps) if self._walk else 0
        return count - 1 if self._cursor is None else min(self._cursor, count - 1)

    def show(self, walk: Walk | None) -> None:
        """Another walk; the cursor stays on its level."""
        self._walk = walk
        self.redraw()

    def top(self, cursor: int | None) -> None:
        """Put the cursor somewhere; None is the last step."""
        self._cursor = cursor

    def action_move(self, step: int) -> None:
        """Move the cursor."""
        if self._walk and self._walk.steps:
            self._cursor = max(0, min(self._at + step, len(self._walk.steps) - 1))
            self.post_message(Edge(0))
            self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the line clicked."""
        if self._walk and 1 <= event.y <= len(self._walk.steps):
            self._cursor = event.y - 1
            self.post_message(Edge(0))
            self.refresh()

    def watch_has_focus(self, value: bool) -> None:
        """The cursor shows with the focus."""
        super().watch_has_focus(value)
        self.refresh()

    def draw(self, width: int) -> Text:
        """A line a level."""
        text = Text()
        if self._walk is None:
            return text
        columns = (
            f" {'level':<5}{'index':>6}  {'entry at':>11}  {'raw entry':<18}    {'leads to':<11}  flags set"
        )
        text.append(columns[:width].ljust(width), f"{palette.DIM} on {palette.SURFACE}")
        for number, step in enumerate(self._walk.steps):
            here = number == self._at
            ground = f" on {palette.CURSOR_ROW}" if here else ""
            color = level_color(step.level.name)
            line = Text()
            line.append("▶" if here else " ", palette.WARN + ground)
            line.append(f"{step.level.name:<5}", f"bold {color}{ground}")
            line.append(f"{step.index:>6}  ", color + ground)
            line.append(f"{step.entry_address:>#11x}  ", palette.DIM + ground)
            line.append(f"{step.entry:#018x} ", palette.FOREGROUND + ground)
            if step.target is None:
                line.append(" ✖ " + " " * 13, palette.BAD + ground)
            else:
                line.append(" → ", palette.DIM + ground)
                line.append(
                    f"{step.target:<#11x}  ", (palette.GOOD if step.leaf else palette.FOREGROUND) + ground
                )
            line.append(" ".join(step.flags), palette.WARN + ground)
            line.truncate(width, overflow="ellipsis")
            line.append(" " * (width - line.cell_len), ground.strip())
            text.append("\n").append_text(line)
        return text


class EntryFlags(Drawing):
    """One entry spelled out: the flags that are set with what the MMU makes of them, and the clear ones."""

    def __init__(self) -> None:
        super().__init__(id="entry-flags")
        self._walk: Walk | None = None
        self._step: WalkStep | None = None

    def show(self, walk: Walk | None, step: WalkStep | None) -> None:
        """A step of a walk."""
        self._walk, self._step = walk, step
        self.redraw()

    def draw(self, width: int) -> Text:
        """A line a flag that is set; the others in one."""
        text = Text()
        walk, step = self._walk, self._step
        if walk is None or step is None:
            return text
        covers = f"covers {format_size(step.level.span)}"
        if step.shape is None:
            heading(text, f"{step.level.name} entry", width, f"{step.level.manual}, {covers}")
            why = (
                "zero: nothing is mapped" if not step.entry else "not present: its bits are the system's own"
            )
            return text.append(f" {why}", palette.WARN)
        heading(
            text, f"{step.level.name} entry", width, f"{step.level.manual}, {step.shape.kind.value}, {covers}"
        )
        clear = []
        for flag in step.shape.flags:
            value = flag.value(step.entry)
            if not value:
                clear.append(flag.name)
                continue
            bit = str(flag.bit) if flag.width == 1 else f"{flag.bit + flag.width - 1}..{flag.bit}"
            line = Text()
            line.append(" ● ", palette.GOOD)
            line.append(f"{bit:>6} ", palette.DIM)
            line.append(f"{flag.name + (f'={value}' if flag.width > 1 else ''):<7}", f"bold {palette.WARN}")
            line.append(flag.meaning, palette.FOREGROUND)
            line.truncate(width, overflow="ellipsis")
            text.append_text(line).append("\n")
        line = Text()
        line.append(" ○  clear ", palette.DIM)
        line.append(" ".join(clear) or "none", palette.DIM)
        line.truncate(width, overflow="ellipsis")
        return text.append_text(line)
