"""`kmi faults` on a live guest, against a program that says which faults it makes."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from inspector import Guest

pytestmark = pytest.mark.guest
_WINDOW = (0x1000_0000_0000, 0x1001_0000_0000)  # qemu_images/programs/faults.c: the script's alone


def test_faults_are_those_that_the_program_makes(guest: Guest, host: Any, served: str) -> None:
    span = "-".join(f"{edge:x}" for edge in _WINDOW)
    done = host.run("faults", "--range", span, "--json", "--guest", served, "--", "/labs/faults", "/tmp")
    data = json.loads(done.stdout)
    said = guest.run(f"cat /tmp/spawn-{data['pid']}.log").check().stdout.splitlines()
    script = [line.split()[:4] for line in said[:-1]]
    assert [[f["kind"].upper(), f["mode"], f["access"], f["address"]] for f in data["faults"]] == [
        line for line in script if _WINDOW[0] <= int(line[3], 16) < _WINDOW[1]
    ]
    assert len(data["faults"]) > 20
    assert data["summary"]["lost"] == 0
    assert data["summary"]["filtered"] > 10


def test_ctrl_c_leaves_the_guest_running(guest: Guest, host: Any, served: str) -> None:
    pid = guest.spawn("while :; do /bin/busybox true; done")
    try:
        process = host.start("faults", str(pid), "--guest", served)
        host.wait_for(lambda: "/bin/busybox" in host.log(), "a line of a fault")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "page faults of PID" in host.log()
        # It faults on, and nobody stops there any more.
        assert guest.run("/bin/busybox true; echo on").check().stdout == "on\n"
        assert guest.running
    finally:
        guest.run(f"kill {pid}")


def test_a_command_that_is_none(host: Any, served: str) -> None:
    done = host.run("faults", "999999", "--guest", served, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no task has PID 999999" in done.stderr
