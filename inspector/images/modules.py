"""Kernel modules, ours and the user's, built against a guest kernel's headers and kept by their contents."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from inspector.errors import ImageError, SetupError, UsageError
from inspector.images import headers, toolchain
from inspector.images.cache import cache_dir, install, locked, require_space, scratch
from inspector.images.headers import fetch_headers
from inspector.images.kernels import KernelFiles
from inspector.images.manifest import source_dir
from inspector.progress import SILENT, Reporter

_TOOLS = {"make": "make", "strip": "binutils", "pahole": "pahole"}
_KEPT = 48  # some six for each kernel and module
_SPACE = 32 << 20
# How tools that kbuild runs begin what they complain of: gcc, ld, modpost, make.
_COMPLAINT = re.compile(r"error: |ERROR: |undefined reference|No rule to make |\*\*\* |not found")


def module_names() -> list[str]:
    """The modules that can be built: the folders of qemu_images/modules/."""
    return sorted(path.parent.name for path in (source_dir() / "modules").glob("*/Kbuild"))


def build_module(kernel: KernelFiles, module: str | Path, reporter: Reporter = SILENT) -> Path:
    """NAME.ko for a kernel, built when its sources have changed, from the cache otherwise.

    `module` is the name of one of ours, or a folder with a Kbuild of the user's that makes one module. It
    carries BTF, no DWARF; beside it lies kbuild's own `build.log`, with the warnings of W=1. Raises
    UsageError for an unknown name or folder, SetupError when a tool is missing, ImageError when it cannot be
    built.
    """
    name, sources = _named(module) if isinstance(module, Path) else (module, _sources(module))
    compiler = _compiler(kernel)
    folder = cache_dir() / "modules"
    place = folder / f"{name}-{_key(kernel, sources, compiler)}"
    if not place.is_dir():
        tree = fetch_headers(kernel, reporter)
        with locked(folder / name, reporter):
            if not place.is_dir():
                require_space(folder, _SPACE)
                with (
                    scratch(folder / name) as work,
                    reporter.task(f"Building the module {name} for {kernel.name}"),
                ):
                    install(_build(name, sources, tree, work, compiler), place)
        _drop_old(folder)
    os.utime(place)
    return place / f"{name}.ko"


def parameters(module: Path) -> list[str]:
    """The parameters that a built module declares (MODULE_PARM_DESC or not), by its .modinfo."""
    return sorted(found.decode() for found in set(re.findall(rb"parmtype=(\w+):", module.read_bytes())))


def _sources(name: str) -> list[Path]:
    known = module_names()
    if name not in known:
        raise UsageError(f"no module named {name!r}; known are {', '.join(known)}")
    folder = source_dir() / "modules" / name  # not all that lies there: somebody may have run kbuild in it
    return [folder / "Kbuild", *sorted(folder.glob("*.[ch]"))]


def _named(folder: Path) -> tuple[str, list[Path]]:
    """The one module that a folder's Kbuild makes, and its sources."""
    build = next((folder / name for name in ("Kbuild", "Makefile") if (folder / name).is_file()), None)
    if build is None:
        raise UsageError(f"no module in {folder}: it has no Kbuild, which says `obj-m := NAME.o`")
    made = re.findall(r"^obj-m\s*[:+]?=\s*([\w-]+)\.o\s*$", build.read_text(), re.MULTILINE)
    if len(made) != 1:
        raise UsageError(f"{build} is to make one module, and says `obj-m := NAME.o` {len(made)} times")
    return made[0], [build, *sorted(path for path in folder.iterdir() if path.suffix in (".c", ".h", ".S"))]


def _key(kernel: KernelFiles, sources: list[Path], compiler: str) -> str:
    """A name for all that goes into a module: the same inputs give the same name."""
    digest = hashlib.sha256(f"{kernel.release} {kernel.version} {compiler}\0".encode())
    for path in [*sources, *map(Path, (__file__, headers.__file__, toolchain.__file__))]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    for command in ([compiler, "-dumpfullversion"], ["pahole", "--version"]):
        digest.update(subprocess.run(command, capture_output=True, check=False).stdout)
    return digest.hexdigest()[:16]


def _compiler(kernel: KernelFiles) -> str:
    """The compiler that built the kernel where the machine has it, else its gcc. Raises SetupError."""
    for tool, package in _TOOLS.items():
        if not shutil.which(tool):
            raise SetupError(f"{tool} is missing, and modules cannot be built: apt-get install {package}")
    compiler = toolchain.compiler(kernel)
    if not shutil.which(compiler):
        raise SetupError("gcc is missing, and modules cannot be built: apt-get install gcc")
    return compiler


def _build(name: str, sources: list[Path], tree: Path, work: Path, compiler: str) -> Path:
    """Run kbuild on a copy of the sources; gives a folder with the module and the log."""
    source = work / "source"
    source.mkdir()
    for path in sources:
        shutil.copy(path, source)
    command = ["make", "-C", str(tree), f"M={source}", f"CC={compiler}", "W=1", "modules"]
    if not (tree / "tools" / "bpf" / "resolve_btfids").is_dir():
        command.append("RESOLVE_BTFIDS=:")  # 6.1's packages lack it; only who has a .BTF_ids needs it
    # What a make around us, or a person's shell, has set is not meant for kbuild.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env=environment,
    )
    log = result.stdout.replace(f"{source}/", "")
    if result.returncode:
        complaints = [line.strip() for line in log.splitlines() if _COMPLAINT.search(line)]
        raise ImageError(f"the module {name} cannot be built: {(complaints or ['kbuild gave no reason'])[0]}")
    made = work / "made"
    made.mkdir()
    (made / "build.log").write_text(log)
    subprocess.run(["strip", "--strip-debug", "-o", made / f"{name}.ko", source / f"{name}.ko"], check=True)
    return made


def _drop_old(folder: Path) -> None:
    built = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for old in sorted(built, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
