"""One guest, and drgn on the same guest over QEMU's second QMP socket, with the -dbg package's vmlinux."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inspector
from inspector import Guest, images
from inspector.errors import SetupError
from inspector.machine import LocalMachine

KERNEL = "debian-6.1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.oracle)


@pytest.fixture(scope="session")
def drgn() -> Any:
    """The drgn module."""
    try:
        return importlib.import_module("drgn")
    except ImportError:
        pytest.skip("drgn is not installed; `make test-oracle` does it")


def program_at(name: str) -> Path:
    """Where a program of the system is."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `make test-oracle` does it")
    return Path(found)


@pytest.fixture(scope="session")
def crash_program() -> Path:
    """The crash utility."""
    return program_at("crash")


@pytest.fixture(scope="session")
def makedumpfile() -> Path:
    """What packs vmcores."""
    return program_at("makedumpfile")


@pytest.fixture(scope="session")
def debug_vmlinux(drgn: Any) -> Path:
    """The kernel's vmlinux with DWARF."""
    try:
        return images.fetch_debug_vmlinux(images.fetch_kernel(KERNEL))
    except SetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def guest(debug_vmlinux: Path) -> Iterator[Guest]:
    """A paused guest with two CPUs."""
    try:
        booted = inspector.boot(KERNEL, "512M", 2)
    except SetupError as error:
        pytest.skip(str(error))
    with booted:
        booted.pause()
        yield booted


@pytest.fixture(scope="session")
def program(drgn: Any, guest: Guest, debug_vmlinux: Path) -> Any:
    """The drgn program on that guest."""
    assert isinstance(guest.machine, LocalMachine)
    program = drgn.Program()
    program.set_qemu_qmp(str(guest.machine.folder / "qmp"))
    program.load_debug_info([str(debug_vmlinux)])
    return program
