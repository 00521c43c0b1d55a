"""Kernels: by name from the cache, fetched where they are not there yet; or a user's own file, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from inspector.errors import ImageError
from inspector.images import kernel_file
from inspector.images.apt import Apt, Package
from inspector.images.cache import cache_dir, file_size, install, locked, require_space, scratch
from inspector.images.deb import copy_out, open_deb
from inspector.images.manifest import KernelEntry, manifest
from inspector.progress import SILENT, Reporter


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel that can be booted, and what is known of it."""

    name: str
    """Its name in the manifest, or the path that the user gave."""
    release: str
    """What `uname -r` says in the guest; empty where the file does not tell."""
    version: str
    """The version of its package; empty for a user's own kernel."""
    bzimage: Path
    modules_dir: Path | None
    """Its folder lib/modules/RELEASE, holding the modules that guests may load."""
    config: Path | None


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """A kernel of the manifest, and whether it is in the cache."""

    name: str
    title: str
    default: bool
    cached: bool
    version: str
    """The cached package's version; empty where not cached."""
    size: int
    """Bytes in the cache."""


def fetch_kernel(name: str, reporter: Reporter = SILENT, *, refresh: bool = False) -> KernelFiles:
    """A kernel by its name in the manifest, from the cache or fetched; or by a bzImage's or vmlinux's path.

    A cached kernel needs no network; `refresh` looks for a newer version of it. Raises UsageError for an
    unknown name, ImageError when the kernel cannot be fetched or the file is no kernel.
    """
    if name not in manifest().kernels and ("/" in name or Path(name).exists()):
        return own_kernel(Path(name))
    entry = manifest().entry(name)
    place = _place(name)
    kernel = _cached(place)
    if kernel and not refresh:
        return kernel
    with locked(place, reporter):
        kernel = _cached(place)
        return kernel if kernel and not refresh else _fetch(entry, place, kernel, reporter)


def own_kernel(path: Path) -> KernelFiles:
    """A user's own kernel: a bzImage or a vmlinux. Raises ImageError when it is neither, or cut short."""
    return KernelFiles(str(path), kernel_file.check(path), "", path.resolve(), None, None)


def cached_kernel(release: str) -> KernelFiles:
    """The kernel in the cache with that release, as `uname -r` has it. Raises ImageError."""
    for name in manifest().kernels:
        kernel = _cached(_place(name))
        if kernel and kernel.release == release:
            return kernel
    raise ImageError(f"Linux {release} is not in the cache, so nothing is known of it: see `kmi kernels`")


def kernels() -> list[KernelStatus]:
    """Every kernel that can be had by name."""
    found = []
    for entry in manifest().kernels.values():
        place = _place(entry.name)
        kernel = _cached(place)
        version = kernel.version if kernel else ""
        found.append(
            KernelStatus(entry.name, entry.title, entry.default, bool(kernel), version, file_size(place))
        )
    return found


