"""Stops and starts of a real guest, by QMP and by gdb, seen the same by all."""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import GdbError, QmpError
from inspector.machine import LocalMachine, MachineConfig, RunState, start
from inspector.machine.qmp import Qmp
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def machine(base_config: MachineConfig) -> Iterator[LocalMachine]:
    """A guest of its own: gdb stays attached to it."""
    with start(base_config) as machine:
        yield machine


@pytest.fixture(autouse=True)
def _running(machine: LocalMachine) -> Iterator[None]:
    yield
    machine.resume()


def address_of(machine: LocalMachine, name: str) -> VirtAddr:
    line = machine.run(f"grep ' {name}$' /proc/kallsyms").check().stdout
    return VirtAddr(int(line.split()[0], 16))


def second_monitor(machine: LocalMachine) -> Qmp:
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(machine.folder / "qmp"))
    return Qmp(channel, lambda name, data: None)


# Before gdb is attached


def test_a_stop_by_another_monitor_is_seen(machine: LocalMachine) -> None:
    other = second_monitor(machine)
    other.execute("stop")
    assert machine.wait_stop(10) == RunState("paused", "paused by QEMU's monitor")
    other.execute("cont")
    other.close()
    assert machine.run("echo on").stdout == "on\n"


def test_a_paused_guest_stands_still(machine: LocalMachine) -> None:
    machine.pause()
    first = machine.registers()
    rip = first[0].rip
    assert [cpu.rip for cpu in machine.registers()] == [rip]
    assert machine.qmp("query-status")["running"] is False
    machine.resume()
    assert machine.qmp("query-status")["running"] is True


def test_stop_and_cont_by_name_go_the_same_way(machine: LocalMachine) -> None:
    machine.qmp("stop")
    assert machine.state().reason == "paused by user"
    machine.hmp("cont")
    assert machine.running


def test_what_qemu_refuses_is_one_line(machine: LocalMachine) -> None:
    with pytest.raises(QmpError, match=r"^QEMU refused QMP 'no-such-command': "):
        machine.qmp("no-such-command")


# From here on gdb is attached


def test_attaching_gdb_leaves_the_guest_as_it_was(machine: LocalMachine) -> None:
    assert machine.gdb is machine.gdb
    assert machine.running
    assert machine.run("echo on").stdout == "on\n"


def test_gdb_and_the_monitor_see_the_same_registers(machine: LocalMachine) -> None:
    gdb = machine.gdb
    machine.pause("the test")
    assert machine.state() == RunState("paused", "paused by the test")
    (cpu,) = machine.registers()
    theirs = gdb.registers()
    assert {name: theirs[name] for name in cpu.general} == cpu.general
    assert (theirs["rip"], theirs["eflags"]) == (cpu.rip, cpu.rflags)
    assert (theirs["cr0"], theirs["cr2"], theirs["cr3"], theirs["cr4"]) == (
        cpu.cr0,
        cpu.cr2,
        cpu.cr3,
        cpu.cr4,
    )
    assert (theirs["efer"], theirs["gs_base"]) == (cpu.efer, cpu.gs_base)


def test_a_stop_by_another_monitor_reaches_gdb(machine: LocalMachine) -> None:
    gdb = machine.gdb
    other = second_monitor(machine)
    other.execute("stop")
    assert machine.wait_stop(10) is not None
    assert gdb.registers()["rip"] == machine.registers()[0].rip
    other.close()
    machine.resume()
    assert machine.run("echo on").stdout == "on\n"


@pytest.mark.parametrize("hardware", [False, True], ids=["software", "hardware"])
def test_a_breakpoint(machine: LocalMachine, hardware: bool) -> None:
    where = address_of(machine, "__x64_sys_sethostname")
    number = machine.insert_breakpoint(where, hardware=hardware)
    heard: queue.Queue[RunState] = queue.Queue()
    machine.on_state(heard.put)
    machine.spawn("sleep 1; hostname kmi")
    stopped = machine.wait_stop(20)
    assert stopped == RunState("breakpoint", f"breakpoint {number} at {where:#x}")
    assert machine.qmp("query-status")["status"] == "debug"
    assert machine.registers()[0].rip == where
    last = machine.last_stop()
    assert last is not None
    assert (last.reason, last.address, last.breakpoint, last.cpu) == ("breakpoint-hit", where, number, 0)
    assert heard.get(timeout=10) == stopped
    # over it, with the breakpoint in; once in many times QEMU's step over it ends where it began
    machine.resume()
    if machine.wait_stop(1) == stopped:
        machine.resume()
    assert machine.run("echo on").stdout == "on\n"
    machine.remove_breakpoint(number)
    assert machine.run("hostname kmi; hostname").stdout == "kmi\n"
    assert machine.running


def test_one_instruction(machine: LocalMachine) -> None:
    where = address_of(machine, "__x64_sys_sethostname")
    number = machine.insert_breakpoint(where, temporary=True)
    assert number > 0
    machine.spawn("sleep 1; hostname kmi")
    assert machine.wait_stop(20) is not None
    machine.step()
    stopped = machine.wait_stop(20)
    assert stopped is not None
    last = machine.last_stop()
    assert last is not None
    assert last.reason == "end-stepping-range"
    # a traced function begins with ftrace's nop of 5 bytes, with IBT after an endbr64 of 4
    assert machine.registers()[0].rip in (where + 4, where + 5)


def test_pauses_and_breakpoints_in_quick_change(machine: LocalMachine) -> None:
    """A breakpoint that hits all the time, and pauses that fall where they fall."""
    where = address_of(machine, "__x64_sys_sethostname")
    pid = machine.spawn("while :; do hostname kmi; done")  # answered before a breakpoint can hold it up
    number = machine.insert_breakpoint(where)
    kinds = set()
    for _ in range(20):
        stopped = machine.wait_stop(20)
        assert stopped is not None
        kinds.add(stopped.kind)
        assert machine.qmp("query-status")["running"] is False
        machine.resume()
        machine.pause()
        kinds.add(machine.state().kind)
        assert machine.qmp("query-status")["running"] is False
        machine.resume()
    machine.remove_breakpoint(number)
    machine.resume()
    assert "breakpoint" in kinds
    assert machine.run(f"kill {pid}").returncode == 0


def test_holds_with_gdb_attached(machine: LocalMachine) -> None:
    assert machine.gdb.pid
    for _ in range(5):
        machine.hold()
        assert machine.qmp("query-status")["running"] is False
        machine.release()
        assert machine.qmp("query-status")["running"] is True


def test_what_gdb_refuses_is_an_error(machine: LocalMachine) -> None:
    with pytest.raises(GdbError, match=r"gdb refused '-no-such-command': Undefined MI command"):
        machine.gdb.command("-no-such-command")
    assert machine.running


def test_a_gdb_that_is_killed_is_replaced(machine: LocalMachine) -> None:
    where = address_of(machine, "__x64_sys_sethostname")
    machine.insert_breakpoint(where)
    old = machine.gdb.pid
    os.kill(old, 9)
    while machine.control._gdb is not None:
        time.sleep(0.01)
    assert not Path(f"/proc/{old}").exists()
    machine.pause()
    machine.resume()
    assert machine.run("hostname kmi; hostname").stdout == "kmi\n", "its breakpoint went with it"
    assert machine.gdb.pid != old
