"""The cache folder: whole entries, one builder at a time, a clear line when the disk is full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.errors import ImageError
from inspector.images.cache import cache_dir, file_size, install, locked, require_space, scratch
from inspector.progress import SILENT, Progress, Silent


def test_cache_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/kmi")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/kmi")


@pytest.mark.parametrize("accident", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_an_accident(cache: Path, accident: type[BaseException]) -> None:
    target = cache / "thing"

    def build() -> None:
        with locked(target, SILENT), scratch(target) as folder:
            (folder / "half").write_text("half")
            raise accident

    with pytest.raises(accident):
        build()
    assert [path.name for path in cache.iterdir()] == [".thing.lock"]


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    target = cache / "thing"
    (cache / ".thing.partial" / "old").mkdir(parents=True)
    with locked(target, SILENT), scratch(target) as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").write_text("whole")
        install(folder / "new", target)
    assert target.read_text() == "whole"


def test_install_replaces_a_folder(cache: Path) -> None:
    target = cache / "thing"
    (target / "old").mkdir(parents=True)
    made = cache / "made"
    (made / "new").mkdir(parents=True)
    assert [path.name for path in install(made, target).iterdir()] == ["new"]


def test_the_second_waits_for_the_first_and_says_so(cache: Path) -> None:
    target = cache / "thing"
    waits = threading.Event()

    class Watcher(Silent):
        @contextmanager
        def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
            assert "another kmi" in title
            waits.set()
            with super().task(title) as progress:
                yield progress

    order = []

    def second() -> None:
        with locked(target, Watcher()):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(target, SILENT):
        thread.start()
        assert waits.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_too_little_space_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        require_space(tmp_path, 1 << 60)
    text = str(caught.value)
    assert "\n" not in text
    for part in (str(cache_dir()), "1048576 TiB needed", "XDG_CACHE_HOME"):
        assert part in text


def test_a_full_disk_in_the_middle_is_one_line(cache: Path) -> None:
    with (
        pytest.raises(ImageError, match="no space left for the cache") as caught,
        locked(cache / "x", SILENT),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(caught.value)


def test_other_errors_of_the_system_pass(cache: Path) -> None:
    with pytest.raises(ConnectionResetError), locked(cache / "x", SILENT):
        raise ConnectionResetError


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ImageError, match="set XDG_CACHE_HOME"), locked(cache_dir() / "a" / "b", SILENT):
        pass


def test_file_size(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "one").write_bytes(b"x" * 10)
    (tmp_path / "two").write_bytes(b"x" * 5)
    assert (file_size(tmp_path), file_size(tmp_path / "two"), file_size(tmp_path / "none")) == (15, 5, 0)


_FILL = """
from inspector.errors import ImageError
from inspector.images.cache import cache_dir, file_size, install, locked, scratch
from inspector.progress import SILENT
target = cache_dir() / "thing"
try:
    with locked(target, SILENT), scratch(target) as folder:
        (folder / "big").write_bytes(bytes(1 << 20))
        install(folder / "big", target)
except ImageError as error:
    print(error)
print(file_size(target.parent))
"""


def test_a_disk_that_is_really_full(tmp_path: Path, need: Callable[[str], None]) -> None:
    need("unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=256k full "{disk}" && "{sys.executable}" -; umount "{disk}"'
    # Root may mount without a namespace, and must where a chroot forbids namespaces.
    namespace = ["unshare", "--map-root-user", "--mount"] if os.geteuid() else []
    command = [*namespace, "sh", "-c", script]
    environment = {**os.environ, "XDG_CACHE_HOME": str(disk)}
    result = subprocess.run(
        command, input=_FILL, capture_output=True, text=True, check=False, env=environment
    )
    if "unshare:" in result.stderr or "mount:" in result.stderr:
        pytest.skip("mounting a small disk is not allowed here: " + result.stderr.strip())
    message, left = result.stdout.splitlines()
    assert "no space left for the cache in" in message
    assert str(disk) in message
    assert left == "0"
