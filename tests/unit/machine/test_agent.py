"""The real agent, compiled and run here at the end of a pseudo-terminal instead of a serial line."""

from __future__ import annotations

import errno
import os
import pty
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from inspector.errors import CommandTimeout, MachineError
from inspector.machine.frames import Kind
from inspector.machine.shell import Shell
from inspector.machine.window import Window

SOURCE = Path(__file__).parents[3] / "qemu_images" / "agent.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("gcc is missing")
    path = tmp_path_factory.mktemp("agent") / "agent"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE], check=True)
    return path


class Wire:
    """A socket joined to the terminal's master, as QEMU joins its chardev to the UART."""

    def __init__(self, program: Path, window: Window | None, window_path: str = "") -> None:
        self.master, slave = pty.openpty()
        ours, self.theirs = socket.socketpair()
        self.shell = Shell(ours, lambda: True, window)
        threading.Thread(target=self._up, daemon=True).start()
        threading.Thread(target=self._down, daemon=True).start()
        self.agent = subprocess.Popen([program, os.ttyname(slave), *filter(None, [window_path])])
        assert self.shell.hello.wait(20)
        os.close(slave)

    def _up(self) -> None:
        with suppress(OSError):
            while data := os.read(self.master, 65536):
                self.theirs.sendall(data)

    def _down(self) -> None:
        with suppress(OSError):
            while data := self.theirs.recv(65536):
                while data:
                    data = data[os.write(self.master, data) :]

    def end(self) -> None:
        self.agent.kill()
        self.agent.wait()
        self.theirs.close()
        os.close(self.master)


@pytest.fixture(scope="module", params=["line", "window"])
def wire(program: Path, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """Once with all bytes over the line, once with a file in place of the ivshmem device."""
    window = Window() if request.param == "window" else None
    wire = Wire(program, window, f"/proc/{os.getpid()}/fd/{window.fd}" if window else "")
    wire.shell.ping()
    assert wire.shell._window_shared == (window is not None)
    yield wire
    wire.end()
    if window:
        window.close()


@pytest.fixture
def shell(wire: Wire) -> Shell:
    return wire.shell


def test_hello_tells_the_pid(wire: Wire) -> None:
    assert wire.shell.agent_pid == wire.agent.pid


def test_a_time_that_is_none_sets_no_clock(shell: Shell) -> None:
    """The clock here is the host's own: only what the agent must refuse is sent."""
    number, request = shell._begin()
    for bad in (b"", bytes(7), bytes(8 + 65)):
        error = shell._ask(request, number, Kind.WAKE, bad, 10, "wake")
        assert -error == errno.EINVAL
    shell._end(number)


def test_streams_and_exit_code(shell: Shell) -> None:
    done = shell.run("echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_a_signal_is_128_and_its_number(shell: Shell) -> None:
    assert shell.run("kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_every_byte_passes_both_ways(shell: Shell, tmp_path: Path) -> None:
    data = bytes(range(256)) * 300
    shell.put(data, str(tmp_path / "bytes"), 0o600)
    assert (tmp_path / "bytes").read_bytes() == data
    assert (tmp_path / "bytes").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "bytes.part").exists()
    assert shell.run(f"cat {tmp_path}/bytes").stdout_bytes == data


def test_a_file_that_cannot_be_made(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no such folder"):
        shell.put(b"x", f"{tmp_path}/no/such/file")


def test_an_empty_file(shell: Shell, tmp_path: Path) -> None:
    shell.put(b"", str(tmp_path / "empty"))
    assert (tmp_path / "empty").read_bytes() == b""


def test_more_output_than_any_buffer_holds(shell: Shell) -> None:
    done = shell.run("seq 1 200000; seq 1 1000 >&2", timeout=60)
    assert done.stdout_bytes == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert done.stderr_bytes == b"".join(b"%d\n" % n for n in range(1, 1001))


def test_commands_run_beside_each_other(shell: Shell, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(shell.run(f"cat {fifo}").stdout))
    reader.start()
    assert shell.run(f"echo through > {fifo}").returncode == 0, "the writer runs while the reader waits"
    reader.join(20)
    assert read == ["through\n"]


def test_a_timeout_kills_the_whole_group(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(CommandTimeout):
        shell.run(f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000' ; true", timeout=3)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(500):  # until it has ended, or is a zombie that init has not reaped yet
        try:
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    pytest.fail("a child of the command outlived it")


def test_the_background_is_not_waited_for(shell: Shell) -> None:
    done = shell.run("sleep 1000 & echo $!")
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0


def test_a_writer_in_the_background_does_not_hold_the_exit_up(shell: Shell) -> None:
    done = shell.run("while :; do echo y; done & sleep 0.2", timeout=20)
    assert done.returncode == 0, "the writer ends by SIGPIPE once its reader is gone"


def test_a_command_gets_a_clean_start(shell: Shell) -> None:
    # signals neither blocked nor ignored: proc_pid_status(5)
    status = shell.run("grep -E 'SigBlk|SigIgn' /proc/self/status").stdout.split()
    assert status[:3] == ["SigBlk:", "0" * 16, "SigIgn:"]
    glibcs_own = 1 << 31 | 1 << 32  # signals 32 and 33: make leaves them ignored, and nobody can undo it
    assert int(status[3], 16) & ~glibcs_own == 0
    assert shell.run("cat").stdout == "", "stdin is empty"
    assert shell.run("ls /proc/self/fd").stdout.split() == ["0", "1", "2", "3"], "3 is ls's own"


def test_too_many_at_once_is_an_answer_not_an_end(shell: Shell, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")  # who opens it to read waits for one who writes (fifo(7))
    codes: queue.Queue[int] = queue.Queue()
    threads = [
        threading.Thread(target=lambda: codes.put(shell.run(f"cat {tmp_path}/gate", timeout=60).returncode))
        for _ in range(70)
    ]
    for thread in threads:
        thread.start()
    assert [codes.get(timeout=60) for _ in range(6)] == [126] * 6
    while any(thread.is_alive() for thread in threads):  # some may not have come to the gate yet
        with suppress(OSError):  # nobody is there
            os.close(os.open(tmp_path / "gate", os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.01)
    assert [codes.get(timeout=60) for _ in range(64)] == [0] * 64
    assert shell.run("true").returncode == 0


def test_stray_bytes_do_not_stop_it(wire: Wire) -> None:
    os.write(wire.master, b"root\nKMKM\x02\x01garbage" + bytes(300))
    assert wire.shell.run("echo still here").stdout == "still here\n"


def test_ping_with_the_largest_payload(shell: Shell) -> None:
    assert shell.ping(os.urandom(65536), timeout=20) > 0


def test_a_window_that_is_not_the_hosts_is_not_used(program: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(8 << 20))
    window = Window()
    wire = Wire(program, window, str(other))
    try:
        wire.shell.ping()
        assert not wire.shell._window_shared
        assert wire.shell.run("seq 1 20000").stdout_bytes == b"".join(b"%d\n" % n for n in range(1, 20001))
    finally:
        wire.end()
        window.close()
