"""Kernels fetched by a real apt from a repository made here; no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.errors import ImageError
from inspector.images import apt, fetch_debug_vmlinux, fetch_kernel, kernels
from inspector.images.apt import Mirror
from inspector.progress import SILENT, Progress, Silent

RELEASE = "6.1.0-9-amd64"
META = "linux-image-amd64"
IMAGE = f"linux-image-{RELEASE}"
SPLIT = "7.2.1-amd64"


class Repository:
    """An apt repository in a folder: component main of a few suites that all hold the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stanzas: list[str] = []

    def add(self, name: str, version: str, files: dict[str, bytes], depends: str = "") -> None:
        """Build a package and publish it."""
        tree = self.folder / "tree"
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: a <a@b>\n"
        control += (
            f"Description: x\nInstalled-Size: 100\n{f'Depends: {depends}' + chr(10) if depends else ''}"
        )
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(control)
        deb = self.folder / f"{name}_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, deb], check=True, capture_output=True)
        shutil.rmtree(tree)
        data = deb.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        self._stanzas.append(f"{control}Filename: {deb.name}\nSize: {len(data)}\nSHA256: {digest}\n")
        self._publish()

    def _publish(self) -> None:
        listed = "\n".join(self._stanzas)
        for suite, text in (("bookworm", listed), ("bookworm-security", ""), ("sid", listed)):
            index = self.folder / "dists" / suite / "main" / "binary-amd64" / "Packages"
            index.parent.mkdir(parents=True, exist_ok=True)
            index.write_text(text)
            digest = hashlib.sha256(index.read_bytes()).hexdigest()
            (self.folder / "dists" / suite / "Release").write_text(
                f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64\nComponents: main\n"
                f"SHA256:\n {digest} {index.stat().st_size} main/binary-amd64/Packages\n"
            )


def kernel_package(image: bytes) -> dict[str, bytes]:
    """What a kernel's package holds; an image may be longer than its header says (a signature)."""
    modules = f"lib/modules/{RELEASE}/kernel"
    return {
        f"boot/vmlinuz-{RELEASE}": image,
        f"boot/config-{RELEASE}": b"CONFIG_X86_64=y\n",
        f"boot/System.map-{RELEASE}": b"not wanted",
        f"{modules}/mm/zsmalloc.ko": b"zsmalloc",
        f"{modules}/drivers/net/big.ko": b"not wanted",
    }


@pytest.fixture
def repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[str], None], bzimage: bytes
) -> Repository:
    """A repository that this machine's apt seems to be set to, with one kernel."""
    need("apt-get")
    made = Repository(tmp_path / "repository")
    uri = f"file:{made.folder}/"
    monkeypatch.setattr(apt, "mirrors", lambda: [Mirror(uri, s) for s in ("bookworm", "bookworm-security")])
    honest = apt.sources

    def trusting(suites: Sequence[str], known: Sequence[Mirror], *, expired: bool) -> str:
        return honest(suites, known, Path("/nowhere"), expired=expired).replace("[", "[trusted=yes ")

    monkeypatch.setattr(apt, "sources", trusting)
    made.add(IMAGE, "6.1.9-1", kernel_package(bzimage))
    made.add(META, "6.1.9-1", {}, f"{IMAGE} (= 6.1.9-1)")
    return made


def test_fetch(cache: Path, repository: Repository, bzimage: bytes) -> None:
    kernel = fetch_kernel("debian-6.1")
    assert (kernel.name, kernel.release, kernel.version) == ("debian-6.1", RELEASE, "6.1.9-1")
    assert kernel.bzimage.read_bytes() == bzimage
    assert kernel.config
    assert kernel.config.read_text() == "CONFIG_X86_64=y\n"
    assert kernel.modules_dir
    found = [str(path.relative_to(kernel.modules_dir)) for path in kernel.modules_dir.rglob("*.ko")]
    assert found == ["kernel/mm/zsmalloc.ko"]
    (status,) = (k for k in kernels() if k.name == "debian-6.1")
    assert (status.cached, status.version) == (True, "6.1.9-1")
    assert status.size > 64
    # Neither the package nor a half-made folder stays.
    assert not list(cache.rglob("*.deb"))
    assert not list(cache.rglob("*.partial"))


def test_a_cached_kernel_needs_nothing(repository: Repository) -> None:
    first = fetch_kernel("debian-6.1")
    shutil.rmtree(repository.folder)
    assert fetch_kernel("debian-6.1") == first


def test_two_that_fetch_at_once_fetch_it_once(repository: Repository) -> None:
    titles: list[str] = []

    class Listener(Silent):
        @contextmanager
        def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
            titles.append(title)
            with super().task(title) as progress:
                yield progress

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch_kernel("debian-6.1", Listener()), range(2))
    assert first == second
    assert len([title for title in titles if title.startswith("Fetching")]) == 1


def test_refresh_takes_a_newer_one(repository: Repository, bzimage: bytes) -> None:
    first = fetch_kernel("debian-6.1")
    assert fetch_kernel("debian-6.1", refresh=True) == first
    repository.add(IMAGE, "6.1.9-2", kernel_package(bzimage + b"newer"))
    repository.add(META, "6.1.9-2", {}, f"{IMAGE} (= 6.1.9-2)")
    assert fetch_kernel("debian-6.1") == first
    second = fetch_kernel("debian-6.1", refresh=True)
    assert second.version == "6.1.9-2"
    assert second.bzimage.read_bytes().endswith(b"newer")


