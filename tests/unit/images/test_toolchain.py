"""Headers and programs of a newer distribution, on a machine that lacks what they ask for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.errors import ImageError
from inspector.images import toolchain
from inspector.images.apt import Package
from inspector.progress import SILENT, Reporter

SETTINGS = """\
CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=y
CONFIG_CC_HAS_COUNTED_BY=y
CONFIG_CC_HAS_COUNTED_BY_PTR=y
CONFIG_CC_HAS_IBT=y
CONFIG_PAHOLE_VERSION=132
"""
DEFINES = "".join(f"#define {line.replace('=', ' ').replace(' y', ' 1')}\n" for line in SETTINGS.splitlines())


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A headers' folder, configured by a compiler that has it all."""
    folder = tmp_path / "headers"
    for name, text in {"generated/autoconf.h": DEFINES, "config/auto.conf": SETTINGS}.items():
        place = folder / "include" / name
        place.parent.mkdir(parents=True)
        place.write_text(text)
    return folder


def configuration(build: Path) -> tuple[str, str]:
    """What make reads of it, and what C does."""
    include = build / "include"
    return (include / "config/auto.conf").read_text(), (include / "generated/autoconf.h").read_text()


def script(path: Path, text: str) -> Path:
    """A program of the test's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def pahole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pahole of a version of its own, the first on PATH."""
    script(tmp_path / "bin" / "pahole", "echo v1.24")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")


@pytest.mark.usefixtures("pahole")
def test_what_the_compiler_lacks_is_taken_out(build: Path, tmp_path: Path) -> None:
    """One that refuses every option of an alignment, and does not know that attribute."""
    compiler = script(
        tmp_path / "cc", 'case "$*" in *alignment*) exit 1;; esac; ! grep -q "a\\[\\].*counted_by"'
    )
    toolchain.fit_configuration(build, str(compiler))
    settings, defines = configuration(build)
    assert settings == "CONFIG_CC_HAS_COUNTED_BY_PTR=y\nCONFIG_CC_HAS_IBT=y\nCONFIG_PAHOLE_VERSION=124\n"
    assert defines == (
        "#define CONFIG_CC_HAS_COUNTED_BY_PTR 1\n#define CONFIG_CC_HAS_IBT 1\n"
        "#define CONFIG_PAHOLE_VERSION 124\n"
    )


@pytest.mark.usefixtures("pahole")
def test_what_it_has_stays(build: Path) -> None:
    toolchain.fit_configuration(build, "true")
    settings, defines = configuration(build)
    assert settings == SETTINGS.replace("132", "124")
    assert defines == DEFINES.replace("132", "124")


def test_without_a_compiler_nothing_is_said_of_it(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    toolchain.fit_configuration(build, "gcc")
    assert configuration(build) == (SETTINGS, DEFINES)


def test_the_real_compiler_answers(build: Path, tmp_path: Path, need: Callable[[str], None]) -> None:
    """Whatever it has: what stays compiles without a warning, what goes does not."""
    need("gcc")
    toolchain.fit_configuration(build, "gcc")
    stays = "CONFIG_CC_HAS_COUNTED_BY=y" in configuration(build)[0]
    source = tmp_path / "flex.c"
    source.write_text("struct f { int n; int a[] __attribute__((__counted_by__(n))); };\n")
    done = subprocess.run(
        ["gcc", "-Wall", "-c", source, "-o", tmp_path / "flex.o"], capture_output=True, text=True, check=False
    )
    assert stays == (not done.returncode and not done.stderr)


class FakeApt:
    """Packages of libraries, each of which depends on the next."""

    CHAIN = ("libelf1t64", "zlib1g", "libc6", "libgcc-s1")

    def __init__(self, libraries: Path) -> None:
        self.libraries = libraries
        self.fetched: list[str] = []

    def show(self, name: str, version: str | None = None) -> Package:
        after = self.CHAIN[self.CHAIN.index(name) + 1 :][:1]
        return Package(name, "1", (*after, "libc6"), 1000, 1000)

    def download(self, package: Package, folder: Path, reporter: Reporter) -> Path:
        self.fetched.append(package.name)
        tree = folder / f"tree-{package.name}"
        shutil.copytree(self.libraries, tree / "usr" / "lib" / "x86_64-linux-gnu")
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {package.name}\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b>\nDescription: x\n"
        )
        deb = folder / f"{package.name}_1_amd64.deb"
        command = ["dpkg-deb", "-b", "--root-owner-group", str(tree), str(deb)]
        subprocess.run(command, check=True, capture_output=True)
        return deb


