"""A snapshot's file: what comes back is what went in, and a damaged one is told in a line."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.errors import BadSnapshot, SetupError
from inspector.snapshots import Snapshot


def equal(one: Snapshot, other: Snapshot) -> bool:
    """Whether all members are equal, arrays too."""
    pairs = [(getattr(one, each.name), getattr(other, each.name)) for each in fields(Snapshot)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_saved_and_loaded(before: Snapshot, after: Snapshot, tmp_path: Path) -> None:
    before.save(tmp_path / "one")
    after.save(str(tmp_path / "two"))
    assert equal(Snapshot.load(tmp_path / "one"), before)
    assert str(Snapshot.load(tmp_path / "two").diff(Snapshot.load(tmp_path / "one"))) == str(
        after.diff(before)
    )
    assert not equal(before, after)


def test_forgotten_frames_are_kept(before: Snapshot, tmp_path: Path) -> None:
    replace(before, forgotten=np.array([40, 41], np.uint64)).save(tmp_path / "one")
    assert Snapshot.load(tmp_path / "one").forgotten.tolist() == [40, 41]


def test_numpy_can_read_it(after: Snapshot, tmp_path: Path) -> None:
    after.save(tmp_path / "one")
    with np.load(tmp_path / "one", allow_pickle=False) as columns:
        assert columns["frames.owner"].tolist() == after.frames["owner"].tolist()


def test_equal_snapshots_are_equal_files(before: Snapshot, tmp_path: Path) -> None:
    before.save(tmp_path / "one")
    before.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def rewritten(path: Path, name: str, change: Any) -> None:
    """Another content for one member of the file."""
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    content[name] = change(content[name])
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in content.items():
            archive.writestr(each, data)


def array(values: Any) -> bytes:
    """A member's bytes."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(values), (1, 0), True)
    return out.getvalue()


def meta(**changes: Any) -> Any:
    """Change some members of the JSON."""

    def change(data: bytes) -> bytes:
        found = json.loads(np.lib.format.read_array(_stream(data)).tobytes())
        return array(np.frombuffer(json.dumps(found | changes).encode(), np.uint8))

    return change


def _stream(data: bytes) -> Any:
    return io.BytesIO(data)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("version.npy", lambda _: array(np.array([9], "<u4")), "is of version 9; this kmi reads version 2"),
        ("frames.owner.npy", lambda _: array(np.full(64, 200, np.uint8)), "has an owner that there is not"),
        ("frames.detail.npy", lambda _: array(np.full(64, 5, np.uint32)), "has a label that there is not"),
        ("frames.state.npy", lambda _: array(np.full(64, 99, np.uint8)), "has a state that there is not"),
        ("frames.migratetype.npy", lambda _: array(np.full(64, 2, np.uint8)), "has a migratetype that there"),
        ("mappings.owner.npy", lambda _: array(np.full(4, 3, np.uint32)), "a mapping is of a task"),
        ("mappings.owner.npy", lambda _: array(np.array([1, 0, 0, 0], np.uint32)), "in disorder"),
        ("frames.flags.npy", lambda _: array(np.zeros(63, np.uint64)), "frames differ in length"),
        ("frames.flags.npy", lambda _: array(np.zeros(64, np.int8)), "frames.flags is not an array of"),
        ("frames.flags.npy", lambda _: array(np.zeros((8, 8), np.uint64)), "frames.flags is not an array of"),
        ("frames.flags.npy", lambda _: array(np.array([{}])), "frames.flags is not an array of"),
        ("frames.flags.npy", lambda data: data.replace(b"(64,)", b"(9**9,)"), "no snapshot, or is damaged"),
        ("forgotten.npy", lambda _: array(np.array([64], np.uint64)), "a frame is forgotten that there is"),
        ("forgotten.npy", lambda _: array(np.array([1.0])), "forgotten is not an array of"),
        ("meta.npy", meta(page_size=0), "the page size is no power of two"),
        ("meta.npy", meta(page_size="4096"), "'4096' is not of type int"),
        ("meta.npy", meta(labels=[None]), "None is not of type str"),
        ("meta.npy", meta(tasks=[[1, 2]]), "damaged"),
        ("meta.npy", meta(kaslr_offset=1 << 70), "is not of type int"),
        ("meta.npy", meta(areas=[[-1, 1, 2, 0, "", 1, None, [], False, []]]), "-1 is not of type VirtAddr"),
        ("meta.npy", meta(zones=7), "a list is missing"),
        ("meta.npy", lambda _: array(np.frombuffer(b"[" * 100_000, np.uint8)), "nested too deep"),
    ],
)  # fmt: skip
def test_damaged(before: Snapshot, tmp_path: Path, name: str, change: Any, why: str) -> None:
    path = tmp_path / "one"
    before.save(path)
    rewritten(path, name, change)
    with pytest.raises(BadSnapshot) as caught:
        Snapshot.load(path)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_member(before: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "one"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(BadSnapshot, match="no snapshot, or is damaged"):
        Snapshot.load(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1 << 20), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_an_error_or_harmless(
    before: Snapshot, tmp_path: Path, at: int, byte: int, cut: bool
) -> None:
    path = tmp_path / "fuzzed"
    before.save(path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data[: at % len(data)] if cut else data)
    with contextlib.suppress(BadSnapshot):
        str(Snapshot.load(path).diff(before))


def test_texts_are_made_printable(before: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "one"
    before.save(path)
    rewritten(path, "meta.npy", meta(release="\x1b[2J"))
    assert Snapshot.load(path).release == "\\x1b[2J"


def test_missing_and_unwritable(before: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(BadSnapshot, match="No such file"):
        Snapshot.load(tmp_path / "nowhere")
    with pytest.raises(SetupError, match="cannot write"):
        before.save(tmp_path / "no" / "folder")
