"""The example project of the docs, tested as its author would: the leaks are found, and gone when mended."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[3]
KERNELS = ("debian-6.1", "debian-6.12")
_INSTALLED = any(point.value == "inspector.testing.plugin" for point in entry_points(group="pytest11"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(ROOT / "docs" / "example", tmp_path / "ringlog")


def run(project: Path, *options: str) -> tuple[str, dict[str, int]]:
    """Its tests; what pytest said, and how many passed and failed."""
    if not _INSTALLED:  # a checkout that runs by PYTHONPATH
        options = ("-p", "inspector.testing.plugin", *options)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", (done.stdout.splitlines() or [""])[-1])
    return done.stdout + done.stderr, {what: int(count) for count, what in counts}


def test_the_leaks_are_found(project: Path) -> None:
    said, counts = run(project)
    assert counts == {"passed": len(KERNELS), "failed": 2 * len(KERNELS)}, said
    for kernel in KERNELS:
        pages = section(said, f"test_old_messages_leave_nothing[{kernel}]")
        assert re.search(r"5 frames \(20 KiB\) of unmarked: PFN 0x", pages), pages
        assert re.search(r"5 allocated by ringlog_write\+0x[0-9a-f]+ \[ringlog\]", pages), pages
        objects = section(said, f"test_messages_that_are_too_long_leave_nothing[{kernel}]")
        assert re.search(r"5 objects \(\d+ B\) of slab kmalloc-cg-32", objects), objects
        assert re.search(r"5 allocated by ringlog_write\+0x[0-9a-f]+ \[ringlog\]", objects), objects
        assert f"console of the guest ({kernel})" in pages
        assert "contextlib" not in pages  # the traceback ends in the test


def section(said: str, test: str) -> str:
    """What the report says of one test."""
    return re.split(rf"^_+ {re.escape(test)} _+$", said, flags=re.MULTILINE)[1].split("\n____")[0]


def test_the_fix_is_seen_on_two_workers(project: Path) -> None:
    subprocess.run(["git", "apply", "fix.patch"], cwd=project, check=True)
    said, counts = run(project, "-n", "2", "-v")
    assert counts == {"passed": 3 * len(KERNELS)}, said
    assert {"gw0", "gw1"} == set(re.findall(r"\[(gw\d)\]", said))


def test_one_test_on_four_kernels(tmp_path: Path) -> None:
    """Each guest is the kernel that it should be, and a test does not see what the last one left."""
    kernels = ("debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        f"pytestmark = pytest.mark.guest(kernel={kernels})\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_it(guest, kmi_kernel, number):\n"
        "    release = guest.run('uname -r').stdout.strip()\n"
        "    assert guest.info().release == release\n"
        "    assert release.startswith(kmi_kernel.removeprefix('debian-') + '.')\n"
        "    assert guest.run('ls /left').returncode\n"
        "    guest.run('touch /left').check()\n"
    )
    said, counts = run(tmp_path)
    assert counts == {"passed": 2 * len(kernels)}, said
