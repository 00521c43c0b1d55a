"""Which guests share a saved state: those that would boot alike, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inspector.machine.accel import Accel
from inspector.machine.config import MachineConfig
from inspector.machine.starting import state_key

TCG = Accel("TCG", "")


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
    return MachineConfig(kernel=tmp_path / "kernel", initrd=tmp_path / "initrd")


def test_names_and_places_do_not_matter(config: MachineConfig, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"kernel")
    other = replace(config, kernel=tmp_path / "same", name="other", boot_timeout=7.0)
    assert state_key(other, TCG) == state_key(config, TCG)


@pytest.mark.parametrize(
    "change",
    [
        {"memory": 1 << 30},
        {"cpus": 2},
        {"cmdline": "nopti"},
        {"la57": True},
        {"agent": False},
        {"agent": False, "ready_text": "up"},
        {"extra": ("-device", "vmcoreinfo")},
    ],
    ids=str,
)
def test_what_the_guest_can_see_matters(config: MachineConfig, change: dict[str, Any]) -> None:
    assert state_key(replace(config, **change), TCG) != state_key(config, TCG)


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_content_matters(config: MachineConfig, tmp_path: Path, name: str) -> None:
    before = state_key(config, TCG)
    (tmp_path / name).write_bytes(b"other")
    assert state_key(config, TCG) != before


def test_kvm_and_tcg_do_not_share(config: MachineConfig) -> None:
    assert state_key(config, Accel("KVM", "")) != state_key(config, TCG)


def test_another_qemu_has_other_states(
    config: MachineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_bytes(b"7.2")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    before = state_key(config, TCG)
    program.write_bytes(b"10.0")
    assert state_key(config, TCG) != before
