"""A small process beside an attached QEMU of somebody else's: it lets the guest run when we are killed.

Run alone, `python -I -S keeper.py SPEC`; imports nothing of ours. SPEC is JSON: `parent` (its pid),
`lifeline` (a pipe's read end), `qmp` (our QMP connection, which lives on in it), `gdb` (the stub's address,
a path or [host, port], or null), `should_run`. What our parent writes to the lifeline, a byte each:

- `R`, `S`: the guest runs; others have stopped it, so that it is to stay so.
- `T`, `U`: a trace with breakpoints in the stub begins; it has ended.
- `Q`: all is in order, end.

When our parent ends without a `Q`, even by SIGKILL, breakpoints are taken out, and the guest runs if it
should. Where we are killed with our parent nobody does: QEMU's monitor takes `cont`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

_ANSWER = 10.0


def main() -> None:
    """Wait for our parent's end, and tidy up after it."""
    spec = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    should_run, tracing = bool(spec["should_run"]), False
    ends: list[int] = [spec["lifeline"]]
    with suppress(ProcessLookupError):
        parent = os.pidfd_open(spec["parent"])
        if os.getppid() == spec["parent"]:
            ends.append(parent)
    while True:
        ready, _, _ = select.select(ends, [], [])
        said = os.read(spec["lifeline"], 4096) if spec["lifeline"] in ready else b""
        for byte in said.decode():
            if byte == "Q":
                return
            if byte in "RS":
                should_run = byte == "R"
            elif byte in "TU":
                tracing = byte == "T"
        if not said:
            break
    qmp = socket.socket(fileno=spec["qmp"])
    qmp.settimeout(_ANSWER)
    with suppress(OSError, ValueError):
        if tracing and spec["gdb"]:
            clear_breakpoints(spec["gdb"])
        if should_run and ask(qmp, "query-status")["status"] in ("paused", "debug"):
            ask(qmp, "cont")


def ask(qmp: socket.socket, command: str) -> dict[str, Any]:
    """What QMP returns; events and the answers to our parent's last words are passed over."""
    name = f"kmi-keeper-{command}"
    qmp.sendall(json.dumps({"execute": command, "id": name}).encode() + b"\n")
    deadline, buffer = time.monotonic() + _ANSWER, b""
    while time.monotonic() < deadline:
        data = qmp.recv(1 << 16)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            with suppress(ValueError):  # the rest of a line that our parent had begun to read
                answer = json.loads(line)
                if answer.get("id") == name:
                    return dict(answer["return"])
    raise OSError("QEMU does not answer")


def clear_breakpoints(address: str | list[Any]) -> None:
    """Coming as a client anew; `?` makes QEMU's stub forget the breakpoints of the one before (gdbstub.c)."""
    if isinstance(address, str):
        stub = socket.socket(socket.AF_UNIX)
        stub.connect(address)
    else:
        stub = socket.create_connection((address[0], address[1]), _ANSWER)
    with stub:
        stub.settimeout(_ANSWER)
        stub.sendall(b"$?#3f")
        heard = b""
        while b"$T05" not in heard and b"$S05" not in heard:
            data = stub.recv(4096)
            if not data:
                return
            heard += data


if __name__ == "__main__":
    main()
