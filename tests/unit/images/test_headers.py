"""A kernel's headers out of packages made here, by an apt that is none; no network."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.errors import ImageError
from inspector.images import KernelFiles, fetch_headers, headers
from inspector.images.apt import Package
from inspector.progress import Reporter

RELEASE = "6.1.0-9-amd64"
VERSION = "6.1.9-1"
HEADERS, COMMON, KBUILD = f"linux-headers-{RELEASE}", "linux-headers-6.1.0-9-common", "linux-kbuild-6.1"
COMPILER = "linux-compiler-gcc-12-x86"
SOURCE = "usr/src"


class FakeApt:
    """Packages in a folder, a subfolder each, whose contents are packed when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []

    @contextmanager
    def updated(self, reporter: Reporter) -> Iterator[FakeApt]:
        yield self

    def show(self, name: str, version: str | None = None) -> Package:
        if not (self.root / name).is_dir() or version not in (None, VERSION):
            raise ImageError(f"no package {name}={version} in bookworm of this machine's mirror")
        depends = (COMMON, KBUILD, COMPILER) if name == HEADERS else ()
        return Package(name, VERSION, depends, 1000, 1000)

    def download(self, package: Package, folder: Path, reporter: Reporter) -> Path:
        self.fetched.append(package.name)
        deb = folder / f"{package.name}_{package.version}_amd64.deb"
        tree = self.root / package.name
        command = ["dpkg-deb", "-b", "--root-owner-group", str(tree), str(deb)]
        subprocess.run(command, check=True, capture_output=True)
        return deb

    def publish(self, name: str, files: dict[str, str | Path]) -> None:
        """Make a package: a text is a file's, a path where a link points."""
        control = self.root / name / "DEBIAN" / "control"
        control.parent.mkdir(parents=True)
        control.write_text(
            f"Package: {name}\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: a <a@b>\nDescription: x\n"
        )
        for path, content in files.items():
            place = self.root / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                place.symlink_to(content)
            else:
                place.write_text(content)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[str], None]) -> FakeApt:
    """Debian's split: a build folder that leads to the common headers and to the tools."""
    need("dpkg-deb")
    made = FakeApt(tmp_path / "packages")
    monkeypatch.setattr(headers, "Apt", lambda suites, expired: made)
    made.publish(
        HEADERS,
        {
            f"{SOURCE}/{HEADERS}/Makefile": f"include /usr/src/{COMMON}/Makefile\n",
            f"{SOURCE}/{HEADERS}/scripts": Path(f"../../lib/{KBUILD}/scripts"),
            f"{SOURCE}/{HEADERS}/Module.symvers": "",
        },
    )
    made.publish(COMMON, {f"{SOURCE}/{COMMON}/Makefile": "modules:\n\t@scripts/modpost\n"})
    made.publish(KBUILD, {f"usr/lib/{KBUILD}/scripts/modpost": "#!/bin/sh\necho kbuild runs\n"})
    (made.root / KBUILD / f"usr/lib/{KBUILD}/scripts/modpost").chmod(0o755)
    made.publish(COMPILER, {"usr/share/doc/compiler": "not wanted"})
    return made


