"""Two ends of a shared guest: the server over a stand-in for the machine, the client over its socket."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from inspector.errors import CommandTimeout, GuestDied, MachineError, QmpError, UsageError
from inspector.machine import LocalMachine, RunState, Server, connect, list_guests, serve
from inspector.machine.folders import new_folder, runtime_dir
from inspector.machine.model import Completed, CpuRegisters, DeathListener, StateListener
from inspector.machine.names import check_name
from inspector.machine.runcontrol import RunControl
from inspector.units import VirtAddr

from .test_runcontrol import Cpus

CPU = CpuRegisters(
    cpu=0,
    rip=VirtAddr(0xFFFFFFFF81000000),
    rsp=VirtAddr(0xFFFFC90000000000),
    rflags=0x246,
    cr0=0x80050033,
    cr2=VirtAddr(0),
    cr3=0x1000,
    cr4=0x6F0,
    efer=0xD01,
    gs_base=VirtAddr(0xFFFF888000000000),
    kernel_gs_base=None,
    idt_base=VirtAddr(0xFFFFFE0000000000),
    cpl=0,
    halted=False,
    general={"rax": 1},
)


class Stand:
    """What a Server needs of a LocalMachine."""

    name = "stand"
    accel = "TCG"
    accel_reason = "no KVM here"
    memory_size = 8192
    cpus = 1
    kernel_path = Path("/boot/vmlinuz")
    blocks = ((0, 4096, 0), (1 << 32, 4096, 4096))

    def __init__(self) -> None:
        self.folder, self.lock = new_folder()
        self.ram_fd = os.memfd_create("stand")
        os.write(self.ram_fd, b"A" * 4096 + b"B" * 4096)
        self.control = RunControl(Path("/no/such/socket"))
        self.control.use_qmp(Cpus(self.control))
        self.waiting = threading.Event()
        self.go_on = threading.Event()
        self.files: dict[str, tuple[bytes, int]] = {}

    @property
    def running(self) -> bool:
        return self.control.state().running

    def state(self) -> RunState:
        return self.control.state()

    def pause(self, who: str) -> None:
        self.control.pause(who)

    def resume(self) -> None:
        self.control.resume()

    def hold(self, who: str) -> None:
        self.control.hold(who)

    def release(self) -> None:
        self.control.release()

    def on_state(self, listener: StateListener) -> None:
        self.control.on_state(listener)

    def on_death(self, listener: DeathListener) -> None:
        self.control.on_death(listener)

    def registers(self) -> list[CpuRegisters]:
        return [CPU]

    def run(self, command: str, timeout: float) -> Completed:
        if command == "wait":
            self.waiting.set()
            assert self.go_on.wait(20)
        if command == "hang":
            raise CommandTimeout(f"'hang' ran over {timeout:g} s in the guest and was killed")
        return Completed(b"\xff\x00" + command.encode(), b"err", 3, command)

    def spawn(self, command: str) -> int:
        return 4711

    def put(self, data: bytes, path: str, mode: int) -> None:
        self.files[path] = (data, mode)

    def hmp(self, command: str) -> str:
        raise QmpError(f"QEMU refused monitor command {command!r}: no")

    def qmp(self, command: str, **arguments: Any) -> Any:
        return {command: arguments}

    def console_tail(self, lines: int) -> str:
        return f"{lines} lines"


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        stand = Stand()
        yield stand
        os.close(stand.ram_fd)
        os.close(stand.lock)


@pytest.fixture
def server(stand: Stand) -> Iterator[Server]:
    with serve(cast(LocalMachine, stand)) as server:
        yield server


def test_the_machine_over_there(stand: Stand, server: Server) -> None:
    with connect("stand") as remote:
        assert (remote.name, remote.accel, remote.accel_reason) == ("stand", "TCG", "no KVM here")
        assert (remote.memory_size, remote.cpus, remote.kernel_path) == (8192, 1, Path("/boot/vmlinuz"))
        assert remote.blocks == [(0, 4096, 0), (1 << 32, 4096, 4096)]
        assert remote.folder == stand.folder
        assert remote.registers() == [CPU]
        assert remote.spawn("x") == 4711
        assert remote.qmp("query-memdev", id="ram") == {"query-memdev": {"id": "ram"}}
        assert remote.console_tail(7) == "7 lines"
        remote.put(b"\x00\xff", "/tmp/x", 0o600)
        assert stand.files == {"/tmp/x": (b"\x00\xff", 0o600)}


def test_ram_is_the_same_memory(stand: Stand, server: Server) -> None:
    with connect("stand") as remote:
        assert os.pread(remote.ram_fd, 4, 4094) == b"AABB"
        os.pwrite(stand.ram_fd, b"new", 0)
        assert os.pread(remote.ram_fd, 3, 0) == b"new"


def test_output_passes_byte_for_byte(server: Server) -> None:
    with connect("stand") as remote:
        assert remote.run("id") == Completed(b"\xff\x00id", b"err", 3, "id")


def test_errors_keep_their_class_and_text(server: Server) -> None:
    with connect("stand") as remote:
        with pytest.raises(CommandTimeout, match=r"^'hang' ran over 5 s"):
            remote.run("hang", timeout=5)
        with pytest.raises(QmpError, match=r"^QEMU refused monitor command 'info x': no$"):
            remote.hmp("info x")
        assert remote.spawn("x") == 4711, "the conversation goes on"


def test_a_long_command_keeps_nobody_waiting(stand: Stand, server: Server) -> None:
    with connect("stand") as remote:
        answers: queue.Queue[Completed] = queue.Queue()
        thread = threading.Thread(target=lambda: answers.put(remote.run("wait")))
        thread.start()
        assert stand.waiting.wait(20)
        assert remote.folder == stand.folder
        assert remote.registers() == [CPU]
        remote.pause()
        assert answers.empty()
        stand.go_on.set()
        assert answers.get(timeout=20).command == "wait"


def test_a_pause_is_seen_by_all(stand: Stand, server: Server) -> None:
    with connect("stand") as first, connect("stand") as second:
        heard: queue.Queue[RunState] = queue.Queue()
        second.on_state(heard.put)
        first.pause("first")
        assert heard.get(timeout=20) == RunState("paused", "paused by first")
        assert second.state() == stand.state() == RunState("paused", "paused by first")
        second.resume()
        assert heard.get(timeout=20).running
        assert first.running


CLIENT = """
import os, sys
from inspector.machine import connect
remote = connect("stand")
getattr(remote, sys.argv[1])()
print("stopped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["pause", "hold"])
def test_a_client_that_dies_lets_the_guest_run(stand: Stand, server: Server, how: str) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert client.stdout is not None
    assert client.stdin is not None
    assert client.stdout.readline() == b"stopped\n"
    assert not stand.running
    client.kill()
    client.wait()
    client.stdin.close()
    client.stdout.close()
    _await(lambda: stand.running)


def test_a_client_that_ends_leaves_another_ones_pause(stand: Stand, server: Server) -> None:
    stand.pause("user")
    with connect("stand") as remote:
        remote.pause()
        remote.hold()
    _await(lambda: not server._clients)
    assert stand.state() == RunState("paused", "paused by user")


def test_the_guests_death_reaches_the_clients(stand: Stand, server: Server) -> None:
    with connect("stand") as remote:
        deaths: queue.Queue[str] = queue.Queue()
        remote.on_death(deaths.put)
        stand.control.died("QEMU was killed by signal 9")
        assert deaths.get(timeout=20) == "QEMU was killed by signal 9"
        assert not remote.alive
        with pytest.raises(GuestDied, match="killed by signal 9"):
            remote.run("id")
        assert remote.state() == RunState("dead", "dead: QEMU was killed by signal 9")
        late: queue.Queue[str] = queue.Queue()
        remote.on_death(late.put)
        assert late.get(timeout=20) == "QEMU was killed by signal 9"
    _await(lambda: list_guests() == [])


def test_the_holders_end_reaches_the_clients(stand: Stand, server: Server) -> None:
    with connect("stand") as remote:
        server.close()
        with pytest.raises(GuestDied, match="the kmi that held 'stand' has ended"):
            remote.registers()


def test_a_closed_client_says_so(server: Server) -> None:
    remote = connect("stand")
    remote.close()
    remote.close()
    with pytest.raises(GuestDied, match="closed"):
        remote.registers()


def test_names_that_are_open(stand: Stand, server: Server) -> None:
    assert list_guests() == ["stand"]
    with serve(cast(LocalMachine, stand), "other"):
        assert list_guests() == ["other", "stand"]
    assert list_guests() == ["stand"]


def test_a_name_that_is_not_open_names_those_that_are(server: Server) -> None:
    with pytest.raises(MachineError, match=r"no guest named 'x' is open: open are stand"):
        connect("x")


def test_no_guest_at_all(stand: Stand) -> None:
    with pytest.raises(MachineError, match="none is;"):
        connect("stand")


def test_a_taken_name_is_refused(stand: Stand, server: Server) -> None:
    with pytest.raises(UsageError, match="'stand' is already open"):
        serve(cast(LocalMachine, stand))
    with connect("stand") as remote:
        assert remote.running, "the first goes on"


def test_what_a_dead_holder_left_is_not_open_and_its_name_is_free(stand: Stand) -> None:
    folder, lock = new_folder()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "stand.sock"))
    assert list_guests() == []
    with serve(cast(LocalMachine, stand)):
        assert list_guests() == ["stand"]
    assert folder.exists(), "somebody holds it"
    os.close(lock)
    assert list_guests() == []
    assert not folder.exists()


def test_only_we_may_enter(stand: Stand, server: Server) -> None:
    assert runtime_dir().stat().st_mode & 0o777 == 0o700
    assert server.path.parent.stat().st_mode & 0o777 == 0o700
    assert server.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "noise", [b"\x00\xff\xfe\n", b"[1,2]\n", b'{"op": "run"}\n', b'{"op": "bogus"}\n', b"x" * 70_000]
)
def test_noise_ends_no_server(server: Server, noise: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(server.path))
        stranger.sendall(noise)
    with connect("stand") as remote:
        assert remote.running


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 32, ".hidden"])
def test_names_that_make_no_sense(stand: Stand, name: str) -> None:
    with pytest.raises(UsageError, match="not a guest's name"):
        check_name(name)


def _await(met: Any) -> None:
    """Until it holds; the test's own end is what limits it."""
    done = threading.Event()
    for _ in range(1000):
        if met():
            return
        done.wait(0.01)
    raise AssertionError("it never came to hold")
