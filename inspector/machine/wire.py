"""What two kmi processes that share a guest say to each other: lines of JSON over a Unix socket.

A request is `{"op": name, ...arguments}`, the answer `{"result": ...}` or `{"error": class, "message": it}`.
The answer to `hello` carries the RAM file's descriptor (SCM_RIGHTS, unix(7)). After `events` the server only
sends: `{"state": ...}` at every change, and `{"dead": why}` at the end.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from inspector import errors
from inspector.errors import InspectorError, MachineError, UsageError
from inspector.machine.model import Completed, CpuRegisters, RunState, Segment

VERSION = 2


class Line:
    """One end of a conversation."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._file = connected.makefile("rb")

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Send a message, and a descriptor with its first byte. Raises OSError."""
        data = json.dumps(message).encode() + b"\n"
        if fd is not None:
            socket.send_fds(self._socket, [data[:1]], [fd])
            data = data[1:]
        self._socket.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end of the conversation. Raises OSError, ValueError."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            return None
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        return message

    def receive_fd(self) -> tuple[dict[str, Any], int]:
        """The first message of a conversation and the descriptor with it. Raises OSError, ValueError."""
        first, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        if len(fds) != 1:
            raise ValueError("no descriptor came with the message")
        message = json.loads(first + self._file.readline())
        return message, fds[0]

    def close(self) -> None:
        """Hang up; a thread that receives sees the end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._file.close()


def peer_is_us(connected: socket.socket) -> bool:
    """Whether the same user, or root, is at the other end (SO_PEERCRED, unix(7))."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little") in (os.getuid(), 0)


def pack_error(error: InspectorError) -> dict[str, Any]:
    """An error as an answer."""
    return {"error": type(error).__name__, "message": str(error)}


def unpack_error(answer: dict[str, Any]) -> InspectorError:
    """The error of an answer; what is not one of ours that a text alone makes becomes a MachineError."""
    kind = getattr(errors, str(answer["error"]), None)
    plain = isinstance(kind, type) and issubclass(kind, (MachineError, UsageError))
    return kind(answer["message"]) if plain and kind else MachineError(str(answer["message"]))


def pack_completed(completed: Completed) -> dict[str, Any]:
    """A command's outcome as JSON."""
    return asdict(completed) | {
        "stdout_bytes": base64.b64encode(completed.stdout_bytes).decode(),
        "stderr_bytes": base64.b64encode(completed.stderr_bytes).decode(),
    }


def unpack_completed(value: dict[str, Any]) -> Completed:
    """`pack_completed` back."""
    decoded = {name: base64.b64decode(value[name]) for name in ("stdout_bytes", "stderr_bytes")}
    return Completed(**(value | decoded))


def unpack_state(value: dict[str, Any]) -> RunState:
    """A run state out of JSON (dataclasses.asdict made it)."""
    return RunState(**value)


def unpack_registers(value: dict[str, Any]) -> CpuRegisters:
    """A CPU's registers out of JSON (dataclasses.asdict made it)."""
    segments = {name: Segment(*words) for name, words in value["segments"].items()}
    return CpuRegisters(**(value | {"segments": segments}))