@pytest.fixture
def root(tmp_path: Path, need: Callable[[str], None]) -> Path:
    """Packages with a program of this machine, one for a library that it lacks, and what is no program."""
    for tool in ("gcc", "ldd", "dpkg-deb"):
        need(tool)
    root = tmp_path / "root"
    programs = root / "usr" / "lib" / "linux-kbuild" / "scripts" / "mod"
    programs.mkdir(parents=True)
    for name, flags in {"fixdep": [], "modpost": ["-L", str(tmp_path), "-lstrange"]}.items():
        source = "int strange(void);\nint main(void) { return %s; }\n" % ("strange()" if flags else "0")
        if flags:
            library = ["gcc", "-shared", "-o", str(tmp_path / "libstrange.so"), "-xc", "-"]
            subprocess.run(library, input="int strange(void) { return 42; }\n", text=True, check=True)
        command = ["gcc", "-o", str(programs / name), "-xc", "-", *flags]
        subprocess.run(command, input=source, text=True, check=True)
    script(programs / "mkmodule.sh", "exit 0")
    return root


@pytest.fixture
def apt(tmp_path: Path, root: Path) -> FakeApt:
    """An apt whose libraries are this machine's, and the one that it lacks."""
    found = subprocess.run(
        ["ldd", shutil.which("ls") or "/bin/ls"], capture_output=True, text=True, check=True
    )
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for word in found.stdout.split():
        if "/ld-linux" in word or "/libc.so" in word:
            shutil.copy(word, libraries)
    shutil.copy(tmp_path / "libstrange.so", libraries)
    return FakeApt(libraries)


def test_a_program_gets_the_libraries_that_are_missing(root: Path, apt: FakeApt, tmp_path: Path) -> None:
    programs = root / "usr/lib/linux-kbuild/scripts/mod"
    fixdep = (programs / "fixdep").read_bytes()
    assert subprocess.run([programs / "modpost"], capture_output=True, check=False).returncode == 127
    toolchain.fit_programs(root, ("pahole", "libelf1t64", "libssl3t64"), apt, tmp_path, SILENT)  # type: ignore[arg-type]
    assert apt.fetched == ["libelf1t64", "zlib1g", "libc6"]
    assert (programs / "fixdep").read_bytes() == fixdep  # it runs as it is
    assert (programs / "mkmodule.sh").read_text() == "#!/bin/sh\nexit 0\n"
    shutil.move(root, tmp_path / "elsewhere")  # as a cache may be
    moved = tmp_path / "elsewhere" / programs.relative_to(root)
    assert subprocess.run([moved / "modpost"], check=False).returncode == 42
    (tmp_path / "link").symlink_to(moved.parent)  # as `scripts` in a headers' folder is one
    assert subprocess.run([tmp_path / "link" / "mod" / "modpost"], check=False).returncode == 42


def test_where_all_run_nothing_is_fetched(root: Path, apt: FakeApt, tmp_path: Path) -> None:
    (root / "usr/lib/linux-kbuild/scripts/mod/modpost").unlink()
    toolchain.fit_programs(root, ("libelf1t64",), apt, tmp_path, SILENT)  # type: ignore[arg-type]
    assert not apt.fetched


def test_packages_without_libraries(root: Path, apt: FakeApt, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not where they belong"):
        toolchain.fit_programs(root, ("pahole",), apt, tmp_path, SILENT)  # type: ignore[arg-type]
