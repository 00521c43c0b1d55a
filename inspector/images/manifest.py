"""What qemu_images/ says: which kernels can be fetched by name, and where the guest's sources are."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inspector.errors import ImageError, UsageError


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A kernel that can be fetched by name."""

    name: str
    title: str
    package: str
    """The distribution's meta-package, whose newest version depends on the kernel's package."""
    suites: tuple[str, ...]
    expired: bool = False
    """Whether lists past their Valid-Until are taken: mirrors keep suites that nobody signs any more."""
    default: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """qemu_images/kernels.toml."""

    kernels: dict[str, KernelEntry]
    unpack: tuple[str, ...]
    """Folders of lib/modules/RELEASE/kernel whose modules are unpacked into the cache."""
    load: tuple[str, ...]
    """Modules that every guest loads at boot, where its kernel has them as modules."""
    built_for: tuple[str, ...]
    """Kernels that tests build our own modules for; others may do."""
    loaded_into: tuple[str, ...]
    """Those of them that tests load the modules into."""

    def entry(self, name: str) -> KernelEntry:
        """The kernel of that name. Raises UsageError."""
        try:
            return self.kernels[name]
        except KeyError:
            known = ", ".join(self.kernels)
            raise UsageError(
                f"no kernel named {name!r}; known are {known}, or give the path of a file"
            ) from None


def source_dir() -> Path:
    """The folder qemu_images/ of the checkout that runs. Raises ImageError when there is none."""
    found = Path(__file__).resolve().parents[2] / "qemu_images"
    if not (found / "kernels.toml").is_file():
        raise ImageError(f"{found} is missing: run from a source checkout, installed with `pip install -e .`")
    return found


@cache
def manifest() -> Manifest:
    """The manifest, read once. Raises ImageError."""
    path = source_dir() / "kernels.toml"
    try:
        data = tomllib.loads(path.read_text())
        modules = data.pop("modules")
        kernels = {
            name: KernelEntry(
                name,
                row["title"],
                row["package"],
                tuple(row["suites"]),
                row.get("expired", False),
                row.get("default", False),
            )
            for name, row in data.items()
        }
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from None
    return Manifest(
        kernels,
        *(tuple(modules[name]) for name in ("unpack", "load", "built_for", "loaded_into")),
    )


def default_kernel() -> str:
    """The name of the kernel that is booted when none is asked for."""
    return next(entry.name for entry in manifest().kernels.values() if entry.default)
