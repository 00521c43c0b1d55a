"""What a lab tells, drawn: what is to come, what was seen, and whether that was as it was said to be."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from inspector.labs.story import (
    AliasesShown,
    BlockShown,
    Check,
    Ending,
    EntryShown,
    Event,
    Exhibit,
    FaultShown,
    Frame,
    FrameShown,
    Look,
    NumbersShown,
    PagesShown,
    Question,
    QuoteShown,
    Seen,
    Step,
    VmaShown,
    WalkShown,
)
from inspector.trace import Fault
from inspector.trace import telling as tell
from inspector.tui import palette
from inspector.tui.widgets.bits import level_color
from inspector.tui.widgets.drawing import Drawing, heading
from inspector.tui.widgets.fault import kind_color
from inspector.units import format_size, printable

_LIT = palette.blend(palette.GOOD, palette.BACKGROUND, 0.35)
_GONE = palette.blend(palette.BAD, palette.BACKGROUND, 0.25)
_FREE = {"#": palette.ACCENT, "@": f"bold {palette.WARN}", "c": palette.DIM, "x": palette.BAD}
_PAGES = {"#": palette.ACCENT, ".": palette.FAINT, "s": palette.WARN}


class StoryText(Drawing):
    """Everything that was told so far."""

    def __init__(self) -> None:
        super().__init__(id="story-text")
        self._events: Sequence[Event] = ()
        self._answers: Sequence[str] = ()
        self._error = ""
        self._drawn: tuple[int, Text] | None = None

    def show(self, events: Sequence[Event], answers: Sequence[str], error: str = "") -> None:
        """The story up to now, what the reader answered to each question, and why it goes on no more."""
        self._events, self._answers, self._error, self._drawn = events, answers, error, None
        self.redraw()

    def draw(self, width: int) -> Text:
        """Event below event."""
        if self._drawn is None or self._drawn[0] != width:
            lines = [*story(self._events, self._answers, width), *_broken(self._error, width)]
            self._drawn = width, Text("\n").join(_cut(lines, width))
        return self._drawn[1]


def _cut(lines: Iterable[Text], width: int) -> Iterator[Text]:
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        yield line


def story(events: Sequence[Event], answers: Sequence[str], width: int) -> Iterator[Text]:
    """The lines of a story."""
    said = iter(answers)
    for event in events:
        match event:
            case Step():
                yield from _step(event, width)
            case Seen():
                yield Text()
                for exhibit in event.exhibits:
                    yield from _exhibit(exhibit, width)
                yield from _wrapped(event.words, width, palette.FOREGROUND)
                for check in event.checks:
                    yield from _check(check, width)
                yield Text()
            case Question():
                answer = printable(next(said, "…"))
                yield Text.assemble(
                    ("? ", f"bold {palette.WARN}"), (event.prompt, palette.FOREGROUND),
                    (f" {answer}", f"bold {palette.ACCENT}"),
                )  # fmt: skip
            case Ending(passed=passed, words=words):
                mark = "✔ As expected." if passed else "✖ Not as expected."
                yield Text(mark, f"bold {palette.GOOD if passed else palette.BAD}")
                yield from _wrapped(printable(words), width, f"bold {palette.FOREGROUND}")


def _broken(error: str, width: int) -> Iterator[Text]:
    if error:
        yield Text("✖ This lab cannot be played here.", f"bold {palette.BAD}")
        yield from _wrapped(printable(error), width, f"bold {palette.FOREGROUND}")


def _wrapped(text: str, width: int, style: str, indent: str = "", first: str | None = None) -> Iterator[Text]:
    for line in textwrap.wrap(
        text, max(20, width), initial_indent=indent if first is None else first, subsequent_indent=indent
    ):
        yield Text(line, style)


def _step(step: Step, width: int) -> Iterator[Text]:
    title = Text()
    heading(title, f"{step.number}. {step.title}", width)
    title.rstrip()
    yield title
    yield from _wrapped(step.words, width, palette.FOREGROUND)
    for line in step.code:
        yield Text(f"    {line}", palette.WARN)
    for line in step.expect:
        for number, part in enumerate(_wrapped(line, width - 9, palette.FOREGROUND)):
            lead = "expect · " if not number else " " * 9
            yield Text.assemble((lead, palette.ACCENT), part)


def _check(check: Check, width: int) -> Iterator[Text]:
    if check.passed:
        yield Text.assemble(
            ("✔ ", palette.GOOD), (f"{check.claim}: ", palette.FOREGROUND),
            (printable(check.found), f"bold {palette.FOREGROUND}"), (f"  {check.witness}", palette.DIM),
        )  # fmt: skip
    else:
        yield from _wrapped(printable(check.complaint), width, palette.BAD, "  ", "✖ ")


def _exhibit(exhibit: Exhibit, width: int) -> Iterable[Text]:
    match exhibit:
        case EntryShown():
            return _entry(exhibit)
        case WalkShown(look):
            return _walk(look)
        case FrameShown():
            return [_frame(exhibit)]
        case NumbersShown():
            return _numbers(exhibit)
        case AliasesShown():
            return _aliases(exhibit)
        case VmaShown():
            return _vma(exhibit)
        case PagesShown():
            return _pages(exhibit, width)
        case BlockShown():
            return _block(exhibit, width)
        case FaultShown(fault):
            return [_fault(fault)]
        case QuoteShown(source, lines):
            quoted = (Text(f"  {printable(line)}", palette.FOREGROUND) for line in lines)
            return [Text(source, palette.DIM), *quoted]


def _fault(fault: Fault) -> Text:
    code = "none" if fault.error is None else str(fault.error)
    return Text.assemble(
        ("page fault ", palette.DIM), (f"{fault.kind.value} ", f"bold {kind_color(fault.kind)}"),
        (f"{tell.access(fault)} {tell.mode(fault)} ", palette.FOREGROUND),
        (f"error code {code}, VM_FAULT_ {tell.returned(fault)}, frame {tell.frames(fault)}", palette.DIM),
    )  # fmt: skip


def _entry(exhibit: EntryShown) -> Iterator[Text]:
    """Before above after, what changed lit as in a fault's walks."""
    now, before = exhibit.now, exhibit.before
    at = now.walk.steps[-1].entry_address if now.walk.steps else 0
    yield Text.assemble(
        (f"{now.who} ", f"bold {palette.FOREGROUND}"), (f"{now.walk.va:#x} ", f"bold {palette.ACCENT}"),
        ("its ", palette.DIM), (now.level, level_color(now.level)), (f" at {at:#x}", palette.DIM),
    )  # fmt: skip
    changed = before is not None and before.entry != now.entry
    if before is not None and changed:
        yield Text.assemble(("   was ", palette.DIM), _raw(before, _GONE))
    word = "    is " if before is None else " ▶ now " if changed else "  same "
    yield Text.assemble((word, palette.GOOD if changed else palette.DIM), _raw(now, _LIT if changed else ""))


