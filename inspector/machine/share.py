"""Let other processes of the same user into a guest that this one holds."""

from __future__ import annotations

import atexit
import base64
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from inspector.errors import InspectorError, MachineError
from inspector.machine.local import LocalMachine
from inspector.machine.model import RunState
from inspector.machine.names import listen
from inspector.machine.stoploop import LocalStopLoop
from inspector.machine.wire import VERSION, Line, pack_completed, pack_error, peer_is_us


class Server:
    """A guest served under a name, a thread a client, until `close` or its death. Made by `serve`."""

    def __init__(self, machine: LocalMachine, name: str) -> None:
        self.machine = machine
        self.name = name
        self._listener, self.path = listen(machine.folder, name)
        self._lock = threading.Lock()
        self._clients: set[_Client] = set()
        self._closed = False
        self._owner = os.getpid()
        self.paused_by: _Client | None = None
        """Whose pause holds the guest, if a client's does."""
        machine.on_state(self._tell)
        machine.on_death(self._bury)
        atexit.register(self.close)
        threading.Thread(target=self._accept, name="kmi-share", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            if not peer_is_us(connected):
                connected.close()
                continue
            # a client that is stopped must not stop us: SO_SNDTIMEO bounds sends alone (socket(7))
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
            client = _Client(self, Line(connected))
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=client.serve, name="kmi-share-client", daemon=True).start()

    def listen(self, client: _Client) -> None:
        """Tell a client of all that happens, from its answer on."""
        with self._lock:
            client.line.send({"result": None})
            client.listens = True

    def drop(self, client: _Client) -> None:
        """A client is gone."""
        with self._lock:
            self._clients.discard(client)

    def _tell(self, state: RunState) -> None:
        self._send_events({"state": asdict(state)})

    def _bury(self, why: str) -> None:
        self._send_events({"dead": why})
        self.close()

    def _send_events(self, event: dict[str, Any]) -> None:
        with self._lock:
            for client in self._clients:
                try:
                    if client.listens:
                        client.line.send(event)
                except OSError:
                    client.listens = False

    def close(self) -> None:
        """Stop serving; clients see the guest gone. Idempotent; the machine goes on."""
        with self._lock:
            if self._closed or os.getpid() != self._owner:  # a fork of ours ends: the guest is not its own
                return
            self._closed = True
            clients = list(self._clients)
        atexit.unregister(self.close)
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()
        for client in clients:
            client.line.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Client:
    """One client's conversation, on its own thread."""

    def __init__(self, server: Server, line: Line) -> None:
        self.server = server
        self.machine = server.machine
        self.line = line
        self.listens = False
        self._holds = 0
        self._loop: LocalStopLoop | None = None

    def serve(self) -> None:
        try:
            while (request := self.line.receive()) is not None:
                self._answer(request)
        except (OSError, ValueError):  # hung up, or not one of ours
            pass
        finally:
            self.server.drop(self)
            self._let_go()
            self.line.close()

    def _let_go(self) -> None:
        """A client that ends lets the guest run on: nobody else would know that it is stopped."""
        with suppress(InspectorError):
            self.loop_close()
        with suppress(InspectorError):
            for _ in range(self._holds):
                self.machine.release()
            if self.server.paused_by is self:
                self.server.paused_by = None
                if self.machine.state().kind == "paused":
                    self.machine.resume()

    def _answer(self, request: dict[str, Any]) -> None:
        operation = request.pop("op", "")
        if operation == "hello":
            self.line.send({"result": self._hello()}, self.machine.ram_fd)
            return
        if operation == "events":
            self.server.listen(self)
            return
        do = _OPERATIONS.get(operation)
        try:
            if do is None:
                raise MachineError(f"this kmi does not know {operation!r}: are both of the same version?")
            answer = {"result": do(self, **request)}
        except InspectorError as error:
            answer = pack_error(error)
        except TypeError as error:
            answer = pack_error(MachineError(f"bad arguments for {operation!r}: {error}"))
        self.line.send(answer)

    def _hello(self) -> dict[str, Any]:
        machine = self.machine
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "name": self.server.name,
            "accel": machine.accel,
            "accel_reason": machine.accel_reason,
            "memory_size": machine.memory_size,
            "cpus": machine.cpus,
            "kernel_path": str(machine.kernel_path),
            "blocks": machine.blocks,
        }

    def pause(self, who: str) -> None:
        was_running = self.machine.running
        self.machine.pause(who)
        if was_running:
            self.server.paused_by = self

    def resume(self) -> None:
        self.server.paused_by = None
        self.machine.resume()

    def hold(self, who: str) -> None:
        self.machine.hold(who)
        self._holds += 1

    def release(self) -> None:
        if self._holds:
            self._holds -= 1
            self.machine.release()

    @property
    def loop(self) -> LocalStopLoop:
        if self._loop is None:
            raise MachineError("no loop of stops is open on this line")
        return self._loop

    def loop_open(self) -> None:
        self._loop = self.machine.stop_loop()

    def loop_wait(self, timeout: float) -> dict[str, Any] | None:
        hit = self.loop.wait(timeout)
        return asdict(hit) if hit else None

    def loop_close(self) -> None:
        loop, self._loop = self._loop, None
        if loop:
            loop.close()


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "pause": _Client.pause,
    "resume": _Client.resume,
    "hold": _Client.hold,
    "release": _Client.release,
    "loop_open": _Client.loop_open,
    "loop_insert": lambda client, address: client.loop.insert(address),
    "loop_remove": lambda client, address: client.loop.remove(address),
    "loop_wait": _Client.loop_wait,
    "loop_set_register": lambda client, name, value: client.loop.set_register(name, value),
    "loop_write": lambda client, address, data: client.loop.write(address, bytes.fromhex(data)),
    "loop_step": lambda client: client.loop.step(),
    "loop_go": lambda client, timeout: client.loop.go(timeout),
    "loop_close": _Client.loop_close,
    "state": lambda client: asdict(client.machine.state()),
    "registers": lambda client: [asdict(cpu) for cpu in client.machine.registers()],
    "run": lambda client, command, timeout: pack_completed(client.machine.run(command, timeout)),
    "spawn": lambda client, command: client.machine.spawn(command),
    "put": lambda client, data, path, mode: client.machine.put(base64.b64decode(data), path, mode),
    "hmp": lambda client, command: client.machine.hmp(command),
    "qmp": lambda client, command, arguments: client.machine.qmp(command, **arguments),
    "console_tail": lambda client, lines: client.machine.console_tail(lines),
}


def serve(machine: LocalMachine, name: str = "") -> Server:
    """Serve the machine to this user's other processes, under `name` or its own.

    Raises UsageError where the name is taken or is none.
    """
    return Server(machine, name or machine.name)
