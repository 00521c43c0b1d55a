"""The initramfs format, read back by another cpio."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.images.cpio import device, directory, file, link, write_cpio


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    target = tmp_path / "cpio"
    entries = [
        directory("/etc"),
        file("/etc/odd length", b"12345"),
        file("/init", b"#!/bin/sh\n", executable=True),
        link("/sh", "busybox"),
        device("/console", 5, 1),
        file("/empty", b""),
    ]
    write_cpio(target, entries)
    return target


def test_cpio_lists_it(archive: Path, need: Callable[[str], None]) -> None:
    need("busybox")
    listed = subprocess.run(
        ["busybox", "cpio", "-itv"], input=archive.read_bytes(), capture_output=True, check=True
    ).stdout.decode()
    lines = [line.split(maxsplit=5) for line in listed.splitlines()]
    assert [(line[0], line[1], line[2], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "0/0", "0", "etc"),
        ("-rw-r--r--", "0/0", "5", "etc/odd length"),
        ("-rwxr-xr-x", "0/0", "10", "init"),
        ("lrwxrwxrwx", "0/0", "0", "sh -> busybox"),
        ("crw-------", "0/0", "0", "console"),
        ("-rw-r--r--", "0/0", "0", "empty"),
    ]


def test_cpio_unpacks_it(archive: Path, tmp_path: Path, need: Callable[[str], None]) -> None:
    need("busybox")
    members = ["etc/odd length", "init", "empty"]
    subprocess.run(["busybox", "cpio", "-id", *members], input=archive.read_bytes(), cwd=tmp_path, check=True)
    assert (tmp_path / "etc" / "odd length").read_bytes() == b"12345"
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "empty").read_bytes() == b""
