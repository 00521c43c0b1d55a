"""`kmi save`, and what is asked of its file by --image."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from inspector import Guest

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("format_", ["elf", "kdump"])
def test_an_image_reports_what_the_guest_reports(
    host: Any, served: str, guest: Guest, tmp_path: Path, format_: str
) -> None:
    """Saved by another process than the one that holds the guest, which stands still for the test."""
    path = tmp_path / "lab.vmcore"
    with guest.paused():
        said = host.run("save", "--guest", served, str(path), "--format", format_)
        live = json.loads(host.run("report", "--guest", served, "--json").stdout)
        image = json.loads(host.run("report", "--image", str(path), "--json").stdout)
        walks = [
            host.run("walk", *where, "1", "[stack]").stdout
            for where in (("--guest", served), ("--image", str(path)))
        ]
    assert said.stdout.startswith(f"{path}: ")
    for part in ("zones", "free_blocks", "frames", "owners", "tasks", "page_size_bytes"):
        assert image[part] == live[part], part
    for cpu, other in zip(image["cpus"], live["cpus"], strict=True):
        assert cpu | {"halted": None} == other | {"halted": None}  # no note tells that
    assert image["guest"]["running"] is False
    assert walks[0] == walks[1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_saved_is_told_before_a_boot(host: Any, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"mine")
    for arguments, message in (
        ((str(there),), "is there already"),
        ((str(tmp_path),), "is a folder"),
        ((str(tmp_path / "nowhere" / "x"),), "there is no folder"),
    ):
        done = host.run("save", *arguments, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    assert there.read_bytes() == b"mine"


def test_an_image_goes_with_no_guest(host: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"no image")
    for arguments, message in (
        (("--image", str(file)), "no memory image"),
        (("--image", str(file), "--memory", "1G"), "leave out --memory"),
        (("--image", str(file), "--guest", "x", "--spawn", "y"), "leave out --guest, --spawn"),
    ):
        done = host.run("report", *arguments, check=False)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]


def test_an_end_in_the_middle_leaves_nothing(host: Any, served: str, tmp_path: Path) -> None:
    """SIGINT once the file has begun; where it was done before that, it is whole."""
    folder = tmp_path / "images"
    folder.mkdir()
    process = host.start(
        "save", "--guest", served, str(folder / "image"), "--format", "kdump", "--level", "9"
    )
    host.wait_for(lambda: any(folder.iterdir()) or process.poll() is not None, "the file")
    process.send_signal(signal.SIGINT)
    process.wait(60)
    left = [path.name for path in folder.iterdir()]
    assert (process.returncode, left) in ((130, []), (0, ["image"])), host.log()
    assert "Traceback" not in host.log()
