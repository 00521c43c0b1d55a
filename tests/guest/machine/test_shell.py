"""Commands in a real guest, over the emulated serial line."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from inspector.errors import CommandTimeout, MachineError
from inspector.machine import LocalMachine

pytestmark = pytest.mark.guest


def test_streams_and_exit_code(machine: LocalMachine) -> None:
    done = machine.run("echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert machine.run("kill -9 $$").returncode == 137
    assert machine.run("no-such-command").returncode == 127


def test_every_byte_passes_both_ways(machine: LocalMachine) -> None:
    data = os.urandom(100_000) + bytes(range(256)) * 10
    machine.put(data, "/tmp/bytes", 0o640)
    assert machine.run("cat /tmp/bytes").stdout_bytes == data
    assert machine.run("stat -c %a /tmp/bytes").stdout == "640\n"
    assert machine.run("md5sum < /tmp/bytes").stdout.split()[0] == hashlib.md5(data).hexdigest()


def test_a_long_command(machine: LocalMachine) -> None:
    word = "x" * 60_000
    assert machine.run(f"echo {word}").stdout == word + "\n"


def test_a_program_put_there_runs(machine: LocalMachine) -> None:
    machine.put(b"#!/bin/sh\necho I am $0\n", "/tmp/program")
    assert machine.run("/tmp/program").stdout == "I am /tmp/program\n"


def test_a_hung_command_does_not_take_the_channel_down(machine: LocalMachine) -> None:
    with pytest.raises(CommandTimeout, match=r"ran over 1 s in the guest and was killed"):
        machine.run("sh -c 'sleep 4242' | cat", timeout=1)
    assert "sleep 4242" not in machine.run("ps").stdout.replace("ps", ""), "its children died with it"
    assert machine.run("echo on").stdout == "on\n"


def test_many_at_once(machine: LocalMachine) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: machine.run(f"seq {n} {n + 2000}").stdout.split(), range(24)))
    assert answers == [[str(i) for i in range(n, n + 2001)] for n in range(24)]


def test_large_output_goes_through_the_window(machine: LocalMachine) -> None:
    machine.shell.ping()
    assert machine.shell._window_shared
    machine.put(os.urandom(3_000_000), "/tmp/large")
    sums = machine.run("md5sum < /tmp/large").stdout.split()[0]
    assert hashlib.md5(machine.run("cat /tmp/large").stdout_bytes).hexdigest() == sums
    assert hashlib.md5(machine.run("cat /tmp/large >&2").stderr_bytes).hexdigest() == sums
    machine.run("rm /tmp/large")


def test_a_quick_command_overtakes_a_flood(machine: LocalMachine) -> None:
    flood: list[int] = []
    thread = threading.Thread(
        target=lambda: flood.append(len(machine.run("head -c 40000000 /dev/zero", timeout=120).stdout_bytes))
    )
    thread.start()
    assert machine.run("echo quick").stdout == "quick\n"
    assert not flood, "the flood was still on its way"
    thread.join(120)
    assert flood == [40_000_000]


def test_more_than_the_limit_is_killed(machine: LocalMachine) -> None:
    with pytest.raises(MachineError, match="wrote over 64 MiB and was killed"):
        machine.run("yes", timeout=120)
    assert machine.run("echo on").stdout == "on\n"


def test_spawn_leaves_a_task(machine: LocalMachine) -> None:
    pid = machine.spawn("exec sleep 4343")
    named = f"for i in $(seq 100); do grep -qx sleep /proc/{pid}/comm && exit; usleep 20000; done; exit 1"
    assert machine.run(named).returncode == 0, "busybox takes the name some time after it began"
    assert machine.run(f"readlink /proc/{pid}/fd/0").stdout == "/dev/null\n"
    stat = machine.run(f"cat /proc/{pid}/stat").stdout.split()
    assert stat[5] == str(pid), "its session is its own (proc_pid_stat(5))"
    assert machine.run(f"kill {pid}").returncode == 0
    gone = machine.run(f"for i in $(seq 100); do [ -e /proc/{pid} ] || exit 0; usleep 20000; done; exit 1")
    assert gone.returncode == 0, "it was reaped"


def test_spawn_keeps_what_it_says(machine: LocalMachine) -> None:
    pid = machine.spawn("echo said; echo loudly >&2")
    log = machine.run(
        f"for i in $(seq 100); do [ -s /tmp/spawn-{pid}.log ] && break; usleep 20000; done; sleep 0.2; "
        f"cat /tmp/spawn-{pid}.log"
    )
    assert log.stdout == "said\nloudly\n"


def test_the_agent_may_not_be_killed_for_memory_what_it_runs_may(machine: LocalMachine) -> None:
    assert machine.run(f"cat /proc/{machine.shell.agent_pid}/oom_score_adj").stdout == "-1000\n"
    assert machine.run("cat /proc/self/oom_score_adj").stdout == "0\n"


def test_a_paused_guest_is_not_waited_for(machine: LocalMachine) -> None:
    machine.pause()
    try:
        with pytest.raises(MachineError, match="the guest is paused: resume it"):
            machine.run("true")
    finally:
        machine.resume()
    assert machine.run("true").returncode == 0


def test_a_pause_in_the_middle_takes_no_time(machine: LocalMachine) -> None:
    def pause() -> None:
        machine.run("until [ -e /tmp/begun ]; do usleep 20000; done; rm /tmp/begun").check()
        machine.pause()
        time.sleep(5)
        machine.resume()

    pauser = threading.Thread(target=pause)
    pauser.start()
    assert machine.run("touch /tmp/begun; sleep 1", timeout=4).returncode == 0
    pauser.join()


def test_a_new_agent_takes_over(machine: LocalMachine) -> None:
    """Init starts it again: what ran is lost, and said so; the next command runs."""
    old = machine.shell.agent_pid
    with pytest.raises(MachineError, match="agent was restarted"):
        machine.run(f"kill -9 {old}; sleep 60")
    assert machine.run("echo again").stdout == "again\n"
    assert machine.shell.agent_pid != old
