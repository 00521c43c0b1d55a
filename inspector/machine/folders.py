"""Private folders for sockets: one for a user; in it one for each machine, which goes with the machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inspector.errors import SetupError

_PREFIX = "m-"
_LONGEST = 55
"""Leaves room for a name below it: a Unix socket's path must stay below 108 bytes (unix(7))."""


def runtime_dir() -> Path:
    """The user's folder for sockets: $XDG_RUNTIME_DIR/kmi, or kmi-UID in the folder for temporary files.

    Its mode is 0700. Raises SetupError where it is not ours alone.
    """
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    path = (
        Path(xdg) / "kmi"
        if xdg and os.access(xdg, os.W_OK)
        else Path(tempfile.gettempdir()) / f"kmi-{os.getuid()}"
    )
    if len(os.fsencode(path)) > _LONGEST:
        path = Path(f"/tmp/kmi-{os.getuid()}")
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise SetupError(f"cannot make the folder for sockets, {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SetupError(
            f"{path} must be a folder that only you may enter: remove it or mend its owner and mode"
        )
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: other processes' `locked` and `new_folder` wait."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def new_folder() -> tuple[Path, int]:
    """A private folder for one machine, and the descriptor that marks it as used while anyone holds it."""
    base = runtime_dir()
    with locked(base):
        sweep(base)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, fd


def machine_folders(base: Path) -> list[Path]:
    """The machines' folders below the user's."""
    return sorted(base.glob(_PREFIX + "*"))


def sweep(base: Path) -> None:
    """Remove the folders that nobody holds any more: their machine and its supervisor were both killed.

    The caller holds the lock of `base`.
    """
    for folder in machine_folders(base):
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)
