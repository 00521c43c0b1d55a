"""The guests that this user's processes hold open, by name: a Unix socket each in a private folder."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from inspector.errors import UsageError
from inspector.machine.folders import locked, runtime_dir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")


def guests_dir() -> Path:
    """The folder of the guests' sockets. Raises SetupError."""
    path = runtime_dir() / "guests"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def socket_path(name: str) -> Path:
    """Where the guest of that name is reached. Raises UsageError where it is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a guest's name: {name!r}; take letters, digits, `-`, `_` and `.`, at most 31")
    return guests_dir() / f"{name}.sock"


def answers(path: Path) -> bool:
    """Whether a process listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def list_guests() -> list[str]:
    """The names of the guests held open, sorted. Removes what dead holders left. Raises SetupError."""
    folder = guests_dir()
    names = []
    with locked(folder):
        for path in sorted(folder.glob("*.sock")):
            if answers(path):
                names.append(path.stem)
            else:
                path.unlink(missing_ok=True)
    return names


def check_free(name: str) -> None:
    """Raises UsageError where the name is no name, or a guest of that name is open."""
    if answers(socket_path(name)):
        raise UsageError(f"a guest named {name!r} is already open: take another name, or close that one")
