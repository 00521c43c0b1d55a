"""Which guest a test wants: what its `guest` marker says, over what the user said for all tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from inspector import images
from inspector.errors import UsageError
from inspector.images.manifest import manifest

_MARKER = ("kernel", "memory", "cpus", "la57", "append", "modules", "files", "warnings")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """A guest to boot, and what is put into it before a test has it.

    `modules` are names of ours or folders with a Kbuild, with their parameters; `files` are a path in the
    guest and one here. `warnings` says that the kernel may warn without failing the test.
    """

    kernel: str
    memory: str = "512M"
    cpus: int = 1
    la57: bool = False
    append: str = ""
    modules: tuple[tuple[str | Path, tuple[tuple[str, int | str | bool], ...]], ...] = ()
    files: tuple[tuple[str, Path], ...] = ()
    warnings: bool = False

    @property
    def boot_options(self) -> dict[str, Any]:
        """For inspector.boot()."""
        return {"memory": self.memory, "cpus": self.cpus, "la57": self.la57, "cmdline": self.append}


def kernels_of(said: Mapping[str, Any], default: Sequence[str]) -> list[str]:
    """The kernels that a test is to run on: its marker's, one or several, else the user's."""
    kernels = said.get("kernel", default)
    return [kernels] if isinstance(kernels, str) else list(kernels)


def check_kernel(kernel: str | Path) -> None:
    """Raises UsageError where no kernel has that name, ImageError where the file is none."""
    if isinstance(kernel, Path) or "/" in kernel:
        images.own_kernel(Path(kernel))
    elif not Path(kernel).is_file():
        manifest().entry(kernel)


def spec_of(said: Mapping[str, Any], kernel: str, folder: Path) -> GuestSpec:
    """The guest that a marker's words stand for; paths are from the test's folder on.

    Raises UsageError, ImageError.
    """
    if unknown := said.keys() - set(_MARKER):
        words = ", ".join(sorted(unknown))
        raise UsageError(f"a guest has no {words}; the marker takes {', '.join(_MARKER)}")
    check_kernel(kernel)
    modules = said.get("modules", {})
    wanted = modules if isinstance(modules, Mapping) else {name: {} for name in modules}
    files = said.get("files", {})
    for place, path in files.items():
        if not place.startswith("/") or not (folder / path).is_file():
            pair = f"{place!r}: {str(path)!r}"
            raise UsageError(f"files={{{pair}}}: give a path from / in the guest, and a file here")
    plain = {field.name for field in fields(GuestSpec)} - {"kernel", "modules", "files"}
    return GuestSpec(
        kernel=kernel,
        modules=tuple((_module(name, folder), tuple(options.items())) for name, options in wanted.items()),
        files=tuple((place, folder / path) for place, path in files.items()),
        **{name: said[name] for name in plain & said.keys()},
    )


def _module(name: str | Path, folder: Path) -> str | Path:
    """A name of ours, or a folder, which has a slash or is there."""
    if isinstance(name, Path) or "/" in name or (folder / name).is_dir():
        return folder / name
    return name
