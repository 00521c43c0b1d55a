"""Page faults as lines, and one as a drawing: the walk before beside the walk after."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from inspector.arch import WalkStep
from inspector.arch.compare import Pair, side_by_side
from inspector.cli import output
from inspector.cli.walk_view import COLOURS
from inspector.errors import SetupError
from inspector.trace import Fault, FaultKind, FaultTrace
from inspector.trace import telling as tell

LONG = 120
"""Columns of a terminal from which on a fault is one line."""

_ROOMY = 100  # columns from which on each entry says where it is
_WIDE = 110  # columns of the picture
_MOST_DRAWN = 100
_BAR = 24
_BAD = (FaultKind.SIGSEGV, FaultKind.SIGBUS, FaultKind.OUT_OF_MEMORY, FaultKind.KERNEL_EFAULT)
_COSTLY = (FaultKind.FILE_MAJOR, FaultKind.SWAP_IN, FaultKind.COW_COPY)


def titles(long: bool) -> Text:
    """Over the lines."""
    text = f"{'#':>4}  {'Kind':<14}  {'Address':>14}  {'Access':<8}  {'Frame':<16}"
    return Text(text + (f"  {'VM_FAULT_':<9}  {'By':<26}  In" if long else ""), "dim")


def lines(fault: Fault, long: bool) -> Iterator[Text]:
    """A fault in one line, or in short ones."""
    text = Text.assemble(
        (f"{fault.number:>4}", "dim"),
        (f"  {tell.kind_name(fault):<14}", f"bold {colour(fault.kind)}"),
        (f"  {fault.address:>#14x}", "bold"),
        f"  {tell.access(fault)} {tell.mode(fault):<6}",
        f"  {tell.frames(fault):<16}",
    )
    if long:
        text.append(f"  {tell.returned(fault):<9}  {fault.place:<26}  {tell.area(fault)}")
        yield text.append(f"  {fault.reason}" if fault.reason else "", "red")
        return
    yield text
    yield Text(f"      by {fault.place} in {tell.area(fault)}, returned {tell.returned(fault)}", "dim")
    if fault.reason:
        yield Text(f"      {fault.reason}", "red")


def colour(kind: FaultKind) -> str:
    """Red for what failed, yellow for what copied or read."""
    return "red" if kind in _BAD else "yellow" if kind in _COSTLY else "cyan"


def walks(fault: Fault, width: int) -> Iterator[RenderableType]:
    """The entries of both walks, those that changed marked and lit; then the frame that came in."""
    indent = 6 if width >= _ROOMY else 2
    table = output.plain_table("Entry", *(("At",) if width >= _ROOMY else ()), "Before", "", "After")
    for title in table.columns[-3], table.columns[-1]:
        title.no_wrap = False
    for pair, hue in zip(side_by_side(fault.before, fault.after), COLOURS, strict=False):
        name, at, *entries = _row(pair)
        table.add_row(Text(name, hue), *((Text(at, "dim"),) if width >= _ROOMY else ()), *entries)
    yield Padding(table, (0, 0, 0, indent))
    if fault.frame is not None:
        yield Text.assemble(
            (f"{' ' * indent}frame {fault.frame:#x}: ", "dim"),
            f"{tell.state(fault.frame_before)} → {tell.state(fault.frame_after)}",
        )
    yield Text()


def _row(pair: Pair) -> tuple[str, str, Text, Text, Text]:
    step = pair.after or pair.before
    at = f"{step.entry_address:#x}" if step else ""
    mark = Text("→" if pair.changed else "", "bold yellow")
    before = _entry(pair.before, "dim")
    after = _entry(pair.after, "bold black on yellow" if pair.changed else "dim")
    return f"{pair.level.name}[{pair.index}]", at, before, mark, after


def _entry(step: WalkStep | None, style: str) -> Text:
    if step is None:
        return Text("no table", "dim")
    flags = " ".join(step.flags) or ("empty" if not step.entry else "not present")
    return Text.assemble((f"{step.entry:016x}", style), " ", (flags, "bold" if style != "dim" else style))


def summary(trace: FaultTrace) -> Iterator[RenderableType]:
    """How many of each kind, and what is not in the list."""
    total = trace.counts.total()
    yield output.heading(
        f"{total} page fault{'s' if total != 1 else ''} of PID {trace.pid}",
        f"min_flt +{trace.minor}, maj_flt +{trace.major}; {trace.stops} stops of the guest",
    )
    if total:
        table = output.plain_table("Kind", "Count", "", "", right=("Count",))
        most = max(trace.counts.values())
        for kind, count in trace.counts.most_common():
            bar = "█" * max(1, round(_BAR * count / most))
            table.add_row(
                Text(kind.name.lower(), colour(kind)), str(count), Text(bar, "dim"), Text(kind.value, "dim")
            )
        yield table
    left_out = f"filtered out {trace.passed}, ran through of other tasks {trace.others}"
    yield Text.assemble((f"Not in this list: {left_out}, lost {trace.lost}", "red" if trace.lost else "dim"))


class Picture:
    """The first faults of a trace with their walks, as an SVG file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._console = Console(
            record=True, file=io.StringIO(), width=_WIDE, force_terminal=True, markup=False, emoji=False,
            highlight=False, legacy_windows=False, color_system="truecolor",
        )  # fmt: skip
        self._drawn = 0

    def add(self, fault: Fault) -> None:
        """Draw one more."""
        self._drawn += 1
        if self._drawn <= _MOST_DRAWN:
            self._console.print(*lines(fault, False), *walks(fault, _WIDE), sep="\n")

    def save(self, name: str, trace: FaultTrace) -> None:
        """Write the file. Raises SetupError."""
        from inspector.tui.svg import plain

        if self._drawn > _MOST_DRAWN:
            self._console.print(f"and {self._drawn - _MOST_DRAWN} more\n")
        self._console.print(*summary(trace), sep="\n")
        try:
            self._path.write_text(plain(self._console.export_svg(title=f"kmi faults: {name}")))
        except OSError as error:
            raise SetupError(f"cannot write {self._path}: {error.strerror}") from error
