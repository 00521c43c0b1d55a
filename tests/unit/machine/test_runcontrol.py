"""Pauses, holds and their reasons, over a stand-in for QMP that stops and starts as QEMU does."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from inspector.errors import GuestDied, QmpError
from inspector.machine.model import RunState
from inspector.machine.qmp import Qmp
from inspector.machine.runcontrol import RunControl


class Cpus(Qmp):
    """QMP of a machine that is nothing but running or not."""

    def __init__(self, control: RunControl) -> None:
        self.control = control
        self.running = True
        self.orders: list[str] = []
        self.seen: list[RunState] = []
        """What was so as each order came."""

    def execute(self, command: str, arguments: Any = None, timeout: float = 30.0) -> Any:
        if command == "query-status":
            return {"running": self.running}
        if command not in ("stop", "cont"):
            raise QmpError(command)
        self.orders.append(command)
        self.seen.append(self.control.state())
        self.go(command == "cont")
        return {}

    def go(self, running: bool) -> None:
        """QEMU sends an event only where something changes."""
        if running != self.running:
            self.running = running
            self.control.on_qmp_event("RESUME" if running else "STOP", {})


class Bench:
    def __init__(self) -> None:
        self.control = RunControl(Path("/no/such/socket"))
        self.cpus = Cpus(self.control)
        self.news: queue.Queue[RunState] = queue.Queue()
        self.control.use_qmp(self.cpus)
        self.control.on_state(self.news.put)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_begins_as_qemu_says(bench: Bench) -> None:
    assert bench.control.state() == RunState("running", "running")


def test_pause_and_resume_are_absolute(bench: Bench) -> None:
    for _ in range(2):
        bench.control.pause("the test")
    assert bench.control.state() == RunState("paused", "paused by the test")
    bench.control.resume()
    bench.control.resume()
    assert bench.control.state().running
    assert bench.cpus.orders == ["stop", "cont"]


def test_a_hold_that_ends_is_a_hold_until_the_cpus_run(bench: Bench) -> None:
    """Who would run a command then has only to wait a moment: it must not read as a pause."""
    bench.control.hold()
    bench.control.release()
    assert bench.cpus.orders == ["stop", "cont"]
    assert bench.cpus.seen == [RunState("running", "running"), RunState("paused", "held by a reading", True)]
    bench.cpus.go(False)
    assert bench.control.state() == RunState("paused", "paused by QEMU's monitor")


def test_a_stop_by_somebody_else_is_seen_and_can_be_ended(bench: Bench) -> None:
    bench.cpus.go(False)
    assert bench.control.state() == RunState("paused", "paused by QEMU's monitor")
    bench.control.resume()
    assert bench.cpus.running


def test_listeners_hear_of_changes_in_order(bench: Bench) -> None:
    bench.control.pause()
    bench.control.resume()
    bench.cpus.go(False)
    heard = [bench.news.get(timeout=10).reason for _ in range(3)]
    assert heard == ["paused by user", "running", "paused by QEMU's monitor"]


def test_a_listener_that_fails_keeps_nobody_from_hearing(bench: Bench) -> None:
    def fail(state: RunState) -> None:
        raise RuntimeError("a listener's own fault")

    bench.control.on_state(fail)
    later: queue.Queue[RunState] = queue.Queue()
    bench.control.on_state(later.put)
    bench.control.pause()
    assert later.get(timeout=10).kind == "paused"


def test_holds_are_counted_and_not_told(bench: Bench) -> None:
    bench.control.hold()
    bench.control.hold()
    assert bench.control.state().held
    bench.control.release()
    assert not bench.control.state().running
    bench.control.release()
    assert bench.control.state().running
    bench.control.pause()
    assert bench.news.get(timeout=10).reason == "paused by user", "the holds were not told"


def test_a_hold_of_a_paused_guest_leaves_it_paused(bench: Bench) -> None:
    bench.control.pause()
    bench.control.hold()
    assert bench.control.state() == RunState("paused", "paused by user")
    bench.control.release()
    assert bench.control.state() == RunState("paused", "paused by user")


def test_a_pause_during_a_hold_stays_after_it(bench: Bench) -> None:
    bench.control.hold()
    bench.control.pause("user")
    bench.control.release()
    assert bench.control.state() == RunState("paused", "paused by user")
    assert bench.cpus.orders == ["stop"]


def test_a_resume_during_a_hold_comes_at_its_end(bench: Bench) -> None:
    bench.control.pause()
    bench.control.hold()
    bench.control.resume()
    assert not bench.cpus.running, "somebody is reading"
    bench.control.release()
    assert bench.cpus.running


def test_one_release_too_many_does_nothing(bench: Bench) -> None:
    bench.control.pause()
    bench.control.release()
    assert not bench.cpus.running


def test_a_panicked_guest_is_told_apart(bench: Bench) -> None:
    bench.control.on_qmp_event("GUEST_PANICKED", {"action": "pause"})
    bench.cpus.go(False)
    assert bench.control.state().kind == "panicked"


def test_death_is_told_once_with_its_first_reason(bench: Bench) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    bench.control.on_death(deaths.put)
    bench.control.died("QEMU was killed by signal 9")
    bench.control.died("closed")
    assert deaths.get(timeout=10) == "QEMU was killed by signal 9"
    late: queue.Queue[str] = queue.Queue()
    bench.control.on_death(late.put)
    assert late.get(timeout=10) == "QEMU was killed by signal 9"
    assert deaths.empty()
    assert bench.control.state() == RunState("dead", "dead: QEMU was killed by signal 9")


@pytest.mark.parametrize("order", ["pause", "resume", "hold", "check_alive", "gdb"])
def test_a_dead_guest_takes_no_orders(bench: Bench, order: str) -> None:
    bench.control.died("QEMU was killed by signal 9")
    with pytest.raises(GuestDied, match="killed by signal 9"):
        getattr(bench.control, order)()


def test_waiting_for_a_stop(bench: Bench) -> None:
    assert bench.control.wait_stop(0.05) is None
    bench.cpus.go(False)
    stopped = bench.control.wait_stop(10)
    assert stopped is not None
    assert stopped.kind == "paused"


def test_another_qemu_takes_the_place_of_this_one_and_nobody_is_told(bench: Bench) -> None:
    with bench.control.renewed():
        assert bench.control.state() == RunState("paused", "being put back", held=True)
        bench.cpus = Cpus(bench.control)
        bench.cpus.running = False
        bench.control.use_qmp(bench.cpus)
        bench.control.resume()
    assert bench.control.state() == RunState("running", "running")
    bench.control.pause("the test")
    assert bench.news.get(timeout=10).reason == "paused by the test"
    assert bench.cpus.orders == ["cont", "stop"]


def test_a_guest_that_died_lives_again(bench: Bench) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    bench.control.on_death(deaths.put)
    bench.control.on_qmp_event("GUEST_PANICKED", {})
    bench.control.died("killed")
    assert deaths.get(timeout=10) == "killed"
    with bench.control.renewed():
        bench.cpus = Cpus(bench.control)
        bench.control.use_qmp(bench.cpus)
    assert bench.control.state() == RunState("running", "running")
    assert [bench.news.get(timeout=10).kind for _ in range(2)][-1] == "running"
    bench.control.died("again")
    assert deaths.get(timeout=10) == "again"


def test_who_holds_the_guest_is_waited_for(bench: Bench) -> None:
    bench.control.hold()
    order: list[str] = []

    def release() -> None:
        order.append("released")
        bench.control.release()

    threading.Timer(0.2, release).start()
    with bench.control.renewed():
        order.append("renewed")
        bench.control.use_qmp(Cpus(bench.control))
    assert order == ["released", "renewed"]


def test_an_order_of_another_thread_waits_for_the_new_qemu(bench: Bench) -> None:
    with bench.control.renewed():
        pause = threading.Thread(target=bench.control.pause)
        pause.start()
        pause.join(0.2)
        assert pause.is_alive()
        bench.cpus = Cpus(bench.control)
        bench.control.use_qmp(bench.cpus)
    pause.join(10)
    assert bench.cpus.orders == ["stop"]
