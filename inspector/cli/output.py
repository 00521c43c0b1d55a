"""What goes to stdout: text drawn by rich, or JSON; and the small things that all drawings share."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from inspector.errors import SetupError
from inspector.units import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead, for programs.")


def examples(*lines: str, before: str = "") -> str:
    """A command's epilog: example command lines, kept from being wrapped."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return (f"\b\n{before}\n\n" if before else "") + "\n".join(
        ("\b", title, *(f"  {line}" for line in lines))
    )


def width() -> int:
    """Columns that a drawing may take."""
    return Console().width


def show(*parts: RenderableType) -> None:
    """Draw on stdout. No markup, no emoji codes: names from the guest must show as they are."""
    if sys.stdout.isatty():
        Console(markup=False, emoji=False, highlight=False).print(*parts, sep="\n")
        return
    text = io.StringIO()
    Console(file=text, markup=False, emoji=False, highlight=False, width=width()).print(*parts, sep="\n")
    write("".join(line.rstrip() + "\n" for line in text.getvalue().splitlines()))


def line(text: Text) -> None:
    """Write one line, however long, as it comes."""
    if sys.stdout.isatty():
        Console(markup=False, emoji=False, highlight=False).print(text, soft_wrap=True)
    else:
        write(text.plain.rstrip() + "\n")


def emit_json(value: Any) -> None:
    """Print a value as JSON."""
    write(json.dumps(value, indent=2) + "\n")


def write(text: str) -> None:
    """Put text on stdout at once. Raises SetupError; BrokenPipeError where nobody reads."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python flushes what is left on its way out, and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise  # who reads has seen enough
        raise SetupError(f"cannot write the answer: {error.strerror}") from error


def guest_text(text: str, style: str = "") -> Text:
    """A string that the guest chose, made harmless."""
    return Text(printable(text), style)


def heading(text: str, note: str = "") -> Text:
    """A section's title, and a quiet remark behind it."""
    return Text.assemble(("\n" + text, "bold cyan"), ("  " + note if note else "", "dim"))


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines; the columns named in `right` hold numbers."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", no_wrap=True)
    return table
