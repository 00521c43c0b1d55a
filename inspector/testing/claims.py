"""What was expected beside what was found, and the error that shows all of it at once."""

from __future__ import annotations

from collections.abc import Callable

from inspector.units import printable


class Unexpected(AssertionError):
    """Memory is not as a test expects it. The message has every claim that failed, and what was found."""


class Claims:
    """Claims about one thing; check() raises for all that did not hold."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._failed: list[tuple[str, str, str]] = []

    def equal(self, what: str, expected: object, found: object) -> None:
        """Two things that are to be equal."""
        self.holds(what, expected == found, expected, found)

    def holds(self, what: str, passed: bool, expected: object, found: object) -> None:
        """A claim that holds or not."""
        if not passed:
            self._failed.append((what, str(expected), printable(str(found))))

    def check(self, context: Callable[[], str] | None = None) -> None:
        """Raises Unexpected where a claim failed; `context` draws what is there, below the claims."""
        __tracebackhide__ = True
        if not self._failed:
            return
        wide = max(len(what) for what, _, _ in self._failed)
        said = max(len(expected) for _, expected, _ in self._failed)
        lines = [
            f"  {what:<{wide}}  expected {expected:<{said}}  found {found}"
            for what, expected, found in self._failed
        ]
        drawn = ["", context()] if context else []
        raise Unexpected("\n".join([f"{self._subject}: not as expected", *lines, *drawn]))
