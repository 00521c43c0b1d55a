"""What is imported when: who starts a thing does not wait for what only others need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import inspector

_OF_OTHERS = ("inspector.labs", "inspector.trace", "inspector.snapshots", "inspector.memory.core", "elftools")
"""What few questions to a guest need."""


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import inspector", ("numpy", "qemu", "textual")),
        ("from inspector.cli.main import main; assert not main(['--help'])", ("numpy", "qemu", "textual")),
        ("import inspector; inspector.boot", ("textual", "rich", "click", *_OF_OTHERS)),
        ("from inspector.cli.main import main; main(['walk', '--help'])", ("textual", *_OF_OTHERS)),
        ("from inspector.cli.main import main; main(['tui', '--help'])", ("textual", *_OF_OTHERS)),
        ("import inspector.tui.app, inspector.tui.guest_source", _OF_OTHERS),
    ],
)
def test_is_not_imported(statement: str, absent: tuple[str, ...]) -> None:
    check = f"import sys; print(*(name for name in {absent!r} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{check}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(inspector.__file__).parents[1])},
    )
    assert done.stderr == "\n"
    assert done.returncode == 0
