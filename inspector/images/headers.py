"""A kernel's own headers, as kbuild wants them: unpacked from its packages beside the user's other files.

The system is left alone: nothing is installed, and the packages' absolute paths are made relative.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
from pathlib import Path

from inspector.errors import ImageError, SetupError
from inspector.images import toolchain
from inspector.images.apt import Apt, Package
from inspector.images.cache import cache_dir, install, locked, require_space, scratch
from inspector.images.kernels import KernelFiles
from inspector.images.manifest import manifest
from inspector.progress import SILENT, Reporter

_XZ = b"\xfd7zXZ\0"


def fetch_headers(kernel: KernelFiles, reporter: Reporter = SILENT) -> Path:
    """The folder that `make -C` takes to build modules for this kernel, from the cache or fetched: 14 MB.

    In it lies a `vmlinux` with the kernel's BTF, which a module's BTF builds upon, where it can be had.
    Raises ImageError, also for a user's own kernel and when the mirror has only another version.
    """
    if not kernel.version:
        raise ImageError(f"{kernel.name} comes without headers: modules are built for those of `kmi kernels`")
    place = cache_dir() / "headers" / f"{kernel.release}_{kernel.version}"
    if not place.is_dir():
        with locked(place, reporter):
            if not place.is_dir():
                with scratch(place) as folder:
                    _fetch(kernel, folder, reporter)
                    install(folder / "headers", place)
    return _build_folder(place, kernel)


def _build_folder(root: Path, kernel: KernelFiles) -> Path:
    return root / "usr" / "src" / f"linux-headers-{kernel.release}"


def _fetch(kernel: KernelFiles, folder: Path, reporter: Reporter) -> None:
    """Lay out `folder`/headers as the cache has it."""
    entry = manifest().entry(kernel.name)
    with Apt(entry.suites, expired=entry.expired).updated(reporter) as apt:
        parts = _packages(apt, kernel)
        require_space(folder, sum(part.download_size + 2 * part.installed_size for part in parts))
        debs = [apt.download(part, folder, reporter) for part in parts]
        made = folder / "headers"
        with reporter.task(f"Unpacking the headers of {kernel.name}", len(debs)) as progress:
            for done, deb in enumerate(debs):
                progress.update(done)
                _run(["dpkg-deb", "--extract", str(deb), str(made)], f"{deb.name} cannot be unpacked")
        linked = tuple(name for part in parts for name in part.depends)
        toolchain.fit_programs(made, linked, apt, folder, reporter)
    with reporter.task(f"Fitting the headers of {kernel.name} to this machine"):
        build = _build_folder(made, kernel)
        makefile = build / "Makefile"
        if not makefile.is_file():
            raise ImageError(f"the packages of headers for {kernel.release} hold no {makefile.name}")
        here = "$(dir $(lastword $(MAKEFILE_LIST)))"
        makefile.write_text(makefile.read_text().replace("/usr/src/", f"{here}../"))
        # Debian's 6.1 packages lack what newer ones have.
        if not (build / "vmlinux").exists():
            _unpack_btf(kernel.bzimage, build / "vmlinux", folder)
        toolchain.fit_configuration(build, toolchain.compiler(kernel))


def _packages(apt: Apt, kernel: KernelFiles) -> list[Package]:
    """The headers' package and those that it is split into; not the compiler, which is the machine's own."""
    try:
        package = apt.show(f"linux-headers-{kernel.release}", kernel.version)
    except ImageError as error:
        old = cache_dir() / "kernels" / kernel.name
        raise ImageError(f"{error}: delete {old} to have a newer kernel") from None
    parts = [package]
    for name in package.depends:
        if name.startswith("linux-headers-"):
            parts.append(apt.show(name, kernel.version))
        elif name.startswith("linux-kbuild-"):
            parts.append(apt.show(name))
    return parts


def _unpack_btf(bzimage: Path, target: Path, work: Path) -> None:
    """Write an ELF file with the kernel's .BTF alone; nothing where the kernel is not packed with xz."""
    # boot.rst: setup_sects 0x1f1 (0 means 4), payload_offset 0x248 from the setup's end, payload_length.
    data = bzimage.read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    payload = data[start : start + length]
    if not payload.startswith(_XZ):
        return
    elf = work / "vmlinux"
    try:
        # Not lzma.decompress(): behind the stream stands its unpacked size, which is no xz.
        elf.write_bytes(lzma.LZMADecompressor().decompress(payload))
    except lzma.LZMAError as error:
        raise ImageError(f"{bzimage} cannot be unpacked: {error}") from None
    _run(["objcopy", "--only-section=.BTF", str(elf), str(target)], f"no .BTF can be had from {bzimage}")
    elf.unlink()


def _run(command: list[str], failure: str) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be started: {error.strerror}") from None
    if result.returncode:
        raise ImageError(f"{failure}: {(result.stderr.strip().splitlines() or ['it gave no reason'])[-1]}")
