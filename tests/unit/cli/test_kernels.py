"""The list of kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from inspector import images
from inspector.images import KernelStatus

Kmi = Callable[..., Any]


@pytest.fixture(autouse=True)
def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        KernelStatus("debian-6.1", "Debian 12, stock", True, True, "6.1.1-1", 3 << 20),
        KernelStatus("debian-6.12", "newer", False, False, "", 0),
    ]
    monkeypatch.setattr(images, "kernels", lambda: found)


def test_drawn(kmi: Kmi) -> None:
    lines = kmi("kernels").out.splitlines()
    assert lines[1].split() == ["debian-6.1", "*", "Debian", "12,", "stock", "6.1.1-1", "3", "MiB"]
    assert lines[2].split() == ["debian-6.12", "newer", "-", "-"]


def test_json(kmi: Kmi) -> None:
    data = json.loads(kmi("kernels", "--json").out)
    assert [row["name"] for row in data] == ["debian-6.1", "debian-6.12"]
    assert list(data[0]) == ["name", "title", "default", "cached", "version", "size_bytes"]
    assert data[0]["size_bytes"] == 3 << 20
    assert (data[1]["cached"], data[1]["version"]) == (False, None)
