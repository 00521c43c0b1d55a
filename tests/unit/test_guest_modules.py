"""Loading and unloading, with a machine that notes what it is told and answers as a guest did."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from inspector import guest_modules, images
from inspector.errors import MachineError, UsageError
from inspector.guest_modules import load, unload
from inspector.machine import Completed, Machine

RELEASE = "6.1.0-9-amd64"


class FakeMachine:
    """Takes files and commands."""

    def __init__(self, returncode: int = 0, stdout: str = "", stderr: str = "") -> None:
        self.answer = Completed(stdout.encode(), stderr.encode(), returncode, "")
        self.commands: list[str] = []
        self.files: dict[str, bytes] = {}

    def run(self, command: str, timeout: float = 30) -> Completed:
        self.commands.append(command)
        return self.answer

    def put(self, data: bytes, path: str, mode: int = 0o755) -> None:
        self.files[path] = data


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that is built already, with the parameters `most` and `text`."""
    built = tmp_path / "toy.ko"
    built.write_bytes(b"\x7fELF\0parmtype=most:uint\0parm=most:how many\0parmtype=text:charp\0")
    monkeypatch.setattr(images, "cached_kernel", lambda release: release)
    monkeypatch.setattr(images, "build_module", lambda kernel, name, reporter: built)
    return built


def asked(machine: FakeMachine, **parameters: Any) -> FakeMachine:
    load(cast(Machine, machine), RELEASE, "toy", parameters)
    return machine


def test_load(toy: Path) -> None:
    machine = asked(FakeMachine(), most=3, text="two words; rm -rf /")
    assert machine.files == {"/modules/toy.ko": toy.read_bytes()}
    assert "; insmod /modules/toy.ko most=3 'text=two words; rm -rf /'; " in machine.commands[0]
    assert "rm /modules/toy.ko" in machine.commands[0]


def test_a_bool_is_what_the_kernel_reads() -> None:
    assert " most=Y text=N; " in asked(FakeMachine(), most=True, text=False).commands[0]


def test_a_parameter_that_it_does_not_have() -> None:
    machine = FakeMachine()
    with pytest.raises(UsageError, match="no parameter 'least'; it has most, text"):
        asked(machine, least=1)
    assert not machine.commands


@pytest.mark.parametrize(
    ("log", "complaint", "reason"),
    [
        (
            "[    6.353605] toy: loading out-of-tree module taints kernel.\n"
            "[    6.354013] toy: module verification failed: signature missing - tainting kernel\n"
            "[   14.639809] toy: `abc' invalid for parameter `most'\n",
            "insmod: can't insert '/modules/toy.ko': Invalid argument\n",
            "toy: `abc' invalid for parameter `most'",
        ),
        ("", "insmod: can't insert '/modules/toy.ko': File exists\n", "it is loaded already"),
        ("", "insmod: can't insert '/modules/toy.ko': No such device\n", "No such device"),
        ("", "", "it gave no reason"),
        ("[    1.000000] toy: \x1b[31mred\n", "", r"toy: \x1b[31mred"),
    ],
)
def test_why_the_kernel_refuses(log: str, complaint: str, reason: str) -> None:
    with pytest.raises(MachineError) as caught:
        asked(FakeMachine(1, log, complaint))
    assert str(caught.value) == f"the guest's kernel refuses toy: {reason}"


def test_unload() -> None:
    machine = FakeMachine()
    unload(cast(Machine, machine), "toy")
    assert machine.commands[0].startswith("rmmod toy ")


@pytest.mark.parametrize(
    ("said", "why"),
    [("", "it is not loaded"), ("2\n", "its reference count is 2"), ("1\nuser\n", "it is used by user")],
)
def test_why_it_is_not_unloaded(said: str, why: str) -> None:
    with pytest.raises(MachineError, match=f"toy is not unloaded: {why}$"):
        unload(cast(Machine, FakeMachine(1, said)), "toy")


@pytest.mark.parametrize("name", ["", "two words", "a;b", "../x", "-f"])
def test_what_is_no_name(name: str) -> None:
    machine = FakeMachine()
    with pytest.raises(UsageError, match="not a module's name"):
        unload(cast(Machine, machine), name)
    assert not machine.commands
    assert guest_modules._NAME.fullmatch("nf_tables2")
