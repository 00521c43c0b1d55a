"""The folder under the user's cache: what is in it is whole, built once, and may be deleted at any time."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inspector.errors import ImageError
from inspector.progress import Reporter
from inspector.units import format_size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_PLACE = "set XDG_CACHE_HOME to a folder on another disk"


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/kmi, or ~/.cache/kmi. It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kmi"


@contextmanager
def locked(target: Path, reporter: Reporter) -> Iterator[None]:
    """Be the only process that makes `target`; others wait, so look again for it inside.

    Raises ImageError when the cache is full or cannot be written, here or in the body.
    """
    try:
        # The lock file stays: removing it would let two waiters lock two different files.
        with _lock_file(target) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with reporter.task(f"Waiting for another kmi, which is making {target.name}"):
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(target.parent) from None
        raise


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A folder to make `target` in, for who holds its lock; removed however this ends.

    It lies beside the target, so that a rename suffices; what a killed process left is removed by the next.
    """
    folder = target.parent / f".{target.name}.partial"
    try:
        _remove(folder)
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)


def install(made: Path, target: Path) -> Path:
    """Move a finished file or folder out of the scratch folder into its place; gives the place."""
    if target.is_dir():
        _remove(target)
    return made.replace(target)


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes are free where `folder` is. Raises ImageError."""
    if shutil.disk_usage(folder).free < needed:
        raise full_disk(folder, needed)


def full_disk(folder: Path, needed: int = 0) -> ImageError:
    """The error for a cache that is full: how much is needed, where, how to choose another place."""
    free = format_size(shutil.disk_usage(folder).free)
    wanted = f"{format_size(needed)} needed, {free} free" if needed else f"{free} free"
    return ImageError(
        f"no space left for the cache in {cache_dir()} ({wanted}): make room, or {_OTHER_PLACE}"
    )


def file_size(path: Path) -> int:
    """Bytes in a file, or in all files of a folder; 0 where there is none."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size if path.exists() else 0


def _lock_file(target: Path) -> IO[str]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise ImageError(
            f"cannot write to the cache {cache_dir()}: {error.strerror}; {_OTHER_PLACE}"
        ) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
