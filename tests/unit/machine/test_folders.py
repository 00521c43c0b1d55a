"""Private folders: whose they are, and how dead ones go."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import SetupError
from inspector.machine.folders import new_folder, runtime_dir


@pytest.fixture
def xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # pytest's own folder may be too long for a socket's path
    short = Path(os.path.relpath(tmp_path, "/"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(Path("/") / short))
    return tmp_path


def test_in_the_runtime_folder_and_ours_alone(xdg: Path) -> None:
    path = runtime_dir()
    assert path in (xdg / "kmi", Path(f"/tmp/kmi-{os.getuid()}"))
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_long_path_falls_back_to_one_that_a_socket_can_have(
    monkeypatch: pytest.MonkeyPatch, xdg: Path
) -> None:
    long = xdg / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert runtime_dir() == Path(f"/tmp/kmi-{os.getuid()}")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder that is short and nobody else's."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as holder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", holder)
        yield Path(holder) / "kmi"


def test_a_folder_open_to_others_is_refused(base: Path) -> None:
    base.mkdir(mode=0o755)
    base.chmod(0o755)
    with pytest.raises(SetupError, match="only you may enter"):
        runtime_dir()


def test_a_link_in_its_place_is_refused(base: Path, tmp_path: Path) -> None:
    base.symlink_to(tmp_path)
    with pytest.raises(SetupError, match="only you may enter"):
        runtime_dir()


def test_a_folder_is_swept_once_nobody_holds_it(base: Path) -> None:
    first, first_fd = new_folder()
    assert first.parent == base
    assert first.stat().st_mode & 0o777 == 0o700
    (first / "gdb").touch()
    second, second_fd = new_folder()
    assert first.exists(), "it is held"
    os.close(first_fd)
    third, third_fd = new_folder()
    assert not first.exists()
    assert second.exists()
    for fd in (second_fd, third_fd):
        os.close(fd)
    assert third.exists()


def test_a_child_that_inherited_the_lock_holds_the_folder(base: Path) -> None:
    folder, fd = new_folder()
    inherited = os.dup(fd)  # the same open file description, as over a fork (flock(2))
    os.close(fd)
    _, other = new_folder()
    assert folder.exists()
    fcntl.flock(inherited, fcntl.LOCK_UN)
    os.close(inherited)
    os.close(other)