def _raw(look: Look, ground: str) -> Text:
    lit = f" on {ground}" if ground else ""
    cell = Text()
    cell.append(f"{look.entry:016x} ", (f"bold {palette.FOREGROUND}" if ground else palette.FOREGROUND) + lit)
    if not look.present:
        return cell.append(f"✖ not present: {printable(look.meaning)}", palette.BAD + lit)
    cell.append(" ".join(look.flags), palette.WARN + lit)
    target = look.walk.steps[-1].target
    return cell.append(f" → page {target:#x}" if target is not None else "", palette.GOOD + lit)


def _walk(look: Look) -> Iterator[Text]:
    yield Text.assemble(
        (f"{look.who} ", f"bold {palette.FOREGROUND}"), (f"{look.walk.va:#x}", palette.ACCENT)
    )
    for step in look.walk.steps:
        color = level_color(step.level.name)
        line = Text.assemble(
            (f"  {step.level.name:<4}", f"bold {color}"), (f"{step.index:>4} ", color),
            (f"{step.entry_address:#x} ", palette.DIM), (f"{step.entry:016x} ", palette.FOREGROUND),
            (" ".join(step.flags), palette.WARN),
        )  # fmt: skip
        if step.target is not None:
            line.append(f" → {step.target:#x}", palette.GOOD if step.leaf else palette.DIM)
        yield line


