"""An address space drawn as a strip of cells, and the range under the cursor page by page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.text import Text

from inspector.kernel.vmas import Vma
from inspector.tui import palette
from inspector.tui.density import Resident, Strip
from inspector.tui.source import Space, VmaRow
from inspector.tui.widgets.drawing import Drawing
from inspector.units import format_size, printable

_HOLE = "┊"
_SHADE = "shade: resident share"


def shades(density: NDArray[np.float64]) -> list[str]:
    """A glyph for each share: blank for nothing, the full block for all, never either for a part."""
    steps = len(palette.SHADES) - 1
    level = np.ceil(density * (steps - 1)).astype(np.int64)
    level[density >= 1.0] = steps
    return [palette.SHADES[int(step)] for step in level]


@dataclass(frozen=True, slots=True)
class _Layout:
    """An address space laid out at a width: done once, whatever the cursor does."""

    strip: Strip
    kinds: list[str]
    ranges: list[int]
    glyphs: list[str]
    names: str

    @classmethod
    def of(cls, space: Space, width: int) -> _Layout:
        """Lay out all VMAs."""
        vmas = [row.vma for row in space.vmas]
        starts = np.array([vma.start for vma in vmas], np.uint64)
        strip = Strip.lay_out(starts, np.array([vma.end for vma in vmas], np.uint64), width)
        return cls(
            strip=strip,
            kinds=[palette.vma_kind(vma.permissions, vma.name) for vma in vmas],
            ranges=strip.ranges().tolist(),
            glyphs=shades(strip.density(space.resident)),
            names=_names(vmas, strip, width),
        )


def _names(vmas: list[Vma], strip: Strip, width: int) -> str:
    """Each mapped thing's name over its cells, where it fits."""
    line = [" "] * width
    first = 0
    for index in range(1, len(vmas) + 1):
        if index < len(vmas) and vmas[index].name == vmas[first].name and vmas[first].name:
            continue
        left, right = int(strip.left[first]), int(strip.right[index - 1])
        if right > left + 1:
            name = printable(vmas[first].name.rsplit("/", 1)[-1])
            if cell_len(name) == len(name) < right - left:
                line[left : left + len(name)] = name
        first = index
    return "".join(line)


class AddressStrip(Drawing):
    """All VMAs side by side, holes as one cell: colour is the kind, shade is how much of it is resident."""

    def __init__(self) -> None:
        super().__init__(id="strip")
        self._space: Space | None = None
        self._current: int | None = None
        self._laid: tuple[int, _Layout] | None = None

    def show(self, space: Space | None, current: VmaRow | None) -> None:
        """An address space with the cursor on a VMA."""
        if space is not self._space:
            self._space, self._laid = space, None
        self._current = None
        if space and current:
            start = current.vma.start
            self._current = next((i for i, row in enumerate(space.vmas) if row.vma.start == start), None)
        self.redraw()

    def draw(self, width: int) -> Text:
        """Names, two lines of cells, the cursor, the legend."""
        text = Text()
        if self._space is None or not self._space.vmas:
            return text
        if self._laid is None or self._laid[0] != width:
            self._laid = width, _Layout.of(self._space, width)
        layout = self._laid[1]
        text.append(layout.names + "\n", palette.DIM)
        for _ in range(2):
            for glyph, index in zip(layout.glyphs, layout.ranges, strict=True):
                if index < 0:
                    text.append(_HOLE, palette.FAINT)
                    continue
                color = palette.VMA_KINDS[layout.kinds[index]].color
                under = palette.blend(color, palette.BACKGROUND, 0.5 if index == self._current else 0.22)
                text.append(glyph, f"{color} on {under}")
            text.append("\n")
        self._cursor(text, layout.strip, width)
        text.append_text(self._legend(layout.kinds, width))
        return text

    def _cursor(self, text: Text, strip: Strip, width: int) -> None:
        if self._current is not None:
            left = min(int(strip.left[self._current]), width - 1)
            right = max(left + 1, round(strip.right[self._current]))
            text.append(" " * left + "▔" * (right - left), f"bold {palette.CURSOR}")
        text.append("\n")

    @staticmethod
    def _legend(kinds: list[str], width: int) -> Text:
        text, present = Text(), set(kinds)
        for name, look in palette.VMA_KINDS.items():
            if name in present:
                under = palette.blend(look.color, palette.BACKGROUND, 0.3)
                text.append("▒▒", f"{look.color} on {under}")
                text.append(f" {look.name}  ", palette.DIM)
        if text.cell_len + len(_SHADE) <= width:
            text.append(_SHADE, palette.DIM)
        return text


class VmaMap(Drawing):
    """One VMA enlarged: as many cells as it has pages, or each cell as many pages as it must."""

    def __init__(self) -> None:
        super().__init__(id="vma-map")
        self._row: VmaRow | None = None
        self._resident: Resident | None = None
        self._page_size = 1
        self._lines = 2

    def show(self, row: VmaRow | None, resident: Resident | None, page_size: int, lines: int) -> None:
        """A VMA in at most so many lines of cells."""
        self._row, self._resident, self._page_size, self._lines = row, resident, page_size, lines
        self.redraw()

    def draw(self, width: int) -> Text:
        """What the VMA is, and its pages."""
        text = Text()
        row, resident = self._row, self._resident
        if row is None or resident is None:
            return text
        vma = row.vma
        pages = vma.size // self._page_size
        each = max(1, -(-pages // (width * self._lines)))
        cells = -(-pages // each)
        head = Text()
        head.append(f"{vma.start:#x}-{vma.end:#x} ", f"bold {palette.FOREGROUND}")
        head.append(
            f"{pages} page{'s' if pages != 1 else ''}, a cell is {format_size(each * self._page_size)} ",
            palette.DIM,
        )
        head.append(" ".join(vma.flag_names), palette.DIM)
        head.truncate(width, overflow="ellipsis")
        text.append_text(head)
        steps = np.arange(cells + 1, dtype=np.uint64) * np.uint64(each * self._page_size)
        edges = np.uint64(vma.start) + np.minimum(steps, np.uint64(vma.size))
        mapped = resident.between(edges[:-1], edges[1:])
        glyphs = "".join(shades(mapped / np.diff(edges).astype(np.float64)))
        color = palette.VMA_KINDS[palette.vma_kind(vma.permissions, vma.name)].color
        style = f"{color} on {palette.blend(color, palette.BACKGROUND, 0.22)}"
        for line in range(self._lines):
            text.append("\n")
            text.append(glyphs[line * width : (line + 1) * width], style)
        return text
