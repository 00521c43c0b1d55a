"""Whoever dies first, and however: a clear line, and no process, socket, folder or RAM file is left."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inspector.errors import GuestDied
from inspector.machine import connect, list_guests, serve, start

from .conftest import Config

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[3]

HOLDER = """
import json, sys
from pathlib import Path
from inspector.machine import MachineConfig, serve, start
kernel, initrd, memory, gdb = sys.argv[1:5]
machine = start(MachineConfig(kernel=Path(kernel), initrd=Path(initrd), memory=int(memory), name="held"))
serve(machine)
pids = [machine.qemu_pid, machine._process._supervisor.pid]
if gdb == "gdb":
    pids.append(machine.gdb.pid)
print(json.dumps({"pids": pids, "folder": str(machine.folder)}), flush=True)
sys.stdin.read()
"""


def holder(config: Config, *, gdb: bool = False) -> subprocess.Popen[bytes]:
    """Another process that boots and holds a guest."""
    base = config()
    command = [sys.executable, "-c", HOLDER, str(base.kernel), str(base.initrd), str(base.memory)]
    return subprocess.Popen(
        [*command, "gdb" if gdb else "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def told(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1].decode()
    answer: dict[str, Any] = json.loads(line)
    return answer


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_end(pids: list[int]) -> bool:
    """Whether they all end within some seconds."""
    for _ in range(1000):
        if all(map(ended, pids)):
            return True
        time.sleep(0.01)
    return False


def holders_of_ram(runtime: Path) -> list[str]:
    """Processes whose command line or environment names the test's folder: they would be ours, and left."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(runtime).encode() in (process / "cmdline").read_bytes() and not ended(int(process.name)):
                found.append(process.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def all_gone(runtime: Path) -> bool:
    """Whether processes and private folders go within some seconds: the supervisor outlives us a moment."""
    for _ in range(1000):
        if not holders_of_ram(runtime) and not list((runtime / "kmi").glob("m-*")):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("gdb", [False, True], ids=["", "with-gdb"])
def test_we_are_killed(config: Config, runtime: Path, gdb: bool) -> None:
    process = holder(config, gdb=gdb)
    about = told(process)
    process.kill()
    process.communicate()
    assert all_end(about["pids"])
    assert not Path(about["folder"]).exists()
    assert not holders_of_ram(runtime)
    assert list_guests() == []


def test_ctrl_c_in_the_terminal_reaches_us_alone(config: Config, runtime: Path) -> None:
    """The whole foreground group gets SIGINT, as from a terminal: only we may act on it."""
    process = holder(config, gdb=True)
    about = told(process)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert all_end(about["pids"])
    assert not Path(about["folder"]).exists()


@pytest.mark.parametrize("after", [0.15, 0.4, 1.0, 2.5])
def test_ctrl_c_during_the_boot(config: Config, runtime: Path, after: float) -> None:
    process = holder(config)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == b"", "it was still booting"
    assert process.returncode != 0
    assert all_gone(runtime)


def test_qemu_is_killed(config: Config, runtime: Path) -> None:
    machine = start(config())
    deaths: queue.Queue[str] = queue.Queue()
    machine.on_death(deaths.put)
    assert machine.qemu_pid is not None
    os.kill(machine.qemu_pid, signal.SIGKILL)
    assert deaths.get(timeout=20) == "QEMU was killed by signal 9"
    for action in (lambda: machine.run("true"), lambda: machine.hmp("info status"), machine.pause):
        with pytest.raises(GuestDied, match=r"^the guest is gone: QEMU was killed by signal 9$"):
            action()
    assert not machine.alive
    assert machine.state().reason == "dead: QEMU was killed by signal 9"
    machine.close()


def test_qemu_is_killed_while_a_command_runs(config: Config, runtime: Path) -> None:
    with start(config()) as machine:
        pid = machine.qemu_pid
        assert pid is not None
        killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {pid}"])
        with pytest.raises(GuestDied, match="QEMU was killed by signal 9"):
            machine.run("sleep 60", timeout=60)
        killer.wait()


def test_qemu_is_killed_with_gdb_attached(config: Config, runtime: Path) -> None:
    with start(config()) as machine:
        gdb = machine.gdb.pid
        assert machine.qemu_pid is not None
        os.kill(machine.qemu_pid, signal.SIGKILL)
        assert all_end([gdb])
        with pytest.raises(GuestDied, match="QEMU was killed by signal 9"):
            machine.resume()


def test_the_supervisor_is_killed(config: Config, runtime: Path) -> None:
    with start(config()) as machine:
        deaths: queue.Queue[str] = queue.Queue()
        machine.on_death(deaths.put)
        assert machine.qemu_pid is not None
        machine._process._supervisor.kill()
        assert deaths.get(timeout=20) == "its supervisor was killed"
        assert all_end([machine.qemu_pid])
        assert not machine.folder.exists()


def test_the_guest_panics(config: Config, runtime: Path) -> None:
    with start(config()) as machine:
        deaths: queue.Queue[str] = queue.Queue()
        machine.on_death(deaths.put)
        said = r"Kernel panic - not syncing: sysrq triggered crash"
        with pytest.raises(GuestDied, match=rf"^the guest is gone: {said}"):
            machine.run("echo c > /proc/sysrq-trigger; sleep 60", timeout=60)
        assert deaths.get(timeout=20) == said
        assert said in machine.console_tail(200), "the console outlives the guest"


def test_the_guest_powers_off(config: Config, runtime: Path) -> None:
    with start(config()) as machine, pytest.raises(GuestDied, match="the guest shut itself down"):
        machine.run("poweroff -f; sleep 60", timeout=60)


def test_a_client_in_another_process_sees_the_guest_die(config: Config, runtime: Path) -> None:
    process = holder(config)
    about = told(process)
    with connect("held") as remote:
        deaths: queue.Queue[str] = queue.Queue()
        remote.on_death(deaths.put)
        assert remote.run("echo here").stdout == "here\n"
        assert os.fstat(remote.ram_fd).st_size == config().memory
        os.kill(about["pids"][0], signal.SIGKILL)
        assert deaths.get(timeout=20) == "QEMU was killed by signal 9"
    process.communicate(b"")
    assert all_end(about["pids"])


def test_a_client_leaves_and_the_guest_stays(config: Config, runtime: Path) -> None:
    with start(config(name="stays")) as machine, serve(machine):
        with connect("stays") as remote:
            assert remote.run("echo 1").stdout == "1\n"
            assert [cpu.cpu for cpu in remote.registers()] == [0]
        assert machine.run("echo 2").stdout == "2\n"
