"""The steps of a lab as drawings, for terminals of 80 columns."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from inspector.cli import output, walk_view
from inspector.cli.output import guest_text
from inspector.errors import SetupError
from inspector.guest import GuestInfo
from inspector.labs.story import (
    AliasesShown,
    BlockShown,
    Check,
    Ending,
    EntryShown,
    Event,
    Exhibit,
    FaultShown,
    FrameShown,
    Lab,
    Look,
    NumbersShown,
    PagesShown,
    QuoteShown,
    Seen,
    Step,
    VmaShown,
    WalkShown,
)
from inspector.trace import telling as tell
from inspector.units import format_size

_ADDED, _GONE = "bold green", "bold red"
_ACCESS = {"r": "read", "w": "write", "x": "fetch"}
_WIDTH = 80  # columns of a picture
_PAGES_A_LINE = 64
_FREE_LEGEND = "0-a free, by order  c CPU's list  # ours  x not"
_LEGEND = "P present, RW writable, US user, A accessed, D dirty, NX no code, SW Linux's own"


def title(lab: Lab, guest: GuestInfo) -> list[RenderableType]:
    """What is asked, and where; and how to read the entries."""
    return [
        Text(lab.question, "bold"),
        Text(f"Linux {guest.release}, lab {lab.name}. The flags of page table entries:", "dim"),
        Text(_LEGEND, "dim"),
    ]


def event(event: Event) -> list[RenderableType]:
    """One event; a question draws itself as it is asked, and what failed is said on stderr."""
    match event:
        case Step():
            return list(_step(event))
        case Seen():
            parts = [part for exhibit in event.exhibits for part in _exhibit(exhibit)]
            words = [Text(event.words)] if event.words else []
            return [Text(""), *parts, *words, _checks(event.checks)]
        case Ending(passed=True):
            return [Text(""), Text.assemble(("As expected. ", "bold green"), event.words)]
        case _:
            return []


class Pictures:
    """The steps of a lab as SVG files, one each: FOLDER/lab-NAME-1.svg and so on."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._number = 0
        self._console = self._fresh()

    @staticmethod
    def _fresh() -> Console:
        return Console(
            record=True, file=io.StringIO(), width=_WIDTH, force_terminal=True, markup=False, emoji=False,
            highlight=False, legacy_windows=False, color_system="truecolor",
        )  # fmt: skip

    def add(self, event: Event, parts: list[RenderableType]) -> None:
        """Draw what a step has to say. Raises SetupError."""
        if isinstance(event, Step | Ending):
            self.save()
            self._number = event.number if isinstance(event, Step) else 0
        if self._number and parts:
            self._console.print(*parts, sep="\n")

    def save(self) -> None:
        """Write the picture of the last step. Raises SetupError."""
        from inspector.tui.svg import plain

        if self._number:
            path = self._folder / f"lab-{self._name}-{self._number}.svg"
            text = plain(self._console.export_svg(title=f"kmi lab {self._name}, step {self._number}"))
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            except OSError as error:
                raise SetupError(f"cannot write {path}: {error.strerror}") from error
        self._console = self._fresh()


def _step(step: Step) -> Iterable[RenderableType]:
    yield output.heading(f"{step.number}. {step.title}")
    yield Text(step.words)
    for line in step.code:
        yield Text(f"    {line}", "yellow")
    grid = Table.grid(padding=(0, 1))
    for number, line in enumerate(step.expect):
        grid.add_row(Text("" if number else "Expect", "bold"), "·", Text(line))
    yield grid


