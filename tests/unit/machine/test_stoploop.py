"""A loop of short stops beside pauses and holds, over stand-ins for QMP and for the gdbstub."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inspector.errors import GdbError, GuestDied, MachineError
from inspector.machine.qmp import Qmp
from inspector.machine.runcontrol import RunControl
from inspector.machine.stoploop import LocalStopLoop
from inspector.units import VirtAddr

_AT = VirtAddr(0xFFFF_FFFF_8100_0000)


class Guest(Qmp):
    """A machine with a monitor and a stub: `status` is what `query-status` says."""

    def __init__(self) -> None:
        self.status = "running"
        self.orders: list[str] = []
        self.control: RunControl | None = None

    def execute(self, command: str, arguments: Any = None, timeout: float = 30.0) -> Any:
        if command == "query-status":
            return {"running": self.status == "running", "status": self.status}
        self.orders.append(command)
        if command == "stop" and self.status == "running":
            self.change("paused")
        elif command == "cont":
            self.change("running")
        return {}

    def change(self, status: str) -> None:
        """QEMU tells of every start and stop."""
        self.status = status
        assert self.control is not None
        self.control.on_qmp_event("RESUME" if status == "running" else "STOP", {})


class Stub:
    """What Rsp does, without a socket."""

    guest: Guest
    made: Callable[[Stub], None]

    def __init__(self, _path: object) -> None:
        Stub.made(self)
        self.breakpoints: set[int] = set()
        self.hits = 0
        self.steps: list[int] = []
        self.closed = False
        if self.guest.status == "running":
            self.guest.change("paused")  # QEMU stops as a client comes

    def insert(self, address: int) -> None:
        self.breakpoints.add(address)

    def remove(self, address: int) -> None:
        self.breakpoints.remove(address)

    def receive(self, timeout: float) -> str | None:
        if not self.hits:
            return None
        self.hits -= 1
        self.guest.change("debug")
        return "T05thread:02;"

    def registers(self) -> dict[str, int]:
        return {"rip": _AT}

    def step(self, cpu: int) -> None:
        assert not self.breakpoints
        self.steps.append(cpu)

    def go(self) -> None:
        self.guest.change("running")

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guest = Guest()
        self.stubs: list[Stub] = []
        Stub.guest, Stub.made = self.guest, self.stubs.append
        monkeypatch.setattr("inspector.machine.runcontrol.Rsp", Stub)
        self.control = RunControl(Path("/no/such/socket"))
        self.guest.control = self.control
        self.control.use_qmp(self.guest)

    def loop(self) -> LocalStopLoop:
        return self.control.stop_loop()

    @property
    def stub(self) -> Stub:
        return self.stubs[-1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_stops_count_as_running(bench: Bench) -> None:
    loop = bench.loop()
    assert bench.control.state().running
    loop.insert(_AT)
    assert loop.go(1)
    bench.stub.hits = 1
    hit = loop.wait(1)
    assert hit is not None
    assert (hit.cpu, hit.address) == (1, _AT)
    assert bench.guest.status == "debug"
    assert bench.control.state().running
    assert loop.go(1)
    assert bench.guest.status == "running"


def test_its_end_takes_breakpoints_out_and_lets_the_guest_run(bench: Bench) -> None:
    loop = bench.loop()
    loop.insert(_AT)
    loop.close()
    loop.close()
    assert not bench.stub.breakpoints
    assert bench.stub.closed
    assert bench.guest.status == "running"
    assert bench.control.state().running


def test_a_paused_guest_is_paused_after_it(bench: Bench) -> None:
    bench.control.pause("the test")
    loop = bench.loop()
    assert not loop.go(0.01)
    loop.close()
    assert bench.guest.status == "paused"
    assert bench.control.state().reason == "paused by the test"


def test_a_hold_between_stops_stops_the_guest(bench: Bench) -> None:
    loop = bench.loop()
    loop.go(1)
    bench.control.hold()
    assert bench.guest.status == "paused"
    assert bench.control.state().held
    bench.control.release()
    assert bench.guest.status == "running"


def test_a_guest_that_was_saved_in_a_hold_runs_on(bench: Bench) -> None:
    """Migration leaves it `postmigrate`."""
    loop = bench.loop()
    loop.go(1)
    bench.control.hold()
    bench.guest.status = "postmigrate"
    bench.control.release()
    assert bench.guest.status == "running"
    bench.guest.change("debug")  # its packet is under way
    bench.control.hold()
    bench.guest.status = "postmigrate"
    bench.control.release()
    assert bench.guest.status == "postmigrate"
    bench.stub.hits = 1
    assert loop.wait(1)
    assert loop.go(1)
    assert bench.guest.status == "running"


def test_a_hold_at_a_stop_keeps_go_waiting(bench: Bench) -> None:
    loop = bench.loop()
    loop.go(1)
    bench.stub.hits = 1
    assert loop.wait(1)
    bench.control.hold()
    assert not loop.go(0.01)
    assert bench.guest.status == "debug"
    went = threading.Thread(target=lambda: loop.go(10))
    went.start()
    bench.control.release()
    went.join(10)
    assert not went.is_alive()
    assert bench.guest.status == "running"
    assert "cont" not in bench.guest.orders  # it was the loop's stop, and the loop's to end


def test_a_breakpoint_that_the_loop_has_yet_to_hear_of_stays_its_own(bench: Bench) -> None:
    loop = bench.loop()
    loop.go(1)
    bench.guest.change("debug")  # its packet is under way
    bench.control.hold()
    bench.control.release()
    assert bench.guest.status == "debug"
    bench.stub.hits = 1
    assert loop.wait(1)
    assert loop.go(1)
    assert bench.guest.status == "running"


def test_a_step_waits_for_holds_and_is_taken_once(bench: Bench) -> None:
    """A QMP `stop` must not fall into it."""
    loop = bench.loop()
    loop.insert(_AT)
    loop.go(1)
    bench.stub.hits = 1
    bench.control.hold()
    assert loop.wait(1)
    loop.step()
    assert not loop.go(0.01)
    assert not bench.stub.steps
    bench.control.release()
    assert loop.go(1)
    assert bench.stub.steps == [1]
    assert bench.stub.breakpoints == {_AT}
    assert loop.go(1)
    assert bench.stub.steps == [1]


def test_a_loop_of_a_guest_that_is_put_back_ends(bench: Bench) -> None:
    loop = bench.loop()
    bench.control.pause("the test")
    with bench.control.renewed():
        bench.control.use_qmp(bench.guest)
    assert bench.stub.closed
    assert loop.go(10)  # held by nobody: what the stub says, that it is gone, is the trace's end
    loop.close()
    bench.loop().close()


def test_a_pause_survives_the_loop_and_a_resume_ends_it(bench: Bench) -> None:
    loop = bench.loop()
    loop.go(1)
    bench.control.pause("the test")
    assert bench.control.state().kind == "paused"
    loop.close()
    assert bench.guest.status == "paused"
    bench.control.resume()
    assert bench.guest.status == "running"


def test_one_loop_at_a_time_and_no_gdb_beside_it(bench: Bench) -> None:
    loop = bench.loop()
    with pytest.raises(MachineError, match="traced already"):
        bench.loop()
    with pytest.raises(GdbError, match="being traced"):
        bench.control.gdb()
    loop.close()
    bench.loop().close()


def test_a_death_ends_the_waiting(bench: Bench) -> None:
    loop = bench.loop()
    bench.control.pause()
    bench.control.died("killed")
    with pytest.raises(GuestDied, match="killed"):
        loop.go(10)
