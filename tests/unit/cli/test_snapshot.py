"""Snapshots on the command line: saved, and compared with another or with the guest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inspector.kernel.owners import FRAME, Owner
from inspector.kernel.rmap import ROW
from inspector.snapshots import Snapshot

Kmi = Callable[..., Any]


def moment(seconds: float, leaked: int) -> Snapshot:
    """32 frames of which so many are in use, and nothing tells by whom."""
    rows = np.zeros(32, FRAME)
    rows["pfn"], rows["owner"] = np.arange(32), Owner.FREE
    rows["owner"][:leaked] = Owner.UNMARKED
    return Snapshot(
        taken=seconds, release="6.1.0-test", build_id="ab" * 20, kaslr_offset=0x3000000, page_size=4096,
        labels=("",), migratetypes=("Movable",), tasks=(), caches=(), areas=(), modules=(), zones=(),
        frames=rows, mappings=np.empty(0, ROW),
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two moments, the second with 20 frames more."""
    for name, each in (("before", moment(5, 2)), ("after", moment(8, 22))):
        each.save(tmp_path / name)
    return str(tmp_path / "before"), str(tmp_path / "after")


def test_snapshot(kmi: Kmi, fake: Any, tmp_path: Path) -> None:
    fake.snapshot = lambda: moment(5, 2)
    done = kmi("snapshot", str(tmp_path / "one"), "--guest", "lab")
    assert done.out.rstrip().endswith("32 frames, 0 tasks, 0 mappings of theirs")
    assert Snapshot.load(tmp_path / "one").taken == 5


def test_two_files(kmi: Kmi, fake: Any, files: tuple[str, str]) -> None:
    out = kmi("diff", *files).out
    assert out.startswith("20 frames changed hands in 3.00 s; 80 KiB more in use\n")
    assert "      20  free -> unmarked" in out.splitlines()
    assert fake.closed == 0  # no guest is asked


def test_with_the_guest(kmi: Kmi, fake: Any, files: tuple[str, str]) -> None:
    fake.snapshot = lambda: moment(9, 5)
    assert "3 frames changed hands" in kmi("diff", files[0], "--guest", "lab").out


def test_json(kmi: Kmi, files: tuple[str, str]) -> None:
    data = json.loads(kmi("diff", *files, "--json").out)
    assert (data["frames_changed"], data["in_use_frames"]) == (20, 20)


def test_leaks(kmi: Kmi, files: tuple[str, str]) -> None:
    assert kmi("diff", *files, "--leaks").out.splitlines() == [
        "80 KiB leaked:",
        "  20 frames (80 KiB) of unmarked: PFN 0x2-0x15",
    ]
    assert kmi("diff", *reversed(files), "--leaks").out == "nothing leaked\n"


def test_what_cannot_be_compared(kmi: Kmi, fake: Any, files: tuple[str, str], tmp_path: Path) -> None:
    assert "give a second one, --guest NAME, --image PATH or --qmp SOCKET" in kmi("diff", files[0]).error
    assert "not both" in kmi("diff", *files, "--guest", "lab").error
    (tmp_path / "text").write_text("hello")
    assert (
        "no snapshot, or is damaged: File is not a zip file"
        in kmi("diff", str(tmp_path / "text"), files[1]).error
    )
    replace(moment(9, 5), kaslr_offset=0).save(tmp_path / "other")
    assert "of two guests, or of two boots of one" in kmi("diff", files[0], str(tmp_path / "other")).error


def test_export(kmi: Kmi, fake: Any, files: tuple[str, str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    fake.snapshot = lambda: moment(5, 2)
    out = kmi("export", str(tmp_path / "all"), "--guest", "lab").out
    assert [Path(line.split(":")[0]).name for line in out.splitlines()] == [
        *("frames.parquet", "mappings.parquet", "tasks.parquet", "slabs.parquet", "vmalloc.parquet"),
    ]
    path = tmp_path / "after.parquet"
    assert kmi("export", str(path), "--from", files[1]).status == 0
    assert parquet.read_table(path)["owner"].to_pylist().count("unmarked") == 22


def test_export_says_what_is_wrong(kmi: Kmi, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    both = kmi("export", "x.arrow", "--from", files[0], "--guest", "lab")
    assert both.error == "give --from, or a guest with --guest, --image or --qmp: not both"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "tables need pyarrow, which is not installed" in kmi("export", "x.arrow").error
