"""A page fault drawn: the walk before beside the walk after, frames that changed hands, and where it fell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.text import Text

from inspector.arch import Walk, WalkStep
from inspector.arch.compare import Pair, side_by_side
from inspector.trace import Fault, FaultKind, FrameState
from inspector.trace import telling as tell
from inspector.tui import palette
from inspector.tui.density import Resident
from inspector.tui.widgets.bits import level_color
from inspector.tui.widgets.drawing import Drawing, Picture, heading
from inspector.tui.widgets.strips import shades
from inspector.units import format_size, printable

_FAILED = (FaultKind.SIGSEGV, FaultKind.SIGBUS, FaultKind.OUT_OF_MEMORY, FaultKind.KERNEL_EFAULT)
_COSTLY = (FaultKind.FILE_MAJOR, FaultKind.SWAP_IN, FaultKind.COW_COPY)
_LIT = palette.blend(palette.GOOD, palette.BACKGROUND, 0.35)
_GONE = palette.blend(palette.BAD, palette.BACKGROUND, 0.25)
_LEVEL = 11  # cells: ` PTE   511 `
_ARROW = " ▶ "


def kind_color(kind: FaultKind) -> str:
    """Red for what failed, yellow for what copied or read, blue for the rest."""
    return palette.BAD if kind in _FAILED else palette.WARN if kind in _COSTLY else palette.ACCENT


class FaultPicture(Picture[Fault]):
    """What happened, entry by entry."""

    def __init__(self) -> None:
        super().__init__(id="fault-picture")

    def picture(self, data: Fault, width: int) -> Text:
        """Facts, walks side by side, frames."""
        return fault_text(data, width)


def fault_text(fault: Fault, width: int) -> Text:
    """The whole drawing of a fault; also what is saved as SVG."""
    text = Text()
    who = f"{fault.comm} ({fault.pid}) on CPU {fault.cpu}"
    heading(text, f"#{fault.number} {fault.kind.value}", width, who)
    lines = [_access(fault), _titles(fault, width)]
    lines += [_line(pair, width) for pair in side_by_side(fault.before, fault.after)]
    lines += [_ends(fault, width), *_frames(fault)]
    for index, line in enumerate(lines):
        line.truncate(width, overflow="ellipsis")
        text.append("\n" if index else "").append_text(line)
    return text


def _access(fault: Fault) -> Text:
    verbs = {"r": "read", "w": "write", "x": "fetch"}
    who = {
        "user": "by user code at",
        "kernel": "by the kernel at",
        "asked": "wanted, with no access made, by",
    }
    line = Text.assemble(
        (f"{fault.address:#x} ", f"bold {palette.FOREGROUND}"),
        (f"{verbs[tell.access(fault)]} ", f"bold {palette.WARN}"),
        (f"{who[tell.mode(fault)]} ", palette.DIM),
        (fault.place, palette.FOREGROUND),
    )
    if fault.reason:
        line.append(f" · {fault.reason}", palette.BAD)
    if fault.error is not None:
        line.append(f" · error code {fault.error}", palette.DIM)
    return line.append(f" · VM_FAULT_ {tell.returned(fault)}", palette.DIM)


def _side(width: int) -> int:
    return max(10, (width - _LEVEL - len(_ARROW)) // 2)


def _titles(fault: Fault, width: int) -> Text:
    side = _side(width)
    style = f"{palette.DIM} on {palette.SURFACE}"
    titles = f"{' level  at':<{_LEVEL}}{'before':<{side}}{'':<{len(_ARROW)}}after"
    return Text(titles[:width].ljust(width), style)


def _line(pair: Pair, width: int) -> Text:
    side = _side(width)
    color = level_color(pair.level.name)
    line = Text()
    line.append(f" {pair.level.name:<5}", f"bold {color}").append(f"{pair.index:>4} ", color)
    line.append_text(_entry(pair.before, side, pair.changed, _GONE))
    line.append(_ARROW if pair.changed else " " * len(_ARROW), f"bold {palette.GOOD}")
    return line.append_text(_entry(pair.after, side, pair.changed, _LIT))


def _entry(step: WalkStep | None, width: int, changed: bool, ground: str) -> Text:
    """A raw entry, its flags, and where there is room what it leads to; lit where it changed."""
    lit = f" on {ground}" if changed else ""
    cell = Text()
    if step is None:
        cell.append("no table", palette.DIM + lit)
    else:
        cell.append(f"{step.entry:016x} ", (f"bold {palette.FOREGROUND}" if changed else palette.DIM) + lit)
        flags = _flags(step, width - cell.cell_len)
        cell.append(flags, (palette.WARN if changed else palette.DIM) + lit)
        if step.target is not None:
            target = f" → {step.target:#x}"
            if cell.cell_len + len(target) <= width:
                cell.append(target, (palette.GOOD if step.leaf and changed else palette.DIM) + lit)
    cell.truncate(width, overflow="ellipsis")
    cell.append(" " * (width - cell.cell_len), lit.strip())
    return cell


def _flags(step: WalkStep, room: int) -> str:
    """The names of the flags; those that only software reads give way first."""
    names = list(step.flags)
    if len(" ".join(names)) > room:
        names = [name for name in names if not name.startswith("SW")]
    return " ".join(names) or ("empty" if not step.entry else "not present")


def _ends(fault: Fault, width: int) -> Text:
    """What each walk comes to."""
    side = _side(width)
    line = Text(" " * _LEVEL)
    before = _end(fault.before, fault.evidence.before.use, side)
    return (
        line.append_text(before).append("   ").append_text(_end(fault.after, fault.evidence.after.use, side))
    )


def _end(walk: Walk, use: str, width: int) -> Text:
    if walk.pfn is None or walk.page_size is None:
        held = "" if use == "none" else f", holds {use.replace('_', ' ')}"
        end = Text(f"✖ not present{held}", palette.BAD)
        if walk.fault is not None and walk.fault.entry_address is None:
            end = Text("✖ no table was read", palette.BAD)
    else:
        rights = "r" + ("w" if walk.writable else "-") + ("x" if walk.executable else "-")
        who = "user" if walk.user else "kernel"
        size = format_size(walk.page_size)
        end = Text(f"✔ PFN {walk.pfn:#x} {size} {rights} {who}", palette.GOOD)
    end.truncate(width, overflow="ellipsis", pad=True)
    return end


def _frames(fault: Fault) -> list[Text]:
    """Whose the frame that came in was and is; and the one that was mapped until then."""
    if fault.frame is None:
        note = "the frame is the same as before" if fault.after.pfn is not None else "no frame came in"
        return [Text(note, palette.DIM)]
    line = Text.assemble(("frame ", palette.DIM), (f"{fault.frame:#x} ", f"bold {palette.FOREGROUND}"))
    line.append_text(_state(fault.frame_before)).append(_ARROW, palette.GOOD).append_text(
        _state(fault.frame_after)
    )
    lines = [line]
    if fault.before.pfn is not None:
        lines.append(
            Text.assemble(
                ("frame ", palette.DIM),
                (f"{fault.before.pfn:#x} ", f"bold {palette.FOREGROUND}"),
                ("was mapped here until now", palette.DIM),
            )
        )
    return lines


def _state(frame: FrameState | None) -> Text:
    if frame is None:
        return Text("not known", palette.DIM)
    look = palette.use_look(frame.use)
    return Text.assemble(
        (f" {look.glyph} ", f"bold {palette.BACKGROUND} on {look.color}"), f" {tell.state(frame)}"
    )


class FaultStrip(Drawing):
    """The VMA that a fault fell in, page by page: what the trace saw come in, and what else is there."""

    def __init__(self) -> None:
        super().__init__(id="fault-strip")
        self._fault: Fault | None = None
        self._faults: Sequence[Fault] = ()
        self._resident: Resident | None = None

    def show(self, fault: Fault | None, faults: Sequence[Fault], resident: Resident | None) -> None:
        """The fault under the cursor, all that are known, and the task's mappings where they are known."""
        self._fault, self._faults, self._resident = fault, faults, resident
        self.redraw()

    def draw(self, width: int) -> Text:
        """What the VMA is, its cells, the cursor and the legend."""
        fault = self._fault
        if fault is None:
            return Text("\n\n")
        if fault.vma is None:
            return Text(f"no VMA holds {fault.address:#x}\n\n", palette.WARN)
        vma, page = fault.vma, fault.before.format.page_size
        each = max(1, -(-(vma.size // page) // width)) * page
        cells = -(-vma.size // each)
        edges = np.uint64(vma.start) + np.minimum(
            np.arange(cells + 1, dtype=np.uint64) * np.uint64(each), np.uint64(vma.size)
        )
        came = self._came(edges)
        there = came.astype(np.float64)
        if self._resident is not None:
            there = self._resident.between(edges[:-1], edges[1:]) / np.diff(edges).astype(np.float64)
        color = palette.VMA_KINDS[palette.vma_kind(vma.permissions, vma.name)].color
        text = Text()
        head = Text.assemble(
            (f"{vma.start:#x}-{vma.end:#x} ", f"bold {palette.FOREGROUND}"),
            (f"{vma.permissions} {printable(vma.name) or '(anonymous)'} ", color),
            (f"{format_size(vma.size)}, a cell is {format_size(each)} ", palette.DIM),
        )
        head.truncate(width, overflow="ellipsis")
        text.append_text(head).append("\n")
        for glyph, lit in zip(shades(np.maximum(there, came * 0.25)), came.tolist(), strict=True):
            text.append(glyph, _cell(color, lit))
        at = min(cells - 1, (fault.address - vma.start) // each) if fault.address >= vma.start else 0
        text.append("\n").append_text(self._legend(at, color, width))
        return text

    def _came(
        self, edges: np.ndarray[tuple[int], np.dtype[np.uint64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Cells that a traced fault brought something to."""
        brought = np.array([f.address for f in self._faults if f.frame is not None], np.uint64)
        inside = brought[(brought >= edges[0]) & (brought < edges[-1])]
        lit = np.zeros(edges.size - 1, np.bool_)
        lit[np.searchsorted(edges, inside, "right") - 1] = True
        return lit

    @staticmethod
    def _legend(at: int, color: str, width: int) -> Text:
        line = Text(" " * at).append("▲", f"bold {palette.CURSOR}")
        legend = Text.assemble(
            ("▒▒", _cell(color, True)), (" came in by these faults ", palette.DIM),
            ("▒▒", _cell(color, False)), (" there otherwise", palette.DIM),
        )  # fmt: skip
        if at + 3 + legend.cell_len <= width:
            line.append(" " * (width - at - 1 - legend.cell_len)).append_text(legend)
        elif legend.cell_len + 2 <= at:
            line = legend.append(" " * (at - legend.cell_len)).append("▲", f"bold {palette.CURSOR}")
        return line


def _cell(color: str, lit: bool) -> str:
    if lit:
        return f"{color} on {palette.blend(color, palette.BACKGROUND, 0.35)}"
    return f"{palette.blend(color, palette.BACKGROUND, 0.45)} on {palette.PANEL}"
