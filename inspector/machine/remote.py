"""A guest that another kmi of the same user holds open: its RAM mapped here, the rest asked over a socket."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from inspector.errors import GuestDied, MachineError
from inspector.machine.model import (
    Completed,
    CpuRegisters,
    DeathListener,
    RamRange,
    RunState,
    StateListener,
)
from inspector.machine.names import open_guests
from inspector.machine.stoploop import Hit
from inspector.machine.wire import (
    VERSION,
    Line,
    peer_is_us,
    unpack_completed,
    unpack_error,
    unpack_registers,
    unpack_state,
)
from inspector.units import VirtAddr


class RemoteMachine:
    """See the Machine protocol for what it answers. Made by `connect`; thread-safe."""

    def __init__(self, name: str, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._listeners: list[StateListener] = []
        self._mourners: list[DeathListener] = []
        self._dead: str | None = None
        self._closed = False
        self._listening = threading.Event()
        self._ended = threading.Event()
        self._main = self._dial()
        """The line that pauses and holds are ours by: when it ends, the server lets the guest run."""
        self._main_lock = threading.Lock()
        try:
            self._main.send({"op": "hello"})
            answer, self.ram_fd = self._main.receive_fd()
        except (OSError, ValueError) as error:
            self._main.close()
            raise MachineError(f"the kmi that holds guest {name!r} does not greet: {error}") from error
        about = answer["result"]
        if about["version"] != VERSION:
            self._main.close()
            os.close(self.ram_fd)
            raise MachineError(f"guest {name!r} is held by another version of kmi: close it there")
        self.name: str = about["name"]
        self.accel: str = about["accel"]
        self.accel_reason: str = about["accel_reason"]
        self.memory_size: int = about["memory_size"]
        self.cpus: int = about["cpus"]
        self.kernel_path = Path(about["kernel_path"])
        self.holder_pid: int = about["pid"]
        self.blocks: list[RamRange] = [(start, size, offset) for start, size, offset in about["blocks"]]
        self._events = self._dial()
        self._exchange(self._events, {"op": "events"})
        self._listening.set()
        threading.Thread(target=self._listen, name="kmi-remote", daemon=True).start()

    @property
    def folder(self) -> Path:
        """The private folder, while QEMU runs: `qmp` and `gdb` are sockets for other tools, a client each."""
        return self._path.parent

    def _dial(self) -> Line:
        if self._closed:
            raise self._gone()
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.connect(str(self._path))
        except OSError as error:
            connected.close()
            raise self._gone() from error
        if not peer_is_us(connected):
            connected.close()
            raise MachineError(f"{self._path} is another user's: remove it")
        return Line(connected)

    def _gone(self) -> GuestDied:
        if self._closed:
            return GuestDied("the guest is closed")
        if self._listening.is_set():
            self._ended.wait(1)  # the reason may be on its way
        why = self._dead or f"the kmi that held {self._path.stem!r} has ended"
        return GuestDied(f"the guest is gone: {why}")

    def _listen(self) -> None:
        why = ""
        with suppress(OSError, ValueError):
            while (event := self._events.receive()) is not None:
                if "dead" in event:
                    why = event["dead"]
                elif "state" in event:
                    state = unpack_state(event["state"])
                    for listener in list(self._listeners):
                        with suppress(Exception):  # a listener's fault is not the guest's
                            listener(state)
        with self._lock:
            self._dead = self._dead or why or f"the kmi that held {self._path.stem!r} has ended"
            mourners, self._mourners = self._mourners, []
        self._ended.set()
        for mourner in mourners:
            with suppress(Exception):
                mourner(self._dead)

    def _exchange(self, line: Line, request: dict[str, Any]) -> Any:
        try:
            line.send(request)
            answer = line.receive()
        except (OSError, ValueError) as error:
            raise self._gone() from error
        if answer is None:
            raise self._gone()
        if "error" in answer:
            raise unpack_error(answer)
        return answer["result"]

    def _ask(self, operation: str, **arguments: Any) -> Any:
        """On a line of its own: a long command does not keep the other threads waiting."""
        with self._lock:
            line = self._idle.pop() if self._idle else None
        line = line or self._dial()
        answered = False
        try:
            result = self._exchange(line, {"op": operation, **arguments})
            answered = True
            return result
        except MachineError as error:
            answered = not isinstance(error, GuestDied)
            raise
        finally:
            with self._lock:
                keep = answered and not self._closed
                if keep:
                    self._idle.append(line)
            if not keep:
                line.close()

    def _order(self, operation: str, **arguments: Any) -> None:
        with self._main_lock:
            self._exchange(self._main, {"op": operation, **arguments})

    @property
    def alive(self) -> bool:
        """Whether the guest is there, and its holder."""
        return self._dead is None and not self._closed

    @property
    def running(self) -> bool:
        """Whether the guest's CPUs execute."""
        return self.state().running

    def state(self) -> RunState:
        """Running or not, and why."""
        try:
            return unpack_state(self._ask("state"))
        except GuestDied as error:
            return RunState("dead", f"dead: {str(error).removeprefix('the guest is gone: ')}")

    def pause(self, who: str = "user") -> None:
        """Stop the CPUs; the holder lets them run when this process ends. Raises GuestDied."""
        self._order("pause", who=who)

    def resume(self) -> None:
        """Let the CPUs run, whoever stopped them. Raises GuestDied."""
        self._order("resume")

    def hold(self, who: str = "a reading") -> None:
        """Stop the CPUs for a moment; holds are counted over all processes. Raises GuestDied."""
        self._order("hold", who=who)

    def release(self) -> None:
        """End a hold. Raises GuestDied."""
        self._order("release")

    def registers(self) -> list[CpuRegisters]:
        """Every vCPU's registers."""
        return [unpack_registers(cpu) for cpu in self._ask("registers")]

    def run(self, command: str, timeout: float = 30.0) -> Completed:
        """Run a /bin/sh command in the guest. Raises CommandTimeout, MachineError, GuestDied."""
        return unpack_completed(self._ask("run", command=command, timeout=timeout))

    def spawn(self, command: str) -> int:
        """Leave a command running in the guest, detached; its PID."""
        return int(self._ask("spawn", command=command))

    def put(self, data: bytes, path: str, mode: int = 0o755) -> None:
        """Write a file in the guest."""
        self._ask("put", data=base64.b64encode(data).decode(), path=path, mode=mode)

    def hmp(self, command: str) -> str:
        """What QEMU's human monitor answers. Raises QmpError."""
        return str(self._ask("hmp", command=command))

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What QMP returns. Raises QmpError."""
        return self._ask("qmp", command=command, arguments=arguments)

    def stop_loop(self) -> RemoteStopLoop:
        """Breakpoints for a loop of many short stops, which the holder takes out when this process ends."""
        line = self._dial()
        try:
            self._exchange(line, {"op": "loop_open"})
        except BaseException:
            line.close()
            raise
        return RemoteStopLoop(line, self._exchange)

    def console_tail(self, lines: int = 40) -> str:
        """The last lines of the serial console."""
        return str(self._ask("console_tail", lines=lines))

    def on_state(self, listener: StateListener) -> None:
        """Call `listener(state)` at every change, on a thread of the machine's."""
        self._listeners.append(listener)

    def on_death(self, listener: DeathListener) -> None:
        """Call `listener(why)` once the guest or its holder is gone; at once where it is."""
        with self._lock:
            why = self._dead
            if why is None:
                self._mourners.append(listener)
        if why is not None:
            listener(why)

    def close(self) -> None:
        """Let go; the guest stays with its holder. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            lines, self._idle = [self._main, self._events, *self._idle], []
        for line in lines:
            line.close()
        os.close(self.ram_fd)

    def __enter__(self) -> RemoteMachine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RemoteStopLoop:
    """A StopLoop of the guest's holder, over a line of its own: when that ends the holder closes it."""

    def __init__(self, line: Line, exchange: Callable[[Line, dict[str, Any]], Any]) -> None:
        self._line = line
        self._exchange = exchange
        self._closed = False

    def _ask(self, operation: str, **arguments: Any) -> Any:
        return self._exchange(self._line, {"op": f"loop_{operation}", **arguments})

    def insert(self, address: VirtAddr) -> None:
        """See StopLoop."""
        self._ask("insert", address=address)

    def remove(self, address: VirtAddr) -> None:
        """See StopLoop."""
        self._ask("remove", address=address)

    def wait(self, timeout: float) -> Hit | None:
        """See StopLoop."""
        hit = self._ask("wait", timeout=timeout)
        return Hit(**hit) if hit else None

    def set_register(self, name: str, value: int) -> None:
        """See StopLoop."""
        self._ask("set_register", name=name, value=value)

    def write(self, address: VirtAddr, data: bytes) -> None:
        """See StopLoop."""
        self._ask("write", address=address, data=data.hex())

    def step(self) -> None:
        """See StopLoop."""
        self._ask("step")

    def go(self, timeout: float) -> bool:
        """See StopLoop."""
        return bool(self._ask("go", timeout=timeout))

    def close(self) -> None:
        """See StopLoop."""
        if not self._closed:
            self._closed = True
            try:
                self._ask("close")
            finally:
                self._line.close()


def connect(name: str) -> RemoteMachine:
    """Reach the guest that another process serves as `name`. Raises MachineError, naming the open ones."""
    guests = open_guests()
    if name not in guests:
        known = (
            f"open are {', '.join(sorted(guests))}" if guests else "none is; `kmi boot --name NAME` opens one"
        )
        raise MachineError(f"no guest named {name!r} is open: {known}")
    return RemoteMachine(name, guests[name])
