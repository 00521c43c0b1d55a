"""For tests of kernel code: a pytest plugin that has guests ready, and expectations of their memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspector.testing import expect
    from inspector.testing.claims import Unexpected

__all__ = ["Unexpected", "expect"]


def __getattr__(name: str) -> Any:
    # Lazily: pytest loads the plugin beside this in every run, also where no test has a guest.
    if name == "expect":
        return importlib.import_module("inspector.testing.expect")
    if name == "Unexpected":
        return importlib.import_module("inspector.testing.claims").Unexpected
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
