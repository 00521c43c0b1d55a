"""What a traced page fault costs, beside gdb's own breakpoints and beside the least that a stop costs."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from inspector.cli.bench_rows import Effort, Row
from inspector.errors import KernelError
from inspector.guest import Guest
from inspector.machine import LocalMachine
from inspector.machine.rsp import Rsp
from inspector.units import VirtAddr

_PEER = "gdb"
_NOP = 5  # bytes of the padding that a traceable function begins with; see trace.stops
_TIMEOUT = 300.0
_QUIET = ["-ex", "set architecture i386:x86-64", "-iex", "set debuginfod enabled off"]
# What a person would write: a breakpoint whose handler reads the arguments and lets the guest go on.
_SCRIPT = """
import gdb, json, time

class AtFault(gdb.Breakpoint):
    seen, started = 0, 0.0

    def stop(self):
        frame = gdb.selected_frame()
        [int(frame.read_register(name)) for name in ("rip", "rsp", "rdi", "rsi", "rdx", "rcx")]
        self.seen += 1
        self.started = self.started or time.perf_counter()
        return self.seen > COUNT

point = AtFault("*ADDRESS")
gdb.execute("continue", to_string=True)
print(json.dumps(time.perf_counter() - point.started))
point.delete()
gdb.execute("detach", to_string=True)
"""


def trace_rows(guest: Guest, effort: Effort) -> list[Row]:
    """A task that faults without pause: traced, stopped by gdb, stopped by hand."""
    machine = guest.machine
    assert isinstance(machine, LocalMachine)
    pid = guest.spawn("/labs/burn --faults")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done").check()
    before = _speed(guest, pid)
    started = time.perf_counter()
    with guest.trace_faults(pid, limit=effort.faults) as trace:
        records = sum(1 for _ in trace)
        took = time.perf_counter() - started
    after = _speed(guest, pid)
    if records != effort.faults:
        raise KernelError(f"{records} page faults were traced of {effort.faults}: the task ended")
    socket, address = machine.folder / "gdb", guest.symbol("handle_mm_fault")
    peer = _with_gdb(socket, address, effort.faults)
    floor = _bare(socket, address, effort.faults)
    guest.resume()  # the bare loop went past the run control, which may not have heard yet
    guest.run(f"kill {pid}")
    note = (
        f"a record of each, {trace.stops / records:.1f} stops a fault; the task faults "
        f"{after / before:.2f} times as often after as before"
    )
    stop = Row(
        "trace_stops",
        trace.stops,
        took,
        peer=_PEER,
        peer_count=effort.faults,
        peer_s=peer,
        ratio=(peer / effort.faults) / (took / trace.stops),
        floor_s=floor / effort.faults * trace.stops,
        note=f"the same by stops, {took / trace.stops / (floor / effort.faults):.1f} times the floor, a bare "
        "loop; the peer's handler reads six registers",
    )
    return [Row("trace_faults", records, took, note=note), stop]


def _speed(guest: Guest, pid: int) -> float:
    """Faults a second of the task, untraced."""
    counted = f"cut -d' ' -f10 /proc/{pid}/stat"
    first, second = (int(line) for line in guest.run(f"{counted}; sleep 1; {counted}").stdout.split())
    return second - first


def _with_gdb(socket: Path, address: VirtAddr, count: int) -> float:
    """Seconds for so many stops at a breakpoint with a handler in Python."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(_SCRIPT.replace("COUNT", str(count)).replace("ADDRESS", f"{address:#x}"))
        script.flush()
        done = subprocess.run(
            [
                "gdb",
                "-nx",
                "-nh",
                "-q",
                "-batch",
                *_QUIET,
                "-ex",
                f"target remote {socket}",
                "-x",
                script.name,
            ],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            start_new_session=True,
        )
    try:
        return float(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError) as error:
        raise KernelError(f"gdb said no time: {done.stderr.strip().splitlines()[-1:]}") from error


def _bare(socket: Path, address: VirtAddr, count: int) -> float:
    """Seconds for so many stops with registers read, by a breakpoint that stays in and is stepped past."""
    stub = Rsp(socket)
    try:
        stub.insert(address)
        stub.go()
        started = 0.0
        for _ in range(count + 1):
            if stub.receive(_TIMEOUT) is None:
                raise KernelError("the task that should fault without pause does not")
            started = started or time.perf_counter()
            stub.set_register("rip", stub.registers()["rip"] + _NOP)
            stub.go()
        took = time.perf_counter() - started
        stub.receive(_TIMEOUT)
        stub.remove(address)
        stub.go()
        return took
    finally:
        stub.close()
