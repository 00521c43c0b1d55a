"""A cache folder of the test's own, and what the host must have."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test: nothing here touches the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "kmi"


@pytest.fixture
def need() -> Callable[[str], None]:
    """Skip where a tool of the host is missing; fail where nothing may be missing (CI)."""

    def check(tool: str) -> None:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")

    return check


@pytest.fixture
def bzimage() -> bytes:
    """The least that passes for a bzImage: three sectors of setup, then 64 bytes (boot.rst)."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x1F4:0x1F8] = struct.pack("<I", 64 // 16)
    setup[0x202:0x206] = b"HdrS"
    setup[0x20E:0x210] = struct.pack("<H", 0x100)
    setup[0x300:0x31A] = b"6.1.0-1-test (a@b) #1 SMP\0"
    return bytes(setup) + bytes(64)
