"""The kernel's own scripts/checkpatch.pl: of Debian's packages only that of the whole sources has it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from inspector.errors import ImageError
from inspector.images.apt import Apt
from inspector.images.cache import cache_dir, install, locked, require_space, scratch
from inspector.images.deb import copy_out, open_deb
from inspector.images.kernels import KernelFiles
from inspector.images.manifest import manifest
from inspector.progress import SILENT, Reporter

_SCRIPT = "checkpatch.pl"
_FILES = (_SCRIPT, "spelling.txt", "const_structs.checkpatch")  # the script reads the others beside it


def fetch_checkpatch(kernel: KernelFiles, reporter: Reporter = SILENT) -> Path:
    """The script as the sources of a kernel have it, from the cache or fetched: 140 MB, of which 0.3 stay.

    Raises ImageError, also for a user's own kernel.
    """
    if not kernel.version:
        raise ImageError(f"{kernel.name} comes without sources, and so without {_SCRIPT}")
    name = f"linux-source-{'.'.join(kernel.release.split('.')[:2])}"
    place = cache_dir() / "checkpatch" / name
    if not place.is_dir():
        with locked(place, reporter):
            if not place.is_dir():
                with scratch(place) as folder:
                    _fetch(kernel, name, folder, reporter)
                    install(folder / "scripts", place)
    return place / _SCRIPT


def _fetch(kernel: KernelFiles, name: str, folder: Path, reporter: Reporter) -> None:
    """Lay out `folder`/scripts as the cache has it."""
    entry = manifest().entry(kernel.name)
    with Apt(entry.suites, expired=entry.expired).updated(reporter) as apt:
        package = apt.download(apt.show(name), folder, reporter)
    require_space(folder, 1 << 20)
    with open_deb(package) as files:
        for member in files:
            if member.name.endswith(f"/{name}.tar.xz"):
                _unpack(files, member, folder / "scripts", reporter)
                break
    missing = [file for file in _FILES if not (folder / "scripts" / file).is_file()]
    if missing:
        raise ImageError(f"{package.name} holds no {missing[0]}")


def _unpack(files: tarfile.TarFile, sources: tarfile.TarInfo, target: Path, reporter: Reporter) -> None:
    """The files out of the archive within the package, and no more of it than up to the last of them."""
    packed = files.extractfile(sources)
    wanted = {f"scripts/{file}" for file in _FILES}
    with (
        reporter.task(f"Unpacking {_SCRIPT}", sources.size, "B") as progress,
        tarfile.open(fileobj=packed, mode="r|xz") as tar,
    ):
        assert packed
        for member in tar:
            progress.update(packed.tell())
            path = member.name.partition("/")[2]
            if path in wanted:
                copy_out(tar, member, target / Path(path).name)
                wanted.remove(path)
                if not wanted:
                    return
