"""The guest's initramfs: what goes in, when it is built anew, and the small programs."""

from __future__ import annotations

import lzma
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from inspector.errors import ImageError, SetupError
from inspector.images import KernelFiles, guest_image
from inspector.images.manifest import source_dir

module = import_module("inspector.images.guest_image")  # the package has a function of that name
PROGRAMS = sorted(path.stem for path in (source_dir() / "programs").glob("*.c"))


@pytest.fixture
def host(need: Callable[[str], None]) -> None:
    """What building an image needs."""
    need("busybox")
    need("gcc")


def ko(depends: str) -> bytes:
    """The part of a module that counts: strings of .modinfo, each ended by a zero byte."""
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0..."


@pytest.fixture
def kernel(tmp_path: Path) -> KernelFiles:
    """A kernel whose zram needs zsmalloc, which needs a module with a dash in its name, compressed."""
    modules = tmp_path / "modules"
    files = {
        "drivers/firmware/qemu_fw_cfg.ko": ko(""),
        "drivers/block/zram/zram.ko": ko("zsmalloc,built-in"),
        "mm/zsmalloc.ko.xz": lzma.compress(ko("deep-er")),
        "lib/deep-er.ko": ko("zsmalloc"),
    }
    for name, data in files.items():
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_bytes(data)
    return KernelFiles("k", "6.1.0-9-amd64", "1", tmp_path / "vmlinuz", modules, None)


def unpacked(image: Path, tmp_path: Path) -> Path:
    """The image's files, by another cpio."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    # A device node needs root: without it all the rest still comes out.
    subprocess.run(
        ["busybox", "cpio", "-id"], input=image.read_bytes(), cwd=folder, check=False, capture_output=True
    )
    return folder


def test_contents(host: None, tmp_path: Path, kernel: KernelFiles) -> None:
    extra = tmp_path / "extra"
    extra.write_text("#!/bin/sh\n")
    extra.chmod(0o755)
    root = unpacked(guest_image(kernel, extra={"/opt/deep/tool": extra}), tmp_path)
    assert (root / "init").read_text() == (source_dir() / "init").read_text()
    for program in [
        "init",
        "bin/agent",
        "bin/busybox",
        "opt/deep/tool",
        *(f"labs/{name}" for name in PROGRAMS),
    ]:
        assert (root / program).stat().st_mode & 0o111, program
    assert (root / "bin" / "sh").readlink() == Path("busybox")
    # Each module after those that it needs; the two that need each other still end.
    order = (root / "modules.list").read_text().split()
    assert order == [
        "/modules/qemu_fw_cfg.ko",
        "/modules/deep_er.ko",
        "/modules/zsmalloc.ko",
        "/modules/zram.ko",
    ]
    assert (root / "modules" / "zsmalloc.ko").read_bytes() == ko("deep-er")


def test_a_second_call_builds_nothing(
    host: None, kernel: KernelFiles, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    first = guest_image(kernel)
    monkeypatch.setattr(module, "_contents", lambda *_: pytest.fail("built again"))
    assert guest_image(kernel) == first
    assert [path.name for path in (cache / "guests").iterdir() if path.suffix != ".lock"] == [first.name]


def test_other_inputs_give_another_image(
    host: None, tmp_path: Path, kernel: KernelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_contents", lambda *_: [])
    extra = tmp_path / "extra"
    extra.write_text("one")
    images = {guest_image(), guest_image(kernel), guest_image(kernel, extra={"/x": extra})}
    images.add(guest_image(kernel, extra={"/y": extra}))
    extra.write_text("two")
    images.add(guest_image(kernel, extra={"/x": extra}))
    extra.chmod(0o755)
    images.add(guest_image(kernel, extra={"/x": extra}))
    assert len(images) == 6


def test_old_images_are_dropped(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(module, "_contents", lambda *_: [])
    extra = tmp_path / "extra"
    made = []
    for number in range(26):
        extra.write_text(str(number))
        made.append(guest_image(extra={"/x": extra}))
    assert set((cache / "guests").glob("*.cpio")) == set(made[-24:])


def test_a_program_that_does_not_compile(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(module, "_COMPILE", ("gcc", "-static", "-Dmain=@"))
    with pytest.raises(ImageError, match=r"\.c cannot be compiled: .*error") as caught:
        guest_image()
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.partial"))
    assert not list(cache.rglob("*.cpio"))


def test_what_the_host_lacks(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSYBOX", tmp_path / "busybox")
    with pytest.raises(SetupError, match="apt-get install busybox-static"):
        guest_image()
    (tmp_path / "busybox").write_bytes(b"\x7fELF" + bytes(700) + b"/lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(SetupError, match="not static: apt-get install busybox-static"):
        guest_image()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_COMPILE", ("no-such-compiler",))
    with pytest.raises(SetupError, match="apt-get install gcc libc6-dev"):
        guest_image()


@pytest.mark.parametrize(("place", "why"), [("relative", "not an absolute path"), ("/x", "No such file")])
def test_bad_extra_files(host: None, tmp_path: Path, place: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        guest_image(extra={place: tmp_path / "none"})


@pytest.mark.parametrize("name", PROGRAMS)
def test_lab_programs(host: None, tmp_path: Path, name: str) -> None:
    """They compile without a warning, explain themselves, and refuse nonsense."""
    source = source_dir() / "programs" / f"{name}.c"
    binary = tmp_path / name
    strict = ["-Os", "-static", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *strict, "-o", binary, source], check=True)
    told = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"usage: {name}")
    assert "example:" in told.stdout
    nonsense = subprocess.run([binary, "nonsense"], capture_output=True, text=True, check=False, timeout=10)
    assert nonsense.returncode in (1, 2)
    assert name in nonsense.stderr or "nonsense" in nonsense.stderr
