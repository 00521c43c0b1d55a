"""The kernels' manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspector.errors import ImageError, UsageError
from inspector.images import default_kernel, fetch_kernel, kernels
from inspector.images import manifest as module


def test_the_promised_names() -> None:
    assert default_kernel() == "debian-6.1"
    generations = {"debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"}
    flavours = {f"debian-{version}-{flavour}" for version in ("6.1", "6.12") for flavour in ("cloud", "rt")}
    assert generations | flavours <= set(module.manifest().kernels)
    assert [entry.default for entry in module.manifest().kernels.values()].count(True) == 1


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"'debian-2.4'.*debian-6.1, debian-6.12"):
        fetch_kernel("debian-2.4")


def test_an_empty_cache_has_no_kernels() -> None:
    assert {(k.cached, k.version, k.size) for k in kernels()} == {(False, "", 0)}


def test_not_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "inspector" / "images" / "manifest.py"))
    with pytest.raises(ImageError, match="source checkout"):
        module.source_dir()
