"""Guests that go on from a saved state, and guests that are put back to theirs: whole, on time, and alone."""

from __future__ import annotations

import errno
import itertools
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inspector.errors import GuestDied, MachineError
from inspector.machine import LocalMachine, MachineConfig, connect, list_guests, serve, start, starting
from inspector.progress import Progress, Silent
from inspector.units import VirtAddr

from .conftest import Config
from .test_boot import newc, ram_files
from .test_ends import all_gone

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[3]
_TRIES = 3


class Steps(Silent):
    """What was said to be done."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        self.titles.append(title)
        with super().task(title, total, unit) as progress:
            yield progress

    @property
    def booted(self) -> bool:
        return any("Booting Linux" in title for title in self.titles)


@pytest.fixture(scope="module")
def states(base_config: MachineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the state of one guest, the base's."""
    folder = tmp_path_factory.mktemp("states")
    for _ in range(_TRIES):  # none is kept where the guest mistook, on a busy host, how fast its clock is
        start(base_config, states=folder).close()
        if list(folder.glob("*.state")):
            break
    return folder


Woken = Callable[..., LocalMachine]


@pytest.fixture
def woken(states: Path, config: Config, runtime: Path) -> Iterator[Woken]:
    """Guests that go on from the cached state."""
    made = []

    def wake(**changes: Any) -> LocalMachine:
        steps = Steps()
        made.append(start(config(**changes), steps, states=states))
        assert not steps.booted
        return made[-1]

    yield wake
    for machine in made:
        machine.close()


def boot_log(machine: LocalMachine) -> str:
    """The kernel's first lines with their times: no two boots have the same."""
    return machine.run("dmesg | head -n 200").stdout


def uptime(machine: LocalMachine) -> float:
    return float(machine.run("cat /proc/uptime").stdout.split()[0])


def is_well(machine: LocalMachine) -> bool:
    """Whether it runs commands, keeps time, and hands much over by the window."""
    before = uptime(machine)
    machine.run("sleep 0.2").check()
    many = machine.run("head -c 3000000 /dev/zero").stdout_bytes
    return machine.running and uptime(machine) > before and many == bytes(3_000_000)


def test_it_goes_on_from_where_it_was(woken: Woken, config: Config, states: Path) -> None:
    first, second = woken(), woken()
    assert boot_log(first) == boot_log(second)
    assert is_well(first)
    assert is_well(second)
    assert "Linux version" in first.console_tail(10_000), "what the console said at the boot"
    with start(config(), states=states, cold=True) as anew:
        assert boot_log(anew) != boot_log(first)
        anew.restore()
        assert boot_log(anew) != boot_log(first)
    assert len(list(states.glob("*.state"))) == 1


def test_its_clock_is_right_and_its_random_numbers_are_its_own(woken: Woken) -> None:
    machine, drawn = woken(), set()
    for _ in range(2):
        before = time.time()
        said = int(machine.run("date +%s").stdout)
        assert before - 2 <= said <= time.time() + 2
        assert uptime(machine) < 60, "it was saved as it came up"
        drawn.add(machine.run("head -c 16 /dev/urandom | hexdump -C").stdout)
        time.sleep(4)  # without help its clock would now be behind
        machine.restore()
    assert len(drawn) == 2


def test_devices_are_as_they_were(woken: Woken, config: Config, states: Path) -> None:
    """PCI configuration as the guest reads it; QEMU does not migrate edu's."""
    read = "for d in /sys/bus/pci/devices/*; do echo $d; hexdump -C $d/config; cat $d/resource; done"
    machine = woken()
    found = machine.run(read).stdout
    assert machine.hmp("info pci") == woken().hmp("info pci")
    edu = machine.run("cat $(dirname $(grep -l 0x11e8 /sys/bus/pci/devices/*/device))/resource").stdout
    bar = int(edu.split()[0], 16)
    identification = re.search(r": (0x[0-9a-f]+)", machine.hmp(f"xp /1wx {bar:#x}"))
    assert identification is not None
    assert int(identification[1], 16) & 0xFF == 0xED, "QEMU docs, specs/edu: RRrr00ed"
    machine.restore()
    assert machine.run(read).stdout == found


