"""A kernel's headers on a machine whose compiler, pahole or libc are older than those that made them.

What a kernel's configuration asks of its compiler is asked again, of the machine's; and kbuild's own
programs, where they do not run here, get the libraries of their own distribution.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from inspector.errors import ImageError
from inspector.images.apt import Apt
from inspector.images.kernels import KernelFiles
from inspector.progress import Reporter

# As init/Kconfig and arch/Kconfig ask: an option of the compiler, or what it is to understand.
_PROBES = {
    "CC_HAS_MIN_FUNCTION_ALIGNMENT": ("-fmin-function-alignment=8", ""),
    "CC_HAS_COUNTED_BY": ("", "struct s { int n; int a[] __attribute__((__counted_by__(n))); };"),
    "CC_HAS_COUNTED_BY_PTR": ("", "struct s { int n; int *a __attribute__((__counted_by__(n))); };"),
}
_LIBRARIES = re.compile(r"libc6|libelf\w+|zlib1g|libzstd1")  # what kbuild's programs are linked with
_FOLDER = "lib/x86_64-linux-gnu"
_WRAPPER = """\
#!/bin/sh
# The machine's libc is older than the one that this was linked with.
lib="${{0%/*}}/{folder}"
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$0.real" "$@"
"""


def compiler(kernel: KernelFiles) -> str:
    """The compiler that built a kernel where the machine has it, else `gcc`, which may be missing too."""
    config = kernel.config.read_text() if kernel.config and kernel.config.exists() else ""
    named = re.search(r'^CONFIG_CC_VERSION_TEXT=".*?(gcc-\d+)', config, re.MULTILINE)
    return named[1] if named and shutil.which(named[1]) else "gcc"


def fit_configuration(build: Path, compiler: str) -> None:
    """Take out of a headers' folder what the machine's compiler lacks, and tell it the machine's pahole."""
    header, variables = build / "include/generated/autoconf.h", build / "include/config/auto.conf"
    if not (header.is_file() and variables.is_file()):
        return
    defines, settings = header.read_text(), variables.read_text()
    for name, (option, source) in _PROBES.items():
        if f"CONFIG_{name}=y" in settings and not _compiles(compiler, option, source):
            defines = defines.replace(f"#define CONFIG_{name} 1\n", "")
            settings = settings.replace(f"CONFIG_{name}=y\n", "")
    if version := _pahole():  # it decides which options pahole is given (scripts/Makefile.btf)
        defines = re.sub(r"(#define CONFIG_PAHOLE_VERSION) \d+", rf"\1 {version}", defines)
        settings = re.sub(r"(CONFIG_PAHOLE_VERSION)=\d+", rf"\1={version}", settings)
    header.write_text(defines)
    variables.write_text(settings)


def fit_programs(root: Path, names: tuple[str, ...], apt: Apt, folder: Path, reporter: Reporter) -> None:
    """Have the programs below `root` run: of the packages `names` come the libraries where they do not.

    Raises ImageError.
    """
    strangers = [path for path in _programs(root) if not _runs(path)]
    if not strangers:
        return
    for name in _closure(names, apt):
        deb = apt.download(apt.show(name), folder, reporter)
        done = subprocess.run(["dpkg-deb", "--extract", deb, root], capture_output=True, check=False)
        if done.returncode:
            raise ImageError(f"{deb.name} cannot be unpacked")
    library = next((place for place in (root / "usr" / _FOLDER, root / _FOLDER) if place.is_dir()), None)
    if library is None:
        raise ImageError("the libraries of kbuild's programs are not where they belong")
    for path in strangers:
        path.rename(path.with_name(f"{path.name}.real"))
        up = "/".join(".." for _ in path.parent.relative_to(root).parts)
        path.write_text(_WRAPPER.format(folder=f"{up}/{library.relative_to(root)}"))
        path.chmod(0o755)


def _compiles(compiler: str, option: str, source: str) -> bool:
    command = [compiler, *option.split(), "-Werror", "-x", "c", "-c", "-o", "/dev/null", "-"]
    try:
        done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
    except OSError:
        return True  # there is none: who builds is told so
    return not done.returncode


def _pahole() -> str:
    """`124` for v1.24, as scripts/pahole-version.sh has it; empty where there is none."""
    try:
        said = subprocess.run(["pahole", "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return "".join(re.findall(r"\d+", said)[:2])


def _programs(root: Path) -> Iterator[Path]:
    """Every program of the packages."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o100:
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _runs(program: Path) -> bool:
    """Whether the machine has the libraries of a program, each new enough."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return "not found" not in done.stdout + done.stderr


def _closure(names: tuple[str, ...], apt: Apt) -> list[str]:
    """The packages of libraries among these, and those that they depend on in turn."""
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if _LIBRARIES.fullmatch(name) and name not in found:
            found.append(name)
            waiting += apt.show(name).depends
    return found
