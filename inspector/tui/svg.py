"""Pictures as SVG, and what a screen saves: a picture and the data behind it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

WIDTH = 110
"""Characters that a saved picture is wide."""


def plain(svg: str) -> str:
    """The picture without fonts from the network, and with its spaces kept by every viewer."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return svg.replace("<text ", '<text xml:space="preserve" ')


def save(stem: str, data: Any, draw: Callable[[int], Text], title: str, folder: Path) -> list[str]:
    """Write data as JSON and its drawing as SVG, beside what is there; gives the names. Raises OSError."""
    console = Console(
        record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor"
    )
    console.print(draw(WIDTH))
    contents = {
        ".json": json.dumps(data, indent=2) + "\n",
        ".svg": plain(console.export_svg(title=title)),
    }
    chosen, number = stem, 1
    while any((folder / (chosen + suffix)).exists() for suffix in contents):
        number += 1
        chosen = f"{stem}.{number}"
    for suffix, text in contents.items():
        (folder / (chosen + suffix)).write_text(text)
    return [chosen + suffix for suffix in contents]
