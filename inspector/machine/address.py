"""Where a socket of somebody else's QEMU listens, written as its own options have it, or plainly."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from inspector.errors import UsageError

Address = Path | str
"""A Unix socket's path, or `HOST:PORT`."""

_PORT = re.compile(r"^(?:tcp:)?([^/]*):(\d+)$")


def parse_address(text: Path | str) -> Address:
    """`PATH`, `HOST:PORT`, `:PORT`, or what QEMU's option says: `unix:PATH,server=on,wait=off`.

    Raises UsageError.
    """
    if isinstance(text, Path):
        return text
    plain = re.split(r",(?:server|wait|nowait|ipv4|ipv6|nodelay|telnet)\b", text)[0]
    if found := _PORT.match(plain):
        return f"{found[1] or 'localhost'}:{found[2]}"
    path = plain.removeprefix("unix:")
    if not path:
        raise UsageError(f"no socket: {text!r}; give a path, or HOST:PORT")
    return Path(path)


def dial(address: Address, timeout: float) -> socket.socket:
    """A connection, with this time-out in seconds. Raises OSError."""
    if isinstance(address, str):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        connected.connect(str(address))
    except BaseException:
        connected.close()
        raise
    return connected