def split_packages(image: bytes) -> dict[str, dict[str, bytes]]:
    """The packages among which newer kernels are split, and what they hold."""
    modules = f"usr/lib/modules/{SPLIT}"
    return {
        f"linux-base-{SPLIT}": {f"{modules}/config": b"CONFIG_X86_64=y\n", f"{modules}/System.map": b"-"},
        f"linux-binary-{SPLIT}": {f"{modules}/vmlinuz": image},
        f"linux-modules-{SPLIT}": {
            f"{modules}/kernel/mm/zsmalloc.ko.xz": b"zsmalloc",
            f"{modules}/kernel/drivers/net/big.ko.xz": b"not wanted",
        },
    }


def test_a_kernel_split_among_packages(cache: Path, repository: Repository, bzimage: bytes) -> None:
    packages = split_packages(bzimage)
    for name, files in packages.items():
        repository.add(name, "7.2.1-1", files, "kmod")
    repository.add(f"linux-image-{SPLIT}", "7.2.1-1", {}, f"dracut | other, {', '.join(packages)}")
    repository.add(META, "7.2.1-1", {}, f"linux-base-amd64 (= 7.2.1-1), linux-image-{SPLIT} (= 7.2.1-1)")
    kernel = fetch_kernel("debian-7.2")
    assert (kernel.release, kernel.version) == (SPLIT, "7.2.1-1")
    assert kernel.bzimage.read_bytes() == bzimage
    assert kernel.config
    assert kernel.config.read_text() == "CONFIG_X86_64=y\n"
    assert kernel.modules_dir
    found = [str(p.relative_to(kernel.modules_dir)) for p in kernel.modules_dir.rglob("*") if p.is_file()]
    assert found == ["kernel/mm/zsmalloc.ko.xz"]
    assert fetch_kernel("debian-7.2", refresh=True) == kernel
    assert not list(cache.rglob("*.deb"))


def test_packages_that_hold_no_kernel(repository: Repository) -> None:
    for name in split_packages(b""):
        repository.add(name, "7.2.1-1", {})
    parts = ", ".join(split_packages(b""))
    repository.add(f"linux-image-{SPLIT}", "7.2.1-1", {}, parts)
    repository.add(META, "7.2.1-1", {}, f"linux-image-{SPLIT}")
    with pytest.raises(ImageError, match=r"7\.2\.1-amd64 7\.2\.1-1 hold no vmlinuz"):
        fetch_kernel("debian-7.2")


@pytest.mark.parametrize("damage", ["vmlinuz", "kernel.json"])
def test_a_damaged_kernel_is_fetched_again(repository: Repository, damage: str, bzimage: bytes) -> None:
    kernel = fetch_kernel("debian-6.1")
    (kernel.bzimage.parent / damage).write_bytes(b"{")
    assert fetch_kernel("debian-6.1") == kernel
    assert kernel.bzimage.read_bytes() == bzimage


def test_no_such_package(repository: Repository) -> None:
    with pytest.raises(ImageError, match=r"linux-image-6\.12-amd64"):
        fetch_kernel("debian-6.12")


def test_a_download_that_is_not_what_the_list_says(cache: Path, repository: Repository) -> None:
    deb = next(repository.folder.glob(f"{IMAGE}_*.deb"))
    deb.write_bytes(deb.read_bytes()[:-1] + b"?")
    with pytest.raises(ImageError) as caught:
        fetch_kernel("debian-6.1")
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.partial"))
    assert not any(kernel.cached for kernel in kernels())


def test_ctrl_c_leaves_nothing_half_done(cache: Path, repository: Repository) -> None:
    class Impatient(Silent):
        @contextmanager
        def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
            if title.startswith("Unpacking"):
                raise KeyboardInterrupt
            with super().task(title) as progress:
                yield progress

    with pytest.raises(KeyboardInterrupt):
        fetch_kernel("debian-6.1", Impatient())
    assert not list(cache.rglob("*.partial"))
    assert not any(kernel.cached for kernel in kernels())
    assert fetch_kernel("debian-6.1").release == RELEASE


def test_the_debug_vmlinux_of_the_same_version(cache: Path, repository: Repository) -> None:
    kernel = fetch_kernel("debian-6.1")
    files = {f"usr/lib/debug/boot/vmlinux-{RELEASE}": b"\x7fELF vmlinux", "usr/lib/debug/z.ko": b"not wanted"}
    repository.add(f"{IMAGE}-dbg", "6.1.9-1", files)
    repository.add(f"{IMAGE}-dbg", "6.1.9-2", {})
    found = fetch_debug_vmlinux(kernel, SILENT)
    assert found.read_bytes() == b"\x7fELF vmlinux"
    assert not list(cache.rglob("*.deb"))
    shutil.rmtree(repository.folder)
    assert fetch_debug_vmlinux(kernel) == found


def test_a_debug_package_of_another_version_only(cache: Path, repository: Repository) -> None:
    kernel = fetch_kernel("debian-6.1")
    repository.add(f"{IMAGE}-dbg", "6.1.9-2", {})
    with pytest.raises(ImageError, match=r"-dbg=6\.1\.9-1.*delete .*debian-6\.1 "):
        fetch_debug_vmlinux(kernel)
    assert not list(cache.rglob("*.partial"))


def test_no_debug_vmlinux_for_a_users_own_kernel(tmp_path: Path, bzimage: bytes) -> None:
    own = tmp_path / "bzImage"
    own.write_bytes(bzimage)
    with pytest.raises(ImageError, match="no -dbg package"):
        fetch_debug_vmlinux(fetch_kernel(str(own)))
