"""checkpatch.pl out of a package of sources made here, by an apt that is none; no network."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.errors import ImageError
from inspector.images import KernelFiles, checkpatch, fetch_checkpatch
from inspector.images.apt import Package
from inspector.progress import Reporter

NAME = "linux-source-6.1"
FILES = ("checkpatch.pl", "const_structs.checkpatch", "spelling.txt")
KERNEL = KernelFiles("debian-6.1", "6.1.0-9-amd64", "6.1.9-1", Path("/none"), None, None)


class FakeApt:
    """One package, packed from a folder when it is asked for."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.fetched: list[str] = []

    @contextmanager
    def updated(self, reporter: Reporter) -> Iterator[FakeApt]:
        yield self

    def show(self, name: str, version: str | None = None) -> Package:
        return Package(name, "6.1.10-1", (), 1000, 1000)

    def download(self, package: Package, folder: Path, reporter: Reporter) -> Path:
        self.fetched.append(package.name)
        deb = folder / f"{package.name}_{package.version}_all.deb"
        command = ["dpkg-deb", "-b", "--root-owner-group", str(self.tree), str(deb)]
        subprocess.run(command, check=True, capture_output=True)
        return deb

    def publish(self, names: list[str]) -> Path:
        """Put an archive with these files into the package: each says its own name."""
        packed = self.tree / "usr" / "src" / f"{NAME}.tar.xz"
        packed.parent.mkdir(parents=True)
        with tarfile.open(packed, "w:xz") as tar:
            for name in names:
                member = tarfile.TarInfo(f"{NAME}/{name}")
                member.size = len(name)
                tar.addfile(member, io.BytesIO(name.encode()))
        return packed


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[str], None]) -> FakeApt:
    """An apt with an empty package."""
    need("dpkg-deb")
    made = FakeApt(tmp_path / "package")
    (made.tree / "DEBIAN").mkdir(parents=True)
    (made.tree / "DEBIAN" / "control").write_text(
        f"Package: {NAME}\nVersion: 6.1.10-1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    monkeypatch.setattr(checkpatch, "Apt", lambda suites, expired: made)
    return made


def test_only_what_is_wanted_stays(apt: FakeApt, cache: Path) -> None:
    wanted = [f"scripts/{name}" for name in FILES]
    apt.publish(["Makefile", "drivers/scripts/checkpatch.pl", *wanted, "scripts/unifdef.c"])
    script = fetch_checkpatch(KERNEL)
    assert script.read_text() == "scripts/checkpatch.pl"
    assert sorted(path.name for path in script.parent.iterdir()) == list(FILES)
    assert not [*cache.rglob("*.deb"), *cache.rglob("*.partial")]
    assert fetch_checkpatch(KERNEL) == script
    assert apt.fetched == [NAME]  # once: then it is in the cache


def test_the_rest_of_the_archive_is_not_read(apt: FakeApt) -> None:
    packed = apt.publish([f"scripts/{name}" for name in FILES])
    packed.write_bytes(packed.read_bytes() + b"what is no xz")
    assert fetch_checkpatch(KERNEL).exists()


def test_an_archive_without_it(apt: FakeApt, cache: Path) -> None:
    apt.publish(["scripts/checkpatch.pl", "scripts/spelling.txt"])
    with pytest.raises(ImageError, match=rf"{NAME}_6\.1\.10-1_all\.deb holds no const_structs\.checkpatch$"):
        fetch_checkpatch(KERNEL)
    assert not (cache / "checkpatch" / NAME).exists()


def test_a_damaged_archive(apt: FakeApt) -> None:
    packed = apt.publish([f"scripts/{name}" for name in FILES])
    packed.write_bytes(packed.read_bytes()[:60])
    with pytest.raises(ImageError, match="cannot be unpacked"):
        fetch_checkpatch(KERNEL)


def test_a_users_own_kernel_has_none() -> None:
    with pytest.raises(ImageError, match="/own/bzImage comes without sources"):
        fetch_checkpatch(KernelFiles("/own/bzImage", "6.1.9", "", Path("/own/bzImage"), None, None))
