"""The reference lists each expectation."""

from __future__ import annotations

import re
from pathlib import Path

from inspector.testing import expect

_ROOT = Path(__file__).parents[3]


def test_each_is_in_the_reference_once() -> None:
    page = (_ROOT / "docs/reference/testing.md").read_text()
    listed = re.findall(r"autofunction:: inspector\.testing\.expect\.(\w+)", page)
    assert sorted(listed) == sorted(expect.__all__)
