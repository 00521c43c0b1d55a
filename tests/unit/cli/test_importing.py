"""Imports that look for no garbage, and leave the collector as it was."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from inspector.cli.importing import imported


def test_the_collector_rests_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kmi_imported.py").write_text("import gc\nCOLLECTS = gc.isenabled()\n")
    (tmp_path / "kmi_broken.py").write_text("import gc\nassert gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert imported("kmi_imported").COLLECTS is False
        assert gc.isenabled()
        with pytest.raises(AssertionError):
            imported("kmi_broken")
        assert gc.isenabled()
    finally:
        sys.modules.pop("kmi_imported", None)
