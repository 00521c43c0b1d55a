"""What is taken for a kernel, and what is refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from inspector.errors import ImageError
from inspector.images.kernel_file import check
from inspector.images.kernels import fetch_kernel, own_kernel


def elf(kind: int = 2, machine: int = 62, wide: bool = True) -> bytes:
    """An ELF header, one program header, one section header."""
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    size, ph, sh = (64, 56, 64) if wide else (52, 32, 40)
    rest = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        kind, machine, 1, 0x1000, size, size + ph, 0, size, ph, 1, sh, 1, 0,
    )  # fmt: skip
    return ident + rest + bytes(ph + sh)


def put(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    return path


def test_a_bzimage_tells_its_release(tmp_path: Path, bzimage: bytes) -> None:
    assert check(put(tmp_path, bzimage)) == "6.1.0-1-test"


def test_a_signed_bzimage_is_longer_than_its_header_says(tmp_path: Path, bzimage: bytes) -> None:
    assert check(put(tmp_path, bzimage + b"signature")) == "6.1.0-1-test"


@pytest.mark.parametrize(("machine", "wide"), [(62, True), (3, False)])
def test_a_vmlinux(tmp_path: Path, machine: int, wide: bool) -> None:
    assert check(put(tmp_path, elf(machine=machine, wide=wide))) == ""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither a bzImage nor an ELF"),
        (b"#!/bin/sh\n" * 200, "neither a bzImage nor an ELF"),
        (elf()[:-1], "cut short"),
        (elf()[:20], "broken"),
        (elf(kind=3), "no executable"),
        (elf(machine=8), "no executable"),
    ],
)
def test_refused(tmp_path: Path, data: bytes, why: str) -> None:
    path = put(tmp_path, data)
    with pytest.raises(ImageError, match=why) as caught:
        check(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0x300, 0x600, -1])
def test_a_bzimage_cut_short(tmp_path: Path, bzimage: bytes, size: int) -> None:
    with pytest.raises(ImageError, match="cut short"):
        check(put(tmp_path, bzimage[:size]))


def test_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        check(tmp_path / "none")
    with pytest.raises(ImageError, match="Is a directory"):
        check(tmp_path)


def test_a_path_is_taken_for_the_users_own_kernel(tmp_path: Path, bzimage: bytes) -> None:
    path = put(tmp_path, bzimage)
    kernel = fetch_kernel(str(path))
    assert kernel == own_kernel(path)
    assert (kernel.bzimage, kernel.release, kernel.modules_dir) == (path, "6.1.0-1-test", None)
