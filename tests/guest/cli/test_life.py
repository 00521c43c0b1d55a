"""How runs of `kmi` end, and that they leave nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.guest


def opened(host: Any, *more: str) -> Any:
    """A guest held open by a process of its own."""
    process = host.start("boot", "--name", "held", "--memory", "256M", *more)
    host.wait_for(lambda: "is open" in host.log() or process.poll() is not None, "the guest")
    assert process.poll() is None, host.log()
    return process


def test_without_a_terminal_kmi_reports_and_leaves_nothing(host: Any) -> None:
    done = host.run("--memory", "256M")
    assert done.stdout.startswith("Guest")
    assert "DMA32" in done.stdout
    assert all(line.startswith("kmi: ") for line in done.stderr.splitlines())
    host.assert_clean()


def test_a_held_guest_is_shared_and_goes_with_its_holder(host: Any) -> None:
    process = opened(host)
    assert json.loads(host.run("report", "--guest", "held", "--json").stdout)["guest"]["name"] == "held"
    qmp, gdb = re.findall(r"at (/\S+/(?:qmp|gdb))\b", host.log())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tool:
        tool.connect(qmp)
        assert tool.recv(4096).startswith(b'{"QMP"')
    assert Path(gdb).is_socket()
    again = host.run("boot", "--name", "held", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "Traceback" not in host.log()
    host.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_while_it_boots(host: Any, number: signal.Signals) -> None:
    process = host.start("report", "--memory", "256M", "--cold")
    host.wait_for(lambda: "Booting" in host.log() and len(host.processes()) > 2, "the boot")
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert [line for line in host.log().splitlines() if not line.startswith("kmi: ")] in ([], [""])
    host.assert_clean()


def test_killed_while_it_holds(host: Any) -> None:
    process = opened(host)
    process.kill()
    process.wait(60)
    host.wait_for(lambda: not host.processes(), "the end of all processes")
    # The name's socket could not be removed by a dead process: the next command does it.
    assert host.run("report", "--guest", "held", check=False).stderr.startswith("kmi: no guest named 'held'")
    host.assert_clean()


def test_ctrl_c_ends_a_held_guest(host: Any) -> None:
    process = opened(host)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "Traceback" not in host.log()
    host.assert_clean()


def test_a_dying_guest_is_one_line(host: Any) -> None:
    process = opened(host)
    found = re.search(r"QEMU has PID (\d+)", host.log())
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
    assert process.wait(60) == 2
    assert host.log().splitlines()[-1].startswith("kmi: the guest is gone: ")
    assert "Traceback" not in host.log()
    host.assert_clean()


def test_q_ends_a_held_guest(host: Any) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        host.command("boot", "--name", "held", "--memory", "256M"),
        env=host.environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    try:
        assert process.stdout
        assert b"is open" in process.stdout.readline()
        os.write(ours, b"q\n")
        assert process.wait(60) == 0
    finally:
        os.close(ours)
        process.communicate()
    host.assert_clean()