def test_what_came_after_is_gone(woken: Woken) -> None:
    machine = woken()
    before = boot_log(machine)
    told: queue.Queue[str] = queue.Queue()
    machine.on_death(told.put)
    ram, inode, folder = machine.ram_fd, os.fstat(machine.ram_fd).st_ino, machine.folder
    held = len(ram_files())
    for _ in range(2):
        machine.run("echo here > /tmp/left; mkdir /dev/shm/left").check()
        pid = machine.spawn("sleep 1000")
        machine.restore()
        assert machine.run(f"ls -d /tmp/left /dev/shm/left /proc/{pid}").returncode
        assert is_well(machine)
    assert boot_log(machine) == before
    assert (machine.ram_fd, os.fstat(machine.ram_fd).st_ino, machine.folder) == (ram, inode, folder)
    assert len(ram_files()) == held
    assert told.empty()


def ours() -> tuple[int, int]:
    """How many threads and open files we have."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_of_the_qemu_before(woken: Woken) -> None:
    machine = woken()
    machine.restore()
    before, pid = ours(), machine.qemu_pid
    machine.restore()
    assert not Path(f"/proc/{pid}").exists()
    assert {path.name for path in machine.folder.iterdir()} == {"gdb", "qmp", "stderr"}
    for _ in range(500):  # threads end in their own time
        if ours() == before:
            break
        time.sleep(0.01)
    assert ours() == before


def paused(machine: LocalMachine) -> None:
    machine.pause()


def with_gdb(machine: LocalMachine) -> None:
    machine.pause()
    machine.insert_breakpoint(machine.registers()[0].rip)
    machine.resume()


def traced(machine: LocalMachine) -> None:
    machine.stop_loop().insert(VirtAddr(machine.registers()[0].rip))


def killed(machine: LocalMachine) -> None:
    assert machine.qemu_pid is not None
    os.kill(machine.qemu_pid, signal.SIGKILL)
    while machine.alive:
        time.sleep(0.01)


def hung(machine: LocalMachine) -> None:
    """QEMU answers nothing at all."""
    assert machine.qemu_pid is not None
    os.kill(machine.qemu_pid, signal.SIGSTOP)


def panicked(machine: LocalMachine) -> None:
    with pytest.raises(GuestDied, match="sysrq triggered crash"):
        machine.run("echo c > /proc/sysrq-trigger; sleep 60", timeout=60)


def powered_off(machine: LocalMachine) -> None:
    with pytest.raises(GuestDied, match="shut itself down"):
        machine.run("poweroff -f; sleep 60", timeout=60)


@pytest.mark.parametrize("fate", [paused, with_gdb, traced, killed, hung, panicked, powered_off])
def test_whatever_became_of_it(woken: Woken, fate: Callable[[LocalMachine], None]) -> None:
    machine = woken()
    before = boot_log(machine)
    fate(machine)
    machine.restore()
    assert machine.state().reason == "running"
    assert is_well(machine)
    assert boot_log(machine) == before
    machine.pause()
    assert machine.state().reason == "paused by user"
    machine.resume()
    machine.stop_loop().close()  # the stub serves a client again
    assert machine.run("echo on").stdout == "on\n"


def test_a_command_that_runs_meanwhile_is_told(woken: Woken) -> None:
    machine = woken()
    said: queue.Queue[BaseException] = queue.Queue()

    def command() -> None:
        try:
            machine.run("echo started > /tmp/started; sleep 1000", timeout=100)
        except MachineError as error:
            said.put(error)

    thread = threading.Thread(target=command)
    thread.start()
    machine.run("until [ -s /tmp/started ]; do sleep 0.05; done").check()
    machine.restore()
    assert "was put back" in str(said.get(timeout=20))
    thread.join(20)


def test_who_shares_the_guest_goes_on_with_it(woken: Woken) -> None:
    name = f"shared-{os.getpid()}"
    machine = woken(name=name)
    with serve(machine), connect(name) as remote:
        deaths: queue.Queue[str] = queue.Queue()
        remote.on_death(deaths.put)
        remote.run("echo here > /tmp/left").check()
        machine.restore()
        assert list_guests() == [name]
        assert remote.run("ls /tmp/left").returncode
        assert os.fstat(remote.ram_fd).st_ino == os.fstat(machine.ram_fd).st_ino
        remote.hold()
        threading.Timer(0.5, remote.release).start()
        machine.restore()  # waits until the reading is over
        assert remote.state().running
        assert deaths.empty()
        with connect(name) as another:
            assert another.run("echo 1").stdout == "1\n"


def test_a_closed_guest_stays_closed(woken: Woken) -> None:
    machine = woken()
    machine.close()
    with pytest.raises(GuestDied, match="closed"):
        machine.restore()


def test_without_a_state_it_says_so(machine: LocalMachine) -> None:
    with pytest.raises(MachineError, match="cannot be put back: its state was not kept"):
        machine.restore()
    assert machine.running


@pytest.fixture
def any_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are kept also of a guest whose clock is off."""
    monkeypatch.setattr(starting, "_clock_is_right", lambda machine: True)


