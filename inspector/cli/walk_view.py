"""A walk as a drawing: the address cut into its indices, then an entry a level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from inspector.arch import EntryFlag, Walk, WalkStep
from inspector.cli import output
from inspector.cli.output import guest_text
from inspector.units import format_size

if TYPE_CHECKING:
    from inspector.cli.walk import Answer

COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


def draw(answer: Answer, verbose: bool) -> None:
    """Print the walk for a person; `verbose` tells the flags' meanings."""
    walk = answer.walk
    title = (
        (f"{walk.va:#x} ", "bold"),
        guest_text(answer.where),
        f": {walk.format.name} tables from {walk.root:#x}\n",
    )
    output.show(Text.assemble(*title), *cut(walk), Text(""), *steps(walk, verbose), _result(walk))


def cut(walk: Walk) -> list[Text]:
    """The address's bits in the fields that the MMU sees, with names above and indices below."""
    names, bits, values = Text(), Text(), Text()
    for name, high, low, style in _fields(walk):
        width = high - low + 1
        value = walk.va >> low & (1 << width) - 1
        shown = f"{value:#x}" if name in ("sign", "offset") else str(value)
        wide = max(width, len(name), len(shown))
        names.append(f"{name:^{wide}} ", "dim")
        bits.append(f"{value:0{width}b}".center(wide) + " ", style)
        values.append(f"{shown:^{wide}} ", f"bold {style}".strip())
    return [names, bits, values]


def _fields(walk: Walk) -> list[tuple[str, int, int, str]]:
    """Name, highest bit, lowest bit and style of each field, from the top; levels not reached are dim."""
    format = walk.format
    top = 8 * format.pointer_size - 1
    found = [("sign", top, format.va_bits, "dim")] if format.va_bits <= top else []
    levels = format.levels if walk.fault else tuple(step.level for step in walk.steps)
    for number, level in enumerate(levels):
        style = COLOURS[number] if number < len(walk.steps) else "dim"
        found.append((level.name, level.shift + level.bits - 1, level.shift, style))
    return [*found, ("offset", levels[-1].shift - 1, 0, "dim" if walk.fault else "")]


def steps(walk: Walk, verbose: bool = False) -> Iterator[RenderableType]:
    """An entry a level, and what `verbose` has to say of their flags."""
    if not walk.steps:
        return
    columns = ("Entry", "At", "Raw", "Flags", "Leads to")
    table = output.plain_table(*columns)
    table.columns[3].no_wrap = False  # of all columns this one may give way in a narrow terminal
    seen: dict[EntryFlag, None] = {}
    for step, colour in zip(walk.steps, COLOURS, strict=False):
        row = (f"{step.level.name}[{step.index}]", f"{step.entry_address:#x}", f"{step.entry:016x}")
        for column, text in zip(table.columns, row, strict=False):
            column.min_width = max(column.min_width or 0, len(text))
        table.add_row(Text(row[0], colour), *row[1:], Text(" ".join(step.flags), "bold"), _leads_to(step))
        table.columns[4].min_width = max(table.columns[4].min_width or 0, len(_leads_to(step)))
        if step.shape:
            seen |= dict.fromkeys(flag for flag in step.shape.flags if flag.value(step.entry))
    yield table
    yield Text("")
    if verbose:
        meanings = output.plain_table("Flag", "Bit", "Meaning", right=("Bit",))
        meanings.columns[2].no_wrap = False
        for flag in seen:
            meanings.add_row(Text(flag.name, "bold"), str(flag.bit), flag.meaning)
        yield meanings
        yield Text("")


def _leads_to(step: WalkStep) -> str:
    if step.target is None:
        return "not present" if step.shape is None else "reserved bits"
    return f"{'page' if step.leaf else 'table'} {step.target:#x}"


def _result(walk: Walk) -> Text:
    if walk.phys is None or walk.page_size is None:
        assert walk.fault
        kind = walk.fault.kind.value
        return Text.assemble((f"No translation, {kind}: ", "bold red"), walk.fault.what)
    rights = [
        "writable" if walk.writable else "read-only",
        "user" if walk.user else "kernel only",
        "executable" if walk.executable else "no execute",
    ]
    if walk.memory_type:
        rights.append(f"PAT entry {walk.memory_type}")
    if walk.pkey:
        rights.append(f"protection key {walk.pkey}")
    return Text.assemble(
        ("Physical ", "bold green"),
        (f"{walk.phys:#x}", "bold"),
        f", PFN {walk.pfn} ({walk.pfn:#x}), in a {format_size(walk.page_size)} page: {', '.join(rights)}",
    )