def fetch_debug_vmlinux(kernel: KernelFiles, reporter: Reporter = SILENT) -> Path:
    """The kernel's vmlinux with DWARF, out of its -dbg package: about 850 MB to fetch, kept as one file.

    Raises ImageError, also when the mirror has only another version of it.
    """
    if not kernel.version:
        raise ImageError(f"{kernel.name} has no -dbg package: give its vmlinux yourself")
    place = cache_dir() / "debug" / f"vmlinux-{kernel.release}_{kernel.version}"
    if place.is_file():
        return place
    with locked(place, reporter), scratch(place) as folder:
        if place.is_file():
            return place
        with _apt(manifest().entry(kernel.name)).updated(reporter) as apt:
            try:
                package = apt.show(f"linux-image-{kernel.release}-dbg", kernel.version)
            except ImageError as error:
                raise ImageError(f"{error}: delete {_place(kernel.name)} to have a newer kernel") from None
            # The package and its vmlinux, a small part of what it installs, lie side by side for a while.
            require_space(folder, package.download_size + package.installed_size // 8)
            deb = apt.download(package, folder, reporter)
        wanted = f"usr/lib/debug/boot/vmlinux-{kernel.release}"
        _unpack(deb, (wanted,), folder, package, reporter)
        return install(folder / wanted, place)


def _place(name: str) -> Path:
    return cache_dir() / "kernels" / name


def _cached(place: Path) -> KernelFiles | None:
    """The kernel in the cache; None if not there, damaged, or without modules that the manifest asks for."""
    try:
        about = json.loads((place / "kernel.json").read_text())
    except (OSError, ValueError):
        return None
    image = place / "vmlinuz"
    if about["unpacked"] != list(manifest().unpack) or file_size(image) != about["image_size"]:
        return None
    return KernelFiles(
        place.name, about["release"], about["version"], image, place / "modules", place / "config"
    )


def _apt(entry: KernelEntry) -> Apt:
    return Apt(entry.suites, expired=entry.expired)


def _fetch(entry: KernelEntry, place: Path, have: KernelFiles | None, reporter: Reporter) -> KernelFiles:
    with scratch(place) as folder:
        with _apt(entry).updated(reporter) as apt:
            meta = apt.show(entry.package)
            name = next((d for d in meta.depends if d.startswith("linux-image-")), entry.package)
            release = name.removeprefix("linux-image-")
            image = apt.show(name)
            if have and have.version == image.version:
                return have
            # Debian 7.2 is split: the image only depends on linux-{base,binary,modules}-RELEASE.
            parts = [apt.show(d) for d in image.depends if d.endswith(f"-{release}")] or [image]
            require_space(folder, sum(p.download_size + p.installed_size // 4 for p in parts))
            debs = [apt.download(part, folder, reporter) for part in parts]
        for deb, part in zip(debs, parts, strict=True):
            _unpack(deb, _wanted(release), folder, part, reporter)
        install(_arrange(release, image.version, folder), place)
    kernel = _cached(place)
    assert kernel
    return kernel


def _wanted(release: str) -> tuple[str, ...]:
    """What of a kernel's packages is unpacked."""
    modules = [f"{usr}lib/modules/{release}" for usr in ("", "usr/")]
    return (
        f"boot/vmlinuz-{release}",
        f"boot/config-{release}",
        *(f"{folder}/{file}" for folder in modules for file in ("vmlinuz", "config")),
        *(f"{folder}/kernel/{part}" for folder in modules for part in manifest().unpack),
    )


def _arrange(release: str, version: str, folder: Path) -> Path:
    """Lay out what was unpacked as the cache has it. Raises ImageError where no kernel is among it."""
    made = folder / "kernel"
    made.mkdir()
    for lib in (folder / "lib", folder / "usr" / "lib"):
        if (lib / "modules" / release).is_dir():
            (lib / "modules" / release).rename(made / "modules")
    for file in ("vmlinuz", "config"):  # in /boot, or beside the modules where the packages are split
        places = (folder / "boot" / f"{file}-{release}", made / "modules" / file)
        found = next((place for place in places if place.is_file()), None)
        if not found:
            raise ImageError(f"the packages of Linux {release} {version} hold no {file}")
        found.rename(made / file)
    kernel_file.check(made / "vmlinuz")
    about = {
        "release": release,
        "version": version,
        "unpacked": list(manifest().unpack),
        "image_size": file_size(made / "vmlinuz"),
    }
    (made / "kernel.json").write_text(json.dumps(about))
    return made


def _unpack(deb: Path, wanted: tuple[str, ...], folder: Path, package: Package, reporter: Reporter) -> None:
    """Unpack the files of a .deb whose paths begin with one of `wanted`."""
    with (
        reporter.task(f"Unpacking {package.name}", package.installed_size, "B") as progress,
        open_deb(deb) as tar,
    ):
        for member in tar:
            path = member.name.removeprefix("./")
            if member.isfile() and path.startswith(wanted):
                copy_out(tar, member, folder / path)
                if (path,) == wanted:
                    break
            progress.update(member.offset_data + member.size)
