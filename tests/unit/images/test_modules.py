"""Modules of our own, built by a kbuild that is a few lines of make; no network, no headers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.errors import ImageError, SetupError, UsageError
from inspector.images import KernelFiles, build_module, module_names, modules, parameters
from inspector.images.manifest import source_dir

# As kbuild does, it compiles in the folder M with the compiler that it is told.
KBUILD = """\
modules:
	@test -z "$(KCFLAGS)" && cd $(M) && $(CC) -g -c toy.c -o toy.ko
"""
TOY = """\
#include "toy.h"
const char parameter[] __attribute__((section(".modinfo"), used)) = "parmtype=answer:uint";
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[str], None]) -> Path:
    """A folder qemu_images/ with the one module `toy`, and headers that build it."""
    for tool in ("make", "gcc", "strip", "pahole"):
        need(tool)
    folder = tmp_path / "qemu_images" / "modules" / "toy"
    folder.mkdir(parents=True)
    (folder / "Kbuild").write_text("obj-m := toy.o\n")
    (folder / "toy.c").write_text(TOY)
    (folder / "toy.h").write_text("")
    tree = tmp_path / "headers"
    tree.mkdir()
    (tree / "Makefile").write_text(KBUILD)
    monkeypatch.setattr(modules, "source_dir", lambda: tmp_path / "qemu_images")
    monkeypatch.setattr(modules, "fetch_headers", lambda kernel, reporter: tree)
    return folder


def kernel_with(config: Path | None = None, version: str = "6.1.9-1") -> KernelFiles:
    """A kernel; only what it is called counts."""
    return KernelFiles("debian-6.1", "6.1.0-9-amd64", version, Path("/none"), None, config)


KERNEL = kernel_with()


def test_our_own_have_what_they_need() -> None:
    names = module_names()
    assert "lender" in names
    for name in names:
        sources = list((source_dir() / "modules" / name).glob("*.c"))
        assert sources
        for source in sources:
            text = source.read_text()
            assert text.startswith("// SPDX-License-Identifier: "), source
            assert "LINUX_VERSION_CODE" not in text, f"{source} asks for a version: ask the headers"


def test_built_without_debug_information(sources: Path) -> None:
    built = build_module(KERNEL, "toy")
    assert built.name == "toy.ko"
    assert (built.parent / "build.log").is_file()
    sections = subprocess.run(["readelf", "-SW", built], capture_output=True, text=True, check=True).stdout
    assert ".modinfo" in sections
    assert ".debug_info" not in sections


def test_parameters(sources: Path) -> None:
    assert parameters(build_module(KERNEL, "toy")) == ["answer"]


def test_a_folder_of_the_users(sources: Path, tmp_path: Path) -> None:
    folder = sources.rename(tmp_path / "anywhere")
    assert build_module(KERNEL, folder).name == "toy.ko"
    for text, words in (("", "0 times"), ("obj-m := a.o\nobj-m += b.o\n", "2 times")):
        (folder / "Kbuild").write_text(text)
        with pytest.raises(UsageError, match=words):
            build_module(KERNEL, folder)
    with pytest.raises(UsageError, match="no Kbuild"):
        build_module(KERNEL, tmp_path)


def test_built_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_module(KERNEL, "toy")
    monkeypatch.setattr(modules, "fetch_headers", lambda *_: pytest.fail("a built module needs no headers"))
    assert build_module(KERNEL, "toy") == first


@pytest.mark.parametrize("file", ["toy.c", "toy.h", "Kbuild"])
def test_built_anew_when_a_source_changes(sources: Path, file: str) -> None:
    first = build_module(KERNEL, "toy")
    with (sources / file).open("a") as source:
        source.write("\n")
    assert build_module(KERNEL, "toy") != first


def test_each_kernel_has_its_own(sources: Path) -> None:
    assert build_module(KERNEL, "toy") != build_module(kernel_with(version="6.1.9-2"), "toy")


def test_what_lies_beside_the_sources_is_nothing_to_us(sources: Path) -> None:
    first = build_module(KERNEL, "toy")
    (sources / "toy.o").write_text("a kbuild of the user's own ran here")
    assert build_module(KERNEL, "toy") == first


def test_an_outer_make_and_a_persons_shell_change_nothing(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("KCFLAGS", "-O9")
    assert build_module(KERNEL, "toy").is_file()


def test_the_compilers_first_error_in_one_line(sources: Path, cache: Path) -> None:
    (sources / "toy.c").write_text("int one = undeclared_1;\nint two = undeclared_2;\n")
    with pytest.raises(ImageError) as caught:
        build_module(KERNEL, "toy")
    assert str(caught.value).startswith("the module toy cannot be built: toy.c:1:11: error: ")
    assert "undeclared_1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.ko"))
    assert not list(cache.rglob("*.partial"))


def test_no_such_module(sources: Path) -> None:
    with pytest.raises(UsageError, match="no module named 'nope'; known are toy"):
        build_module(KERNEL, "nope")


@pytest.mark.parametrize(
    ("tool", "package"),
    [("make", "make"), ("strip", "binutils"), ("pahole", "pahole"), ("gcc", "gcc")],
)
def test_a_tool_that_is_missing(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else found(name))
    with pytest.raises(SetupError, match=f"{tool} is missing.*apt-get install {package}$"):
        build_module(KERNEL, "toy")


@pytest.mark.parametrize(
    ("text", "installed", "expected"),
    [
        ("gcc-12 (Debian 12.2.0-14) 12.2.0", {"gcc-12"}, "gcc-12"),
        ("x86_64-linux-gnu-gcc-13 (Debian 13.2.0-1) 13.2.0", {"gcc-13"}, "gcc-13"),
        ("gcc-10 (Debian 10.2.1-6) 10.2.1", set(), "gcc"),
        ("clang version 18.1.8", set(), "gcc"),
    ],
)
def test_the_compiler_that_built_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, installed: set[str], expected: str
) -> None:
    config = tmp_path / "config"
    config.write_text(f'CONFIG_X86=y\nCONFIG_CC_VERSION_TEXT="{text}"\n')
    present = {"gcc", "make", "strip", "pahole"} | installed
    monkeypatch.setattr(shutil, "which", lambda name: name if name in present else None)
    assert modules._compiler(kernel_with(config)) == expected


def test_old_ones_go(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_KEPT", 1)
    first = build_module(KERNEL, "toy")
    second = build_module(kernel_with(version="6.1.9-2"), "toy")
    assert (first.exists(), second.exists()) == (False, True)
