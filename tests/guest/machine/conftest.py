"""Machines for the tests of the machine: booted without attaching to their Linux."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inspector import images
from inspector.errors import SetupError
from inspector.machine import LocalMachine, MachineConfig, start
from inspector.units import MIB

Config = Callable[..., MachineConfig]


@pytest.fixture(scope="session")
def base_config() -> MachineConfig:
    """The default kernel with our guest image; a missing prerequisite skips."""
    try:
        kernel = images.fetch_kernel("debian-6.1")
        return MachineConfig(kernel=kernel.bzimage, initrd=images.guest_image(kernel), memory=256 * MIB)
    except SetupError as error:
        pytest.skip(str(error))


@pytest.fixture
def config(base_config: MachineConfig) -> Config:
    """The base with changes."""

    def changed(**changes: Any) -> MachineConfig:
        return replace(base_config, **changes)

    return changed


@pytest.fixture(scope="session")
def machine(base_config: MachineConfig) -> Iterator[LocalMachine]:
    """One guest with two CPUs for all tests that leave it running as it was."""
    with start(replace(base_config, cpus=2)) as machine:
        yield machine


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own; the test fails where a machine left anything in it."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        yield Path(short)
        left = [path for path in Path(short).rglob("*") if path.name != "kmi"]
        assert not left, f"left behind: {left}"
