"""What is in a .deb, file by file as it is unpacked: what is not wanted never lies on the disk."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inspector.errors import ImageError


@contextmanager
def open_deb(deb: Path) -> Iterator[tarfile.TarFile]:
    """Its files as a stream, which may be left early. Raises ImageError, in the body too."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise ImageError(f"{deb.name} cannot be unpacked: {error}") from None
        finally:
            process.kill()


def copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one file of a stream. Raises ImageError."""
    # Not extract(): its filters are newer than Debian 12's Python; without them it sets owners and modes.
    source = tar.extractfile(member)
    if source is None or ".." in target.parts:
        raise ImageError(f"a package holds a strange file: {member.name!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
