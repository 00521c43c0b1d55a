"""The program that talks to the driver, built for the guest: static, as the guest has no C library."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("programs") / "chatter"
    subprocess.run(["gcc", "-O2", "-Wall", "-static", "-o", program, PROJECT / "chatter.c"], check=True)
    return program
