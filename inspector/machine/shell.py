"""Commands in the guest, through the agent at the other end of the second serial line."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from inspector.errors import CommandTimeout, GuestDied, MachineError, UsageError
from inspector.machine.frames import MAX_PAYLOAD, Decoder, Frame, Kind, encode
from inspector.machine.model import Completed
from inspector.machine.window import IN, SLOT, Window
from inspector.units import MIB, format_size

OUTPUT_LIMIT = 64 * MIB
_PUT_CHUNK = 16384
"""Far below what the guest's tty layer buffers (640 KiB, drivers/tty/tty_buffer.c); each is acknowledged."""
_KILL_GRACE = 10.0
_PAUSED_GRACE = 2.0
_SLICE = 0.1
_REASON = 3.0
_RANDOM = 32


class _Request:
    """What has come for one request so far."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.stdout: list[bytes] = []
        self.stderr: list[bytes] = []
        self.size = 0
        self.value = 0
        self.payload = b""
        self.error: MachineError | None = None

    def fail(self, error: MachineError) -> None:
        self.error = error
        self.done.set()


class Shell:
    """The host's end of the channel. `is_running()`: whether the guest's CPUs run."""

    def __init__(
        self, channel: socket.socket, is_running: Callable[[], bool], window: Window | None = None
    ) -> None:
        self._channel = channel
        # a stuck guest must not hang us: SO_SNDTIMEO bounds sends alone (socket(7))
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
        self._is_running = is_running
        self._window = window
        self._window_shared = False
        self._showing = threading.Lock()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._requests: dict[int, _Request] = {}
        self._next = 1
        self._dead: MachineError | None = None
        self._failed = threading.Event()
        self.hello = threading.Event()
        """Set once the agent has spoken."""
        self.agent_pid = 0
        threading.Thread(target=self._read, name="kmi-shell", daemon=True).start()

    # what comes in

    def _read(self) -> None:
        decoder = Decoder()
        while True:
            try:
                data = self._channel.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                self._explain()
                return
            for frame in decoder.feed(data):
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.HELLO:
            if self.hello.is_set():  # init started it anew: what the first one ran has no one to report it
                self._fail_requests(MachineError("the guest's agent was restarted while the command ran"))
            self.agent_pid = int(frame.payload) if frame.payload.isdigit() else 0
            self._offer_window()
            self.hello.set()
            return
        if frame.kind == Kind.ACK and frame.id == 0:
            self._window_shared = frame.payload == bytes(4)
            return
        if frame.kind in (Kind.SHOWOUT, Kind.SHOWERR):
            frame = self._look(frame)
        with self._lock:
            request = self._requests.get(frame.id)
        if request is None:  # given up on: its last frames still come
            return
        if frame.kind in (Kind.STDOUT, Kind.STDERR):
            request.size += len(frame.payload)
            if request.size <= OUTPUT_LIMIT:
                (request.stdout if frame.kind == Kind.STDOUT else request.stderr).append(frame.payload)
            elif request.error is None:
                request.error = MachineError(
                    f"the command wrote over {format_size(OUTPUT_LIMIT)} and was killed: write to a file"
                )
                with suppress(MachineError):
                    self._send(Kind.KILL, frame.id)
        elif frame.kind in (Kind.EXIT, Kind.SPAWNED, Kind.ACK) and len(frame.payload) == 4:
            (request.value,) = struct.unpack("<i", frame.payload)
            request.done.set()
        elif frame.kind == Kind.PONG:
            request.payload = frame.payload
            request.done.set()

    def _offer_window(self) -> None:
        self._window_shared = False
        if self._window:
            with suppress(MachineError):
                self._send(Kind.WINDOW, 0, self._window.prove())

    def _look(self, frame: Frame) -> Frame:
        """The output that the frame says is in the window, as if it had come over the line."""
        data = b""
        if self._window and len(frame.payload) == 8:
            offset, length = struct.unpack("<II", frame.payload)
            with suppress(ValueError):  # closed, or a guest that lies
                data = self._window.take(offset, length)
            with suppress(MachineError):
                self._send(Kind.FREE, 0, struct.pack("<I", offset // SLOT))
        return Frame(Kind.STDOUT if frame.kind == Kind.SHOWOUT else Kind.STDERR, frame.id, data)

    def fail(self, error: MachineError) -> None:
        """The channel is gone: every waiter, now and later, gets `error`; the first one stands."""
        with self._lock:
            self._dead = self._dead or error
            self._failed.set()
        self._fail_requests(self._dead)

    def _explain(self) -> MachineError:
        """Why the channel ended: whoever watches QEMU says so moments later."""
        if not self._failed.wait(_REASON):
            self.fail(GuestDied("the guest is gone: its shell channel ended"))
        assert self._dead is not None
        return self._dead

    def _fail_requests(self, error: MachineError) -> None:
        with self._lock:
            waiting = list(self._requests.values())
        for request in waiting:
            request.fail(error)

    # what goes out

    def _send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        try:
            with self._sending:
                self._channel.sendall(encode(kind, number, payload))
        except BlockingIOError as error:
            raise MachineError("the guest takes nothing from its shell channel: is it hung?") from error
        except OSError as error:
            raise self._explain() from error

    def _begin(self) -> tuple[int, _Request]:
        with self._lock:
            if self._dead:
                raise self._dead
            if not self.hello.is_set():
                raise MachineError(
                    "no agent speaks in this guest, so no command can be run in it: "
                    "start it with kmi's own guest image, or have your init start /bin/agent /dev/ttyS1"
                )
            number, self._next = self._next, self._next % 0xFFFFFFFF + 1
            request = self._requests[number] = _Request()
        return number, request

    def _end(self, number: int) -> None:
        with self._lock:
            self._requests.pop(number, None)

    def _await_running(self) -> None:
        """A pause of another thread's is short; a lasting one would make us wait for ever."""
        deadline = time.monotonic() + _PAUSED_GRACE
        while not self._is_running() and not self._dead:
            if time.monotonic() > deadline:
                raise MachineError("the guest is paused: resume it to run a command in it")
            time.sleep(0.01)

    def _wait(self, request: _Request, timeout: float) -> bool:
        """Whether it got done within `timeout` seconds of running guest."""
        left = timeout
        while left > 0:
            since = time.monotonic()
            if request.done.wait(min(left, _SLICE)):
                return True
            if self._is_running():
                left -= time.monotonic() - since
        return request.done.is_set()

    def _ask(
        self, request: _Request, number: int, kind: Kind, payload: bytes, timeout: float, what: str
    ) -> int:
        request.done.clear()
        self._send(kind, number, payload)
        if not self._wait(request, timeout):
            raise CommandTimeout(f"the guest's agent did not answer within {timeout:g} s: {what}")
        if request.error:
            raise request.error
        return request.value

    # what callers ask for

    def run(self, command: str, timeout: float = 30.0) -> Completed:
        """Run `/bin/sh -c command` and wait; `timeout` in seconds of running guest.

        Raises CommandTimeout (its process group is killed), MachineError (too much output, no agent, a paused
        guest), GuestDied. stdin is /dev/null; what it leaves in the background is not waited for.
        """
        encoded = _encode(command)
        self._await_running()
        number, request = self._begin()
        try:
            self._send(Kind.RUN, number, encoded)
            timed_out = not self._wait(request, timeout)
            if timed_out:
                self._send(Kind.KILL, number)
                if not self._wait(request, _KILL_GRACE):
                    raise CommandTimeout(
                        f"{command!r} ran over {timeout:g} s, and the guest's agent does not answer"
                    )
            if request.error:
                raise request.error
            if timed_out:
                raise CommandTimeout(f"{command!r} ran over {timeout:g} s in the guest and was killed")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                with suppress(MachineError):
                    self._send(Kind.KILL, number)
            raise
        finally:
            self._end(number)
        return Completed(b"".join(request.stdout), b"".join(request.stderr), request.value, command)

    def spawn(self, command: str, timeout: float = 30.0) -> int:
        """Leave `/bin/sh -c command` running, detached; its PID. Output goes to /tmp/spawn-PID.log."""
        encoded = _encode(command)
        self._await_running()
        number, request = self._begin()
        try:
            pid = self._ask(request, number, Kind.SPAWN, encoded, timeout, f"spawn {command!r}")
        finally:
            self._end(number)
        if pid < 0:
            raise MachineError(f"the guest cannot start {command!r}: {os.strerror(-pid)}")
        return pid

    def put(self, data: bytes, path: str, mode: int = 0o755, timeout: float = 30.0) -> None:
        """Write a file in the guest: whole under its name, or not at all. `timeout`: seconds a piece."""
        name = path.encode()
        if not path.startswith("/") or b"\0" in name or len(name) >= 4096:
            raise UsageError(f"not an absolute path in the guest: {path!r}")
        self._await_running()
        number, request = self._begin()

        def ask(kind: Kind, payload: bytes = b"") -> None:
            error = self._ask(request, number, kind, payload, timeout, f"put {path}")
            if error:
                reason = "no such folder" if -error == errno.ENOENT else os.strerror(-error)
                raise MachineError(f"cannot write {path} in the guest: {reason}")

        try:
            ask(Kind.PUT, struct.pack("<I", mode) + name)
            if self._window and self._window_shared:
                for at in range(0, len(data), IN):
                    with self._showing:
                        ask(Kind.LOOK, struct.pack("<II", *self._window.show(data[at : at + IN])))
            else:
                for at in range(0, len(data), _PUT_CHUNK):
                    ask(Kind.DATA, data[at : at + _PUT_CHUNK])
            ask(Kind.DONE)
        finally:
            self._end(number)

    @property
    def window_shared(self) -> bool:
        """Whether the agent has taken the window."""
        return self._window_shared

    def wake(self, agent_pid: int, window_shared: bool, timeout: float = 30.0) -> None:
        """Greet the agent of a guest that goes on from a saved state, in which it spoke and took the window.

        The guest is told the time, and gets random numbers of its own. Raises CommandTimeout, MachineError.
        """
        self.agent_pid, self._window_shared = agent_pid, window_shared
        self.hello.set()
        number, request = self._begin()
        try:
            told = struct.pack("<Q", time.time_ns()) + os.urandom(_RANDOM)
            error = self._ask(request, number, Kind.WAKE, told, timeout, "wake")
        finally:
            self._end(number)
        if error:
            raise MachineError(f"the guest's clock cannot be set: {os.strerror(-error)}")

    def ping(self, payload: bytes = b"", timeout: float = 5.0) -> float:
        """Seconds until the agent has sent `payload` back. Raises MachineError where it comes changed."""
        number, request = self._begin()
        try:
            since = time.monotonic()
            self._ask(request, number, Kind.PING, payload, timeout, "ping")
            if request.payload != payload:
                raise MachineError("the guest's agent sent back other bytes than it was given")
            return time.monotonic() - since
        finally:
            self._end(number)


def _encode(command: str) -> bytes:
    encoded = command.encode()
    if b"\0" in encoded or not encoded.strip():
        raise UsageError("a command for the guest must not be empty, nor hold a NUL")
    if len(encoded) > MAX_PAYLOAD:
        raise UsageError(
            f"a command for the guest is at most {format_size(MAX_PAYLOAD)}: put a script there and run it"
        )
    return encoded