@pytest.fixture
def kernel(tmp_path: Path, bzimage: bytes) -> KernelFiles:
    """A kernel whose payload is packed with something else than xz."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage)
    return KernelFiles("debian-6.1", RELEASE, VERSION, path, None, None)


def test_fetched_and_whole(
    apt: FakeApt, kernel: KernelFiles, cache: Path, need: Callable[[str], None]
) -> None:
    need("make")
    tree = fetch_headers(kernel)
    assert apt.fetched == [HEADERS, COMMON, KBUILD]
    made = subprocess.run(["make", "-C", tree, "modules"], capture_output=True, text=True, check=True)
    assert "kbuild runs" in made.stdout
    assert not list(cache.rglob("*.deb"))
    assert not list(cache.rglob("*.partial"))


def test_the_packages_modes_and_links_stay(apt: FakeApt, kernel: KernelFiles) -> None:
    tree = fetch_headers(kernel)
    assert (tree / "scripts").is_symlink()
    assert os.access(tree / "scripts" / "modpost", os.X_OK)


def test_a_moved_cache_still_builds(
    apt: FakeApt, kernel: KernelFiles, cache: Path, tmp_path: Path, need: Callable[[str], None]
) -> None:
    need("make")
    tree = fetch_headers(kernel).relative_to(cache)
    shutil.move(cache, tmp_path / "elsewhere")
    subprocess.run(["make", "-C", tmp_path / "elsewhere" / tree, "modules"], capture_output=True, check=True)


def test_in_the_cache_they_need_nothing(apt: FakeApt, kernel: KernelFiles) -> None:
    first = fetch_headers(kernel)
    shutil.rmtree(apt.root)
    assert fetch_headers(kernel) == first


def with_payload(bzimage: bytes, payload: bytes) -> bytes:
    """A bzImage with that for its compressed kernel (boot.rst: payload_offset, payload_length)."""
    setup = bytearray(bzimage[: 3 * 512])
    setup[0x248:0x250] = struct.pack("<II", 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def test_the_kernels_btf_out_of_its_bzimage(
    apt: FakeApt, kernel: KernelFiles, bzimage: bytes, tmp_path: Path, need: Callable[[str], None]
) -> None:
    for tool in ("gcc", "objcopy", "readelf"):
        need(tool)
    source, elf = tmp_path / "kernel.c", tmp_path / "kernel.elf"
    source.write_text(
        '__attribute__((section(".BTF"), used)) static const char btf[] = "types";\nint main;\n'
    )
    subprocess.run(["gcc", "-c", source, "-o", elf], check=True)
    packed = lzma.compress(elf.read_bytes(), check=lzma.CHECK_CRC32) + struct.pack("<I", elf.stat().st_size)
    kernel.bzimage.write_bytes(with_payload(bzimage, packed))
    found = fetch_headers(kernel) / "vmlinux"
    dumped = tmp_path / "btf"
    subprocess.run(["objcopy", "--dump-section", f".BTF={dumped}", found, tmp_path / "copy"], check=True)
    assert dumped.read_bytes() == b"types\0"


def test_a_bzimage_that_is_packed_otherwise(apt: FakeApt, kernel: KernelFiles) -> None:
    assert not (fetch_headers(kernel) / "vmlinux").exists()


def test_the_packages_own_vmlinux_is_taken(apt: FakeApt, kernel: KernelFiles) -> None:
    (apt.root / HEADERS / SOURCE / HEADERS / "vmlinux").write_text("theirs")
    kernel.bzimage.unlink()
    assert (fetch_headers(kernel) / "vmlinux").read_text() == "theirs"


def test_a_damaged_bzimage(
    apt: FakeApt, kernel: KernelFiles, bzimage: bytes, cache: Path, need: Callable[[str], None]
) -> None:
    need("objcopy")
    packed = lzma.compress(b"\x7fELF" * 1000)
    kernel.bzimage.write_bytes(with_payload(bzimage, packed[:-40] + bytes(40)))
    with pytest.raises(ImageError, match="vmlinuz") as caught:
        fetch_headers(kernel)
    assert "\n" not in str(caught.value)
    assert not (cache / "headers" / f"{RELEASE}_{VERSION}").exists()


def test_headers_of_another_version_only(apt: FakeApt, kernel: KernelFiles) -> None:
    older = KernelFiles(kernel.name, RELEASE, "6.1.8-1", kernel.bzimage, None, None)
    with pytest.raises(ImageError, match=r"6\.1\.8-1.*delete .*debian-6\.1 "):
        fetch_headers(older)


def test_packages_that_are_no_headers(apt: FakeApt, kernel: KernelFiles) -> None:
    (apt.root / HEADERS / SOURCE / HEADERS / "Makefile").unlink()
    with pytest.raises(ImageError, match="hold no Makefile"):
        fetch_headers(kernel)


def test_a_users_own_kernel_has_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="without headers"):
        fetch_headers(KernelFiles("/own/bzImage", RELEASE, "", tmp_path, None, None))