@pytest.mark.usefixtures("any_clock")
@pytest.mark.parametrize("damage", ["cut", "ram"])
def test_a_damaged_state_is_dropped(
    config: Config, states: Path, runtime: Path, tmp_path: Path, damage: str
) -> None:
    """The guest boots, and leaves a good one."""
    (whole,) = states.glob("*.state")
    with Path(shutil.copy(whole, tmp_path)).open("r+b") as file:
        if damage == "ram":
            file.seek(50_000_000)
            file.write(b"damage")
        else:
            file.truncate(50_000_000)
    steps = Steps()
    with start(config(), steps, states=tmp_path) as machine:
        assert steps.booted
        assert any("state is dropped" in title for title in steps.titles)
        assert is_well(machine)
    steps = Steps()
    with start(config(), steps, states=tmp_path):
        assert not steps.booted


def test_a_full_disk(config: Config, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is there all the same; what was written is not."""
    real, calls = os.sendfile, itertools.count()

    def fills_up(*arguments: Any) -> int:
        if next(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "sendfile", fills_up)
    steps = Steps()
    with start(config(), steps, states=tmp_path) as machine:
        assert is_well(machine)
        assert f"The booted state is not kept: No space left on device in {tmp_path}" in steps.titles
        with pytest.raises(MachineError, match="cannot be put back: No space left on device"):
            machine.restore()
        assert is_well(machine)
    assert not list(tmp_path.glob("*.state"))


def test_an_own_init(config: Config, runtime: Path, tmp_path: Path) -> None:
    """Where it is known when it is up it can be put back; else nobody knows what would be saved."""
    script = b"#!/bin/busybox sh\necho my own init\nwhile :; do /bin/busybox sleep 1; done\n"
    busybox = Path("/bin/busybox").read_bytes()
    initrd = tmp_path / "initrd"
    initrd.write_bytes(
        newc({"bin": (0o40755, b""), "bin/busybox": (0o100755, busybox), "init": (0o100755, script)})
    )
    own = config(initrd=initrd, agent=False, ready_text="my own init")
    states = tmp_path / "states"
    start(own, states=states).close()
    steps = Steps()
    with start(own, steps, states=states) as machine:
        assert not steps.booted
        assert "my own init" in machine.console_tail()
        machine.restore()
        assert machine.running
        assert machine.registers()[0].cr3
    with (
        start(config(initrd=initrd, agent=False), states=states) as machine,
        pytest.raises(MachineError, match="does not tell when it is up"),
    ):
        machine.restore()
    assert len(list(states.glob("*.state"))) == 1


@pytest.mark.usefixtures("any_clock")
def test_two_at_once_boot_once(config: Config, runtime: Path, tmp_path: Path) -> None:
    steps = [Steps(), Steps()]
    logs: list[str] = []

    def begin(mine: Steps) -> None:
        with start(config(), mine, states=tmp_path) as machine:
            logs.append(boot_log(machine))

    threads = [threading.Thread(target=begin, args=(mine,)) for mine in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(logs) == 2
    assert logs[0] == logs[1]
    assert sorted(mine.booted for mine in steps) == [False, True]


KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from inspector.machine import MachineConfig, start
kernel, initrd, memory, states, when = sys.argv[1:6]
real, calls = os.sendfile, itertools.count()
def dies(*arguments):
    if next(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
def arm():
    os.sendfile = dies
if when == "starting":
    arm()
config = MachineConfig(kernel=Path(kernel), initrd=Path(initrd), memory=int(memory))
machine = start(config, states=Path(states))
arm()
machine.restore()
"""


@pytest.mark.parametrize("when", ["saving", "waking", "restoring"])
def test_we_are_killed(config: Config, states: Path, runtime: Path, tmp_path: Path, when: str) -> None:
    """As the RAM is copied: no QEMU, no folder and no half a state is left; a whole one stays."""
    base, folder = config(), tmp_path if when == "saving" else states
    (whole,) = states.glob("*.state")
    content = whole.read_bytes()
    command = [sys.executable, "-c", KILLED, str(base.kernel), str(base.initrd), str(base.memory)]
    phase = "restoring" if when == "restoring" else "starting"
    done = subprocess.run([*command, str(folder), phase], cwd=ROOT, timeout=200)
    assert done.returncode == -signal.SIGKILL
    assert all_gone(runtime)
    assert not list(tmp_path.glob("*.state"))
    assert whole.read_bytes() == content
