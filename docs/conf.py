"""Sphinx: the manual. `make docs` builds it."""

import re
from typing import Any

project = "kernel memory inspector"
author = "the kernel memory inspector's authors"
copyright = f"2026, {author}"
release = "0.1.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "kernel memory inspector"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False


def _as_rst(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: PG_ is no link, and rows[*] no emphasis."""
    parts = re.split(r"`([^`]+)`", "\n".join(lines))
    parts[::2] = [re.sub(r"[\\*_]", r"\\\g<0>", text) for text in parts[::2]]
    parts[1::2] = [f"``{code}``" for code in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _as_rst)
