"""The guest's initramfs: busybox, the agent, the lab programs, init and a few of the kernel's modules."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inspector.errors import ImageError, SetupError
from inspector.images import cpio
from inspector.images.cache import cache_dir, install, locked, require_space, scratch
from inspector.images.cpio import Entry, device, directory, file, link, write_cpio
from inspector.images.kernels import KernelFiles
from inspector.images.manifest import manifest, source_dir
from inspector.progress import SILENT, Reporter

BUSYBOX = Path("/bin/busybox")
_COMPILE = ("gcc", "-Os", "-static", "-s", "-pthread", "-Wall")
_KEPT = 24  # some three for each kernel
_SPACE = 32 << 20
# What of qemu_images/ goes where in the guest, as it is.
_FILES = {"init": "/init", "fstab": "/etc/fstab", "inittab": "/etc/inittab", "profile": "/etc/profile"}
_DIRECTORIES = ("/bin", "/dev", "/etc", "/labs", "/mnt", "/modules", "/proc", "/root", "/sys", "/tmp")


def guest_image(
    kernel: KernelFiles | None = None, reporter: Reporter = SILENT, extra: Mapping[str, Path] | None = None
) -> Path:
    """The initramfs for a kernel, built when its inputs have changed, from the cache otherwise.

    `extra` puts files of the host at absolute paths of the guest, executable where they are on the host.
    Raises SetupError when a tool is missing on the host, ImageError when a part cannot be built.
    """
    extra = dict(extra or {})
    folder = cache_dir() / "guests"
    image = folder / f"{_key(kernel, extra)}.cpio"
    if not image.exists():
        with locked(folder / "image", reporter):
            if not image.exists():
                require_space(folder, _SPACE)
                with scratch(folder / "image") as work, reporter.task("Building the guest image"):
                    write_cpio(work / "cpio", _contents(kernel, extra, work))
                    install(work / "cpio", image)
                _drop_old(folder)
    os.utime(image)
    return image


def _key(kernel: KernelFiles | None, extra: Mapping[str, Path]) -> str:
    """A name for all that goes into an image: the same inputs give the same name."""
    digest = hashlib.sha256()
    for path in sorted([*_sources(), Path(__file__), Path(cpio.__file__), _busybox()]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    digest.update(_compiler_version())
    if kernel and kernel.modules_dir:
        digest.update(f"{kernel.release} {kernel.version} {manifest().load}".encode())
    for place, path in sorted(extra.items()):
        if not place.startswith("/"):
            raise ImageError(f"not an absolute path in the guest: {place!r}")
        digest.update(f"{place}\0{os.access(path, os.X_OK)}".encode() + _read(path))
    return digest.hexdigest()[:24]


def _sources() -> list[Path]:
    root = source_dir()
    programs = [*root.glob("programs/*.[ch]"), *root.glob("modules/*/*.h")]  # a program may speak to a module
    return [*(root / name for name in _FILES), root / "agent.c", *programs]


def _contents(kernel: KernelFiles | None, extra: Mapping[str, Path], work: Path) -> list[Entry]:
    root = source_dir()
    entries = [directory(path) for path in _DIRECTORIES]
    entries.append(device("/dev/console", 5, 1))  # init's output before it has mounted devtmpfs
    entries += [file(place, (root / name).read_bytes(), name == "init") for name, place in _FILES.items()]
    entries.append(file("/bin/busybox", _busybox().read_bytes(), True))
    # Links made here are links that init need not make at every boot.
    applets = subprocess.run(
        [_busybox(), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    entries += [link(f"/bin/{name}", "busybox") for name in applets if name != "busybox"]
    entries += _programs(root, work)
    modules = _modules(kernel.modules_dir, manifest().load) if kernel and kernel.modules_dir else {}
    entries += [file(place, data) for place, data in modules.items()]
    entries.append(file("/modules.list", "".join(f"{place}\n" for place in modules).encode()))
    for place, path in extra.items():
        entries += [directory(str(parent)) for parent in reversed(Path(place).parents[:-1])]
        entries.append(file(place, _read(path), os.access(path, os.X_OK)))
    return entries


def _programs(root: Path, work: Path) -> Iterable[Entry]:
    """Compile the agent and the lab programs, statically: the guest has no libraries."""
    sources = {f"/labs/{path.stem}": path for path in sorted(root.glob("programs/*.c"))}
    sources["/bin/agent"] = root / "agent.c"

    def build(place: str) -> Entry:
        made = work / place.replace("/", "-")
        command = [*_COMPILE, "-o", str(made), str(sources[place])]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            why = next(
                (line for line in result.stderr.splitlines() if "error" in line or "cannot" in line), ""
            )
            raise ImageError(f"{sources[place].name} cannot be compiled: {why.strip()}")
        return file(place, made.read_bytes(), True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build, sources))


def _modules(folder: Path, load: Iterable[str]) -> dict[str, bytes]:
    """Modules and what they depend on, in the order of loading: path in the guest -> contents.

    Those that the kernel has built in, or does not have, have no file and are left out. Dependencies are
    what the modules themselves say in .modinfo: packages carry no modules.dep.
    """
    files = {_module_name(path): path for path in folder.rglob("*.ko*")}
    found: dict[str, bytes] = {}
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in seen or name not in files:
            return
        seen.add(name)
        data = _decompressed(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends[1].decode().split(",") if depends else ():
            add(other.replace("-", "_"))
        found[f"/modules/{name}.ko"] = data

    for name in load:
        add(name)
    return found


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
    return data


def _busybox() -> Path:
    if not BUSYBOX.exists():
        raise SetupError(f"{BUSYBOX} is missing: apt-get install busybox-static")
    with BUSYBOX.open("rb") as binary:
        if b"/ld-linux" in binary.read(4096):  # PT_INTERP follows the program headers
            raise SetupError(f"{BUSYBOX} is not static: apt-get install busybox-static")
    return BUSYBOX


def _compiler_version() -> bytes:
    if not shutil.which(_COMPILE[0]):
        raise SetupError("gcc is missing: apt-get install gcc libc6-dev")
    return subprocess.run([_COMPILE[0], "-dumpfullversion"], capture_output=True, check=False).stdout


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from None


def _drop_old(folder: Path) -> None:
    images = sorted(folder.glob("*.cpio"), key=lambda path: path.stat().st_mtime, reverse=True)
    for image in images[_KEPT:]:
        image.unlink(missing_ok=True)
