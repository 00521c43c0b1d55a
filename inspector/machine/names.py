"""The guests that this user's processes hold open, by name: a Unix socket each, in their private folders.

There the supervisor removes it with the rest when its holder dies, however that comes about.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

from inspector.errors import UsageError
from inspector.machine.folders import locked, machine_folders, runtime_dir, sweep

_SUFFIX = ".sock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")


def check_name(name: str) -> None:
    """Raises UsageError where it cannot name a guest."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a guest's name: {name!r}; take letters, digits, `-`, `_` and `.`, at most 31")


def open_guests() -> dict[str, Path]:
    """The sockets of the guests held open, by name. Removes what the dead left. Raises SetupError."""
    base = runtime_dir()
    with locked(base):
        sweep(base)
        return _listening(base)


def list_guests() -> list[str]:
    """The names of the guests held open, sorted. Raises SetupError."""
    return sorted(open_guests())


def check_free(name: str) -> None:
    """Raises UsageError where the name is no name, or a guest of that name is open."""
    check_name(name)
    if name in open_guests():
        raise _taken(name)


def listen(folder: Path, name: str) -> tuple[socket.socket, Path]:
    """A socket that listens for the guest of that name, in its folder. Raises like `check_free`."""
    check_name(name)
    base = runtime_dir()
    path = folder / (name + _SUFFIX)
    with locked(base):
        if name in _listening(base):
            raise _taken(name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(16)
    return listener, path


def _taken(name: str) -> UsageError:
    return UsageError(f"a guest named {name!r} is already open: take another name, or close that one")


def _listening(base: Path) -> dict[str, Path]:
    found = {}
    for folder in machine_folders(base):
        for path in folder.glob("*" + _SUFFIX):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    found[path.name.removesuffix(_SUFFIX)] = path
    return found
