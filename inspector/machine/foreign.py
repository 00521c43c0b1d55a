"""A QEMU that somebody else started: libvirt's, virtme-ng's, a command line of the user's own."""

from __future__ import annotations

import atexit
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from inspector.errors import GuestDied, MachineError
from inspector.machine import keeper
from inspector.machine.address import Address, dial
from inspector.machine.foreign_ram import find_ram
from inspector.machine.model import Completed, CpuRegisters, DeathListener, RamRange, RunState, StateListener
from inspector.machine.monitor import Monitored
from inspector.machine.qmp import Qmp
from inspector.machine.registers import parse_registers
from inspector.machine.runcontrol import RunControl
from inspector.machine.stoploop import LocalStopLoop
from inspector.units import printable

_GREETING = 5.0
_ADD_GDB = (
    "start QEMU with `-gdb unix:PATH,server=on,wait=off`, or let its monitor do "
    "`gdbserver unix:PATH,server=on,wait=off`, and give that gdb socket too"
)
_SHUTDOWNS = {"guest-reset": "the guest reset itself", "guest-shutdown": "the guest shut itself down"}


class ForeignMachine(Monitored):
    """See the Machine protocol for what it answers. There is no agent of ours in the guest: run() is refused.

    With `gdb` page faults and allocations can be traced; nothing is sent there before. Raises MachineError.
    """

    def __init__(self, qmp: Address, gdb: Address | None = None) -> None:
        self._gdb = gdb
        self._closed = False
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._stopping = 0  # orders of ours that stop the guest
        self._should_run = False
        self._keeper: Keeper | None = None
        self.control = RunControl(gdb or "")
        channel = _dial(qmp)
        self.qemu_pid = _peer(channel)
        """QEMU's process id; None where it runs on another host, or out of our sight."""
        try:
            self._qmp = Qmp(channel, self._event, self._gone, _GREETING, self._ended)
        except MachineError as error:
            channel.close()
            raise MachineError(
                f"no QMP greeting at {qmp}: another client (libvirt?) has that socket, or it is none of QMP; "
                "give QEMU one more, with `-qmp unix:PATH,server=on,wait=off`"
            ) from error
        try:
            self._learn(channel)
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)

    def _learn(self, channel: socket.socket) -> None:
        qmp = self._qmp
        self.control.use_qmp(qmp)
        self._should_run = self.control.state().running
        version = qmp.execute("query-version")["qemu"]
        release = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
        named = qmp.execute("query-name").get("name", "")
        self.name = printable(str(named)) or (f"qemu-{self.qemu_pid}" if self.qemu_pid else "qemu")
        self.accel = "KVM" if qmp.execute("query-kvm")["enabled"] else "TCG"
        self.cpus = len(qmp.execute("query-cpus-fast"))
        size = qmp.execute("query-memory-size-summary")
        self.memory_size = int(size["base-memory"]) + int(size.get("plugged-memory", 0))
        self._ram = find_ram(qmp, self.qemu_pid, self.control.moment)
        self.ram_files = self._ram.files
        """What is mapped; the machine closes them."""
        # A file that is the RAM from its first byte on tells of its holes too.
        whole = len(self.ram_files) == 1 and not self.ram_files[0].start
        self.ram_fd: int | None = self.ram_files[0].fd if whole else None
        self.ram_source = self._ram.source
        """What reads the RAM where it has no file that can be mapped."""
        self.blocks: list[RamRange] = self._ram.blocks
        process = f", process {self.qemu_pid}" if self.qemu_pid else ""
        self.accel_reason = f"QEMU {release} that others started{process}; {self._ram.how}"
        self._keeper = Keeper(channel, self._gdb, self._should_run)

    @property
    def lacks(self) -> tuple[str, ...]:
        """What cannot be done with this QEMU, or only slowly, and how to mend it: lines for a person."""
        tracing = "" if self._gdb else f"nothing can be traced without a gdbstub: {_ADD_GDB}"
        return tuple(filter(None, (self._ram.lack, tracing)))

    # what happens

    def _event(self, name: str, data: dict[str, Any]) -> None:
        """On QMP's thread."""
        self.control.on_qmp_event(name, data)
        if name == "RESUME":
            self._set_should_run(True)
        elif name == "STOP" and not self._stopping:
            self._set_should_run(False)

    def _set_should_run(self, should_run: bool) -> None:
        """Whether the guest runs but for us."""
        if should_run != self._should_run:
            self._should_run = should_run
            self._tell("R" if should_run else "S")

    def _ended(self) -> None:
        """QEMU hung up; on QMP's thread."""
        if not self._closed:
            self.control.died(_SHUTDOWNS.get(self.control.shutdown, "QEMU has ended"))

    def _gone(self, otherwise: str) -> GuestDied:
        state = self.control.state()
        why = state.reason.removeprefix("dead: ")
        return GuestDied(f"the guest is gone: {why}" if state.kind == "dead" else otherwise)

    @contextmanager
    def _stops(self) -> Iterator[None]:
        """Inside, a stop is ours."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._stopping += more

    def _tell(self, what: str) -> None:
        if self._keeper:
            self._keeper.say(what)

    # what it answers

    @property
    def kernel_path(self) -> Path:
        """Raises MachineError: the one who started QEMU knows."""
        self._refuse("only they know which file its kernel was booted from")

    @property
    def folder(self) -> Path:
        """Raises MachineError: there is none."""
        self._refuse("it has no folder of ours")

    @property
    def alive(self) -> bool:
        """Whether QEMU is there."""
        return not self._closed and self.control.state().kind != "dead"

    @property
    def running(self) -> bool:
        """Whether the guest's CPUs execute."""
        return self.state().running

    def state(self) -> RunState:
        """Running or not, and why."""
        return self.control.state()

    def pause(self, who: str = "user") -> None:
        """Stop the CPUs; nothing where they are stopped. They run again when this process ends."""
        with self._stops():
            self.control.pause(who)

    def resume(self) -> None:
        """Let the CPUs run, whoever stopped them. Raises GuestDied."""
        self.control.resume()

    def hold(self, who: str = "a reading") -> None:
        """Stop the CPUs for a moment; holds are counted. Raises GuestDied."""
        with self._stops():
            self.control.hold(who)

    def release(self) -> None:
        """End a hold; with the last one the CPUs run again, unless they were paused. Raises GuestDied."""
        self.control.release()

    def registers(self) -> list[CpuRegisters]:
        """Every vCPU's registers, as the monitor reads them."""
        return parse_registers(self.hmp("info registers -a"))

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Raises MachineError."""
        self._no_agent()

    def spawn(self, command: str) -> int:
        """Raises MachineError."""
        self._no_agent()

    def put(self, data: bytes, path: str, mode: int = 0o755) -> None:
        """Raises MachineError."""
        self._no_agent()

    def _monitor(self) -> Qmp:
        if self._closed:
            raise GuestDied("the guest is closed")
        return self._qmp

    def stop_loop(self) -> LocalStopLoop:
        """Breakpoints for a loop of many short stops. Raises GdbError, GuestDied, MachineError (no stub)."""
        if self._gdb is None:
            raise MachineError(f"nothing can be traced in {self.name}: it has no gdbstub; {_ADD_GDB}")
        self._count(1)
        self._tell("T")
        try:
            loop = self.control.stop_loop()
        except BaseException:
            self._loop_ended()
            raise
        loop.on_close = self._loop_ended
        return loop

    def _loop_ended(self) -> None:
        self._count(-1)
        self._tell("U")

    def console_tail(self, lines: int = 40) -> str:
        """That there is none; nothing once QEMU is gone, when all want its last words."""
        if not self.alive:
            return ""
        return (
            f"{self.name} was started by others: its console is theirs, and no commands run in it from here"
        )

    def on_state(self, listener: StateListener) -> None:
        """Call `listener(state)` at every change."""
        self.control.on_state(listener)

    def on_death(self, listener: DeathListener) -> None:
        """Call `listener(why)` once QEMU is gone."""
        self.control.on_death(listener)

    def close(self) -> None:
        """Let go: the guest runs if it did but for us. Idempotent; nothing of ours is left."""
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._keeper:
            with suppress(MachineError):
                if self._should_run and self.control.state().kind in ("paused", "breakpoint"):
                    self._qmp.execute("cont")
            self._keeper.close()
        self.control.died("closed")
        self._qmp.close()
        if ram := getattr(self, "_ram", None):
            for file in ram.files:
                os.close(file.fd)
            if ram.source:
                ram.source.close()

    def __enter__(self) -> ForeignMachine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _no_agent(self) -> NoReturn:
        self._refuse("no agent of ours is in it to run commands or take files; a guest of `kmi boot` has one")

    def _refuse(self, what: str) -> NoReturn:
        raise MachineError(f"{self.name} was started by others: {what}")


class Keeper:
    """The small process that lets the guest run when we are killed: see keeper.py."""

    def __init__(self, qmp: socket.socket, gdb: Address | None, should_run: bool) -> None:
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        host, _, port = str(gdb).rpartition(":")
        spec = {
            "parent": os.getpid(),
            "lifeline": lifeline,
            "qmp": qmp.fileno(),
            "gdb": [host.strip("[]"), int(port)] if isinstance(gdb, str) else gdb and str(gdb.absolute()),
            "should_run": should_run,
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[lifeline, qmp.fileno()],
                cwd="/",
                start_new_session=True,  # Ctrl-C in our terminal is for us alone
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)

    def say(self, what: str) -> None:
        """A byte of keeper.py's."""
        with suppress(OSError):  # it was killed: then nobody stands in for us
            os.write(self._lifeline, what.encode())

    def close(self) -> None:
        """End it; it does nothing to the guest."""
        self.say("Q")
        os.close(self._lifeline)
        self._process.wait()


def _dial(qmp: Address) -> socket.socket:
    try:
        connected = dial(qmp, _GREETING)
    except OSError as error:
        raise MachineError(
            f"no QEMU can be reached at {qmp}: {error.strerror or error}; "
            "start it with `-qmp unix:PATH,server=on,wait=off`, and give that PATH"
        ) from error
    connected.settimeout(None)
    return connected


def _peer(channel: socket.socket) -> int | None:
    """The process that listens at a Unix socket (unix(7), SO_PEERCRED); None where it cannot be known."""
    if channel.family != socket.AF_UNIX:
        return None
    pid, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid or None
