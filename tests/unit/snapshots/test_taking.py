"""What a snapshot tells otherwise than the owners of frames do."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from inspector.kernel.owners import FRAME, Owner, Owners
from inspector.snapshots import taking
from inspector.symbols import Kernel

_LRU = 4


def test_pages_in_a_batch_for_the_lru_lists_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those alone that the batch alone has: not mapped, not pinned, not on a list, and of nobody."""
    monkeypatch.setattr(taking, "flag_bits", lambda kernel: {"lru": _LRU})
    rows = np.zeros(6, FRAME)
    rows["owner"], rows["refcount"] = Owner.ANON, 1
    rows[1]["refcount"] = 2
    rows[2]["flags"] = 1 << _LRU
    rows[3]["mapcount"] = 1
    rows[4]["detail"] = 1
    rows[5]["owner"] = Owner.UNMARKED
    before = rows.copy()
    found = taking._frames(cast(Kernel, None), Owners(rows, ("", "touch (84)")))
    assert found["owner"].tolist() == [Owner.PER_CPU_FREE] + [Owner.ANON] * 4 + [Owner.UNMARKED]
    assert np.array_equal(rows, before), "the owners stay as they are"
