"""Entry point: bad input is one line and exit 2, whatever went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import inspector
from inspector.cli.main import main
from inspector.errors import BootError, GuestDied, InspectorError

Kmi = Callable[..., Any]
COMMANDS = (
    "tui",
    "report",
    "walk",
    "page",
    "devices",
    "faults",
    "allocations",
    "snapshot",
    "diff",
    "export",
    "lab",
    "kernels",
    "boot",
    "save",
    "shell",
    "bench",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(kmi: Kmi, command: str) -> None:
    done = kmi(command, "--help")
    assert done.status == 0
    assert "Example" in done.out
    assert f"kmi {command}" in done.out or command == "tui"
    assert done.err == ""


def test_help_lists_every_command(kmi: Kmi) -> None:
    done = kmi("--help")
    assert done.status == 0
    listed = done.out.split("Commands:")[1].split("Examples:")[0]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wlk", "1", "0"], "no command 'wlk'; did you mean walk"),
        (["zzzzzz"], "there are tui, report, walk"),
        (["report", "--guset", "x"], "--guest"),
        (["report", "--cpus", "two"], "'two' is not a valid integer"),
        (["report", "--initrd", "/nowhere/initrd"], "/nowhere/initrd"),
        (["report", "--accel", "hvf"], "'auto', 'kvm', 'tcg'"),
        (["report", "too", "much"], "too much"),
        (["walk", "1"], "give a PID and a VA; see `kmi walk --help`"),
        (["walk", "1", "0", "--root", "1000"], "give a VA alone with --root"),
        (["walk", "0", "--root", "zz"], "not an address: 'zz'"),
        (["page", "12z"], "not a PFN: '12z'"),
        (["page"], "Missing argument 'PFN'"),
        (["boot"], "Missing option '--name'"),
        (["--memory", "1G", "report"], "the command comes before its options: kmi report --memory 1G"),
        (["report", "--guest", "lab", "--memory", "1G", "--la57"], "leave out --memory, --la57"),
        (["report", "--guest", "lab", "--gdb", "s"], "leave out --gdb"),
        (["report", "--qmp", "s", "--guest", "lab", "--cpus", "2"], "leave out --cpus, --guest"),
        (["walk", "--qmp", "s", "--spawn", "x", "1", "0"], "--qmp takes a QEMU as others run it: leave out"),
        (["report", "--gdb", "s"], "--gdb goes with --qmp"),
    ],
)
def test_bad_input_is_one_line_and_boots_nothing(
    kmi: Kmi, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    def boot(*args: object, **kwargs: object) -> None:
        raise AssertionError("a guest was booted")

    monkeypatch.setattr(inspector, "boot", boot)
    monkeypatch.setattr(inspector, "attach", boot)
    done = kmi(*arguments)
    assert done.status == 2
    assert says in done.error
    assert done.out == ""


@pytest.mark.parametrize("kind", [BootError, GuestDied, InspectorError])
def test_our_errors_are_one_harmless_line(
    kmi: Kmi, monkeypatch: pytest.MonkeyPatch, kind: type[InspectorError]
) -> None:
    def boot(*args: object, **kwargs: object) -> None:
        raise kind("it fell:\n  \x1b[2Jover")

    monkeypatch.setattr(inspector, "boot", boot)
    done = kmi("report")
    assert done.status == 2
    assert done.error == "it fell: \\x1b[2Jover"


def test_ctrl_c_is_130_and_silent(kmi: Kmi, monkeypatch: pytest.MonkeyPatch) -> None:
    def boot(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspector, "boot", boot)
    done = kmi("report")
    assert (done.status, done.out, done.err.strip()) == (130, "", "")


def test_a_bug_is_not_hidden(kmi: Kmi, monkeypatch: pytest.MonkeyPatch) -> None:
    def boot(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspector, "boot", boot)
    with pytest.raises(ZeroDivisionError):
        main(["report"])


def test_without_a_terminal_kmi_prints_the_report(kmi: Kmi, fake: Any) -> None:
    done = kmi()
    assert done.status == 0
    assert "6.1.0-test" in done.out
    assert fake.closed == 1


def test_options_alone_mean_the_terminal_ui(kmi: Kmi, monkeypatch: pytest.MonkeyPatch, fake: Any) -> None:
    given: dict[str, Any] = {}

    def boot(kernel: str, memory: str, cpus: int, **more: Any) -> Any:
        given.update(more, kernel=kernel, memory=memory, cpus=cpus)
        return fake

    monkeypatch.setattr(inspector, "boot", boot)
    assert kmi("--memory", "2G", "--cpus", "3", "--la57", "--append", "nopti").status == 0
    assert (given["memory"], given["cpus"], given["la57"], given["cmdline"]) == ("2G", 3, True, "nopti")


def _process(out: int, tmp_path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "inspector.cli.main", "kernels"],
        stdout=out,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = _process(writer, tmp_path)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = _process(full.fileno(), tmp_path)
    assert done.stderr.decode() == "kmi: cannot write the answer: No space left on device\n"
    assert done.returncode == 2
