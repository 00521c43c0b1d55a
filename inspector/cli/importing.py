"""Imports that somebody waits for."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def imported(name: str) -> ModuleType:
    """Import a module. What modules make stays: looking for garbage among it takes a seventh of a start."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()
