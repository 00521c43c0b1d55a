"""How long work tells how far it is, without knowing who draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """One piece of long work. `total` is in the work's own unit; None where it is not known."""

    def update(self, done: float, total: float | None = None) -> None:
        """Say how much is done so far."""


class Reporter(Protocol):
    """Where pieces of long work show themselves."""

    def task(
        self, title: str, total: float | None = None, unit: str = ""
    ) -> AbstractContextManager[Progress]:
        """Begin a piece of work; a context manager that gives its Progress."""


class _Nothing:
    def update(self, done: float, total: float | None = None) -> None:
        """Nobody looks."""


class Silent:
    """A Reporter that shows nothing: the default of the API."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        """Begin a piece of work that nobody watches."""
        yield _Nothing()


SILENT: Reporter = Silent()
