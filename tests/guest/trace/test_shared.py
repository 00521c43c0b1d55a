"""A guest that another process holds is traced as one's own, and left whole whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import inspector
from inspector import Guest
from inspector.errors import GdbError, GuestDied, MachineError
from inspector.machine import LocalMachine, serve
from inspector.trace import FaultKind

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[3]

TRACER = """
import sys
import inspector
with inspector.attach(sys.argv[1]) as guest, guest.trace_faults(int(sys.argv[2])) as trace:
    for number, fault in enumerate(trace):
        print(number, flush=True)
"""


@pytest.fixture(scope="module")
def held(boot_guest: Callable[..., Guest]) -> Iterator[tuple[Guest, str]]:
    """A guest that this process holds open, and its name."""
    name = f"traced-{os.getpid()}"
    with boot_guest("debian-6.1", "256M", 2, name=name) as guest:
        assert isinstance(guest.machine, LocalMachine)
        with serve(guest.machine, name):
            yield guest, name


def runs_free(guest: Guest) -> bool:
    """Whether a program that faults much comes to its end with nobody to pass breakpoints over.

    Under a trace it stops some hundred times, each long where the host is busy.
    """
    return guest.run("for i in 1 2 3 4 5; do /bin/busybox true; done", timeout=240).returncode == 0


def test_another_kmis_guest(held: tuple[Guest, str]) -> None:
    guest, name = held
    with inspector.attach(name) as other:
        kinds = [FaultKind.ANONYMOUS]
        with other.trace_faults("/labs/touch 64K --no-thp", kinds=kinds, limit=20) as trace:
            faults = list(trace)
        assert len(faults) == 20
        assert all(fault.frame_after and fault.frame_after.use == "anonymous" for fault in faults)
    assert runs_free(guest)


def test_a_killed_tracer_leaves_no_breakpoint(held: tuple[Guest, str]) -> None:
    guest, name = held
    pid = guest.spawn("while :; do /bin/busybox true; done")
    tracer = subprocess.Popen(
        [sys.executable, "-c", TRACER, name, str(pid)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert tracer.stdout is not None
    for line in tracer.stdout:
        if int(line) >= 20:
            break
    tracer.send_signal(signal.SIGKILL)
    tracer.wait()
    assert runs_free(guest)
    # Nobody is in the stub's way any more: it takes a client, which finds a guest without breakpoints.
    with guest.trace_faults(pid, limit=3) as trace:
        assert len(list(trace)) == 3
    guest.run(f"kill {pid}").check()


def test_one_trace_at_a_time(held: tuple[Guest, str]) -> None:
    guest, name = held
    with guest.trace_faults(1):
        with inspector.attach(name) as other, pytest.raises(MachineError, match="traced already"):
            other.trace_faults(1).__enter__()
        assert isinstance(guest.machine, LocalMachine)
        with pytest.raises(GdbError, match="is being traced"):
            _ = guest.machine.gdb
        assert runs_free(guest)
    assert runs_free(guest)


def test_gdb_comes_back_after_a_trace(held: tuple[Guest, str]) -> None:
    guest, _ = held
    assert isinstance(guest.machine, LocalMachine)
    number = guest.machine.insert_breakpoint(guest.symbol("do_exit"))
    guest.machine.remove_breakpoint(number)
    with guest.trace_faults("/labs/touch 64K --no-thp", limit=5) as trace:
        assert len(list(trace)) == 5
    number = guest.machine.insert_breakpoint(guest.symbol("do_exit"), temporary=True)
    # The program may end, and stop the guest, before the agent has answered.
    spawning = threading.Thread(target=guest.machine.spawn, args=("true",), daemon=True)
    spawning.start()
    state = guest.machine.wait_stop(20)
    assert state is not None
    assert state.kind == "breakpoint"
    guest.machine.resume()
    spawning.join(60)
    assert not spawning.is_alive()
    assert runs_free(guest)


def test_a_guest_that_dies_ends_its_trace(boot_guest: Callable[..., Guest]) -> None:
    with boot_guest("debian-6.1", "256M", 1) as guest:
        assert isinstance(guest.machine, LocalMachine)
        assert guest.machine.qemu_pid is not None
        pid = guest.spawn("while :; do /bin/busybox true; done")
        with guest.trace_faults(pid) as trace:
            for _ in range(10):
                assert trace.next() is not None
            os.kill(guest.machine.qemu_pid, signal.SIGKILL)
            with pytest.raises(GuestDied):
                list(trace)
        assert not trace.on
