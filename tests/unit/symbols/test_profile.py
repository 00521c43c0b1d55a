from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.symbols import profile
from inspector.symbols.table import SymbolArrays


def make(count: int = 3) -> profile.Profile:
    names = [f"symbol_{i}".encode() for i in range(count)]
    kinds, addresses = (
        np.full(count, ord("T"), np.uint8),
        np.arange(count, dtype=np.uint64) + np.uint64(1 << 63),
    )
    symbols = SymbolArrays.build(names, kinds, addresses, 1 << 63)
    return profile.Profile(symbols, np.arange(100, dtype=np.uint8), np.array([0, 3, 9], np.uint32))


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_back_as_it_was(tmp_path: Path, count: int) -> None:
    kept = make(count)
    path = profile.profile_path(tmp_path / "new" / "cache", "ab" * 20)
    assert profile.save(path, kept)
    back = profile.load(path)
    assert back is not None
    assert back.symbols.floor == 1 << 63
    for name in ("addresses", "kinds", "bounds", "names", "by_name"):
        assert getattr(back.symbols, name).tobytes() == getattr(kept.symbols, name).tobytes()
    assert (back.btf.tobytes(), back.btf_starts.tobytes()) == (kept.btf.tobytes(), kept.btf_starts.tobytes())
    assert [file.name for file in path.parent.iterdir()] == ["ab" * 20 + ".profile"]


def test_missing(tmp_path: Path) -> None:
    assert profile.load(tmp_path / "absent") is None


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not profile.save(tmp_path / "file" / "x.profile", make())
    assert not profile.save(tmp_path / "file" / "deeper" / "x.profile", make())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while it is written: the old profile stays, and no part of the new one."""
    path = tmp_path / "x.profile"
    assert profile.save(path, make(1))
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not profile.save(path, make(1000))
    assert [file.name for file in tmp_path.iterdir()] == ["x.profile"]
    assert path.read_bytes() == before


@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_seen(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.profile"
    profile.save(path, make())
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    assert profile.load(path) is None


@given(size=st.integers(0, 2000))
def test_any_cut_is_seen(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.profile"
    profile.save(path, make())
    data = path.read_bytes()
    path.write_bytes(data[: min(size, len(data) - 1)])
    assert profile.load(path) is None