def _checks(checks: Iterable[Check]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for check in checks:
        mark = Text("✓", _ADDED) if check.passed else Text("✗", _GONE)
        if check.passed:
            text = Text.assemble(f"{check.claim}: ", guest_text(check.found), (f"  ({check.witness})", "dim"))
        else:
            text = guest_text(check.complaint, _GONE)
        grid.add_row(mark, text)
    return grid


def _exhibit(exhibit: Exhibit) -> Iterable[RenderableType]:
    match exhibit:
        case EntryShown():
            return _entry(exhibit)
        case WalkShown(look):
            return [*walk_view.cut(look.walk), Text(""), *walk_view.steps(look.walk)]
        case FrameShown():
            return [_frame(exhibit)]
        case NumbersShown():
            return _numbers(exhibit)
        case AliasesShown():
            return _aliases(exhibit)
        case VmaShown():
            return _vma(exhibit)
        case PagesShown():
            return _pages(exhibit)
        case BlockShown():
            return _block(exhibit)
        case FaultShown(fault):
            error = "none" if fault.error is None else str(fault.error)
            how = f"{tell.mode(fault)} {_ACCESS[tell.access(fault)]}, error code {error}"
            return [Text.assemble(("page fault: ", "bold"), (fault.kind.value, "yellow"), f"  {how}")]
        case QuoteShown(source, lines):
            return [Text(source, "dim"), *(Padding(guest_text(line), (0, 0, 0, 2)) for line in lines)]


def _entry(exhibit: EntryShown) -> Iterable[RenderableType]:
    """Before and after below each other, so that what changed stands out; one line where nothing did."""
    now, before = exhibit.now, exhibit.before
    table = Table.grid(padding=(0, 2, 0, 0))
    if before is not None and before.entry == now.entry:
        table.add_row(Text.assemble((f"{now.who}'s {now.level} as before", "bold")), *_row(now, None, ""))
        yield table
        return
    at = now.walk.steps[-1].entry_address if now.walk.steps else 0
    yield Text.assemble((f"{now.who}, {now.walk.va:#x}: ", "bold"), (f"its {now.level} at {at:#x}", "dim"))
    if before is not None:
        table.add_row(Text("  was", "dim"), *_row(before, now, _GONE))
    table.add_row(Text("  is" if before is None else "  now", "dim"), *_row(now, before, _ADDED))
    if before is not None and (words := _changes(now, before)):
        table.add_row("", "", words, "")
    yield table


def _row(look: Look, other: Look | None, style: str) -> tuple[Text, Text, Text]:
    raw = Text(f"{look.entry:016x}")
    if not look.present:
        return raw, Text("not present"), Text(look.meaning)
    flags = Text(" ").join(
        Text(flag, style if other is not None and flag not in other.flags else "") for flag in look.flags
    )
    target = look.walk.steps[-1].target
    moved = other is not None and other.present and other.walk.pfn != look.walk.pfn
    return raw, flags, Text(f"page {target:#x}", style if moved else "")


def _changes(now: Look, before: Look) -> Text:
    """What came and went, as +RW -D; nothing where a page came or went."""
    if not now.present or not before.present:
        return Text()
    came = [(f"+{flag} ", _ADDED) for flag in now.flags if flag not in before.flags]
    went = [(f"-{flag} ", _GONE) for flag in before.flags if flag not in now.flags]
    moved = [("another page", _ADDED)] if now.walk.pfn != before.walk.pfn else []
    return Text.assemble(*came, *went, *moved)


def _frame(exhibit: FrameShown) -> Table:
    """Which frame and whose, which may take two lines; and its counts."""
    now, before = exhibit.now, exhibit.before

    def number(what: str, value: int | None, was: int | None) -> list[tuple[str, str]]:
        text = "no" if value is None else str(value)
        if before is None or was == value:
            return [(f"  {what} ", "dim"), (text, "")]
        return [(f"  {what} {'no' if was is None else was}→", "dim"), (text, _ADDED)]

    order = [("  order ", "dim"), (str(now.order), "")] if now.order else []
    counts = Text.assemble(
        *number("refcount", now.refcount, before.refcount if before else None),
        *number("mapcount", now.mapcount, before.mapcount if before else None),
        *order,
    )
    grid = Table.grid()
    grid.add_column()
    grid.add_column(no_wrap=True)
    grid.add_row(Text.assemble((exhibit.name, "bold"), f" {now.pfn:#x}  ", guest_text(now.owner)), counts)
    return grid


def _numbers(exhibit: NumbersShown) -> Iterable[RenderableType]:
    yield Text(f"from {exhibit.source}:", "dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for row in exhibit.rows:
        changed = row.before is not None and row.before != row.value
        was = f"was {row.before:,}, {row.value - (row.before or 0):+,}" if changed else ""
        table.add_row(
            f"  {row.name}", Text(f"{row.value:,}", _ADDED if changed else ""), row.unit, Text(was, "dim")
        )
    yield table


def _aliases(exhibit: AliasesShown) -> Iterable[RenderableType]:
    yield Text.assemble((f"PFN {exhibit.pfn:#x}", "bold"), (" is mapped at", "dim"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for row in exhibit.rows:
        table.add_row(
            Text("  ") + guest_text(row.who), f"{row.va:#x}", f"{row.entry:016x}", " ".join(row.flags)
        )
    yield table


def _vma(exhibit: VmaShown) -> Iterable[RenderableType]:
    for word, vma in (("was", exhibit.before), ("now" if exhibit.before else "is", exhibit.now)):
        if vma is not None:
            yield Text.assemble(
                ("mapping ", "bold"), (f"{word:<4}", "dim"),
                f"{vma.start:#x}-{vma.end:#x} {vma.permissions} ", guest_text(vma.name),
                (f" {format_size(vma.size)}", "dim"),
            )  # fmt: skip


def _pages(exhibit: PagesShown) -> Iterable[RenderableType]:
    yield Text.assemble(
        (f"{len(exhibit.states)} pages from {exhibit.start:#x}", "bold"),
        ("  # present  . nothing  s in swap", "dim"),
    )
    for at in range(0, len(exhibit.states), _PAGES_A_LINE):
        yield Text("  " + exhibit.states[at : at + _PAGES_A_LINE], "cyan")


def _block(exhibit: BlockShown) -> Iterable[RenderableType]:
    yield Text.assemble(
        (f"{exhibit.when}, {len(exhibit.states)} frames from {exhibit.pfn:#x}", "bold"),
        (f"  {_FREE_LEGEND}", "dim"),
    )
    for row, count in exhibit.rows(_PAGES_A_LINE):
        yield Text.assemble("  ", (row, "cyan"), (f" x{count}" if count > 1 else "", "dim"))