def _frame(exhibit: FrameShown) -> Text:
    now, before = exhibit.now, exhibit.before
    line = Text.assemble(
        (f"{exhibit.name} ", palette.DIM), (f"PFN {now.pfn:#x} ", f"bold {palette.FOREGROUND}"),
        (f"{printable(now.owner)} ", palette.ACCENT),
    )  # fmt: skip
    for name, value, was in _counts(now, before):
        line.append(f" {name} ", palette.DIM)
        if was is not None and was != value:
            line.append(f"{was} ▶ ", palette.DIM).append(str(value), f"bold {palette.GOOD} on {_LIT}")
        else:
            line.append("none" if value is None else str(value), palette.FOREGROUND)
    return line


def _counts(now: Frame, before: Frame | None) -> Iterator[tuple[str, int | None, int | None]]:
    yield "refcount", now.refcount, before.refcount if before else None
    yield "mapcount", now.mapcount, before.mapcount if before else None
    if now.order:
        yield "order", now.order, before.order if before else None


def _numbers(exhibit: NumbersShown) -> Iterator[Text]:
    yield Text(exhibit.source, palette.DIM)
    name = max((len(row.name) for row in exhibit.rows), default=0)
    for row in exhibit.rows:
        changed = row.before is not None and row.before != row.value
        yield Text.assemble(
            (f"  {row.name:<{name}} ", palette.FOREGROUND),
            (f"{row.value:>12,} {row.unit:<4}", f"bold {palette.GOOD}" if changed else palette.FOREGROUND),
            (f" {row.value - (row.before or 0):+,}, was {row.before:,}" if changed else "", palette.DIM),
        )


def _aliases(exhibit: AliasesShown) -> Iterator[Text]:
    yield Text.assemble(
        (f"PFN {exhibit.pfn:#x}", f"bold {palette.FOREGROUND}"), (" is mapped at", palette.DIM)
    )
    who = min(24, max((len(row.who) for row in exhibit.rows), default=0))
    for row in exhibit.rows:
        yield Text.assemble(
            (f"  {printable(row.who):<{who}} ", palette.FOREGROUND), (f"{row.va:#x} ", palette.ACCENT),
            (f"{row.entry:016x} ", palette.FOREGROUND), (" ".join(row.flags), palette.WARN),
        )  # fmt: skip


def _vma(exhibit: VmaShown) -> Iterator[Text]:
    for word, vma in (("was", exhibit.before), ("now" if exhibit.before else "is", exhibit.now)):
        if vma is not None:
            color = palette.VMA_KINDS[palette.vma_kind(vma.permissions, vma.name)].color
            yield Text.assemble(
                (f"mapping {word:<4}", palette.DIM),
                (f"{vma.start:#x}-{vma.end:#x} ", f"bold {palette.FOREGROUND}"),
                (f"{vma.permissions} {printable(vma.name) or '(anonymous)'} ", color),
                (format_size(vma.size), palette.DIM),
            )


def _pages(exhibit: PagesShown, width: int) -> Iterator[Text]:
    yield Text.assemble(
        (f"{len(exhibit.states)} pages from {exhibit.start:#x}  ", f"bold {palette.FOREGROUND}"),
        ("# present  . nothing  s in swap", palette.DIM),
    )
    room = max(16, (width - 2) // 16 * 16)
    for at in range(0, len(exhibit.states), room):
        line = Text("  ")
        for letter in exhibit.states[at : at + room]:
            line.append(letter, _PAGES.get(letter, palette.BAD))
        yield line


def _block(exhibit: BlockShown, width: int) -> Iterator[Text]:
    """What is free is green; equal rows are one, as a block may have many."""
    yield Text.assemble(
        (
            f"{exhibit.when}, {len(exhibit.states)} frames from {exhibit.pfn:#x}  ",
            f"bold {palette.FOREGROUND}",
        ),
        ("0-a free, by order  c CPU's list  # ours  x not", palette.DIM),
    )
    for row, count in exhibit.rows(max(16, min(64, (width - 6) // 16 * 16))):
        line = Text("  ")
        for letter in row:
            line.append(letter, _FREE.get(letter, palette.GOOD))
        yield line.append(f" x{count}" if count > 1 else "", palette.DIM)
