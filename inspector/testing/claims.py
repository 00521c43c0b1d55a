"""What was expected beside what was found, and the error that shows all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar

from inspector.units import printable

P = ParamSpec("P")
T = TypeVar("T")


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


class _Block(AbstractContextManager[T], Generic[T]):
    """A context manager whose failure a report shows at the test's `with`, not inside contextlib."""

    def __init__(self, inner: AbstractContextManager[T, bool | None]) -> None:
        self._inner = inner

    def __enter__(self) -> T:
        return self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        __tracebackhide__ = True
        try:
            return self._inner.__exit__(kind, error, trace)
        except Unexpected as unexpected:
            raise unexpected.with_traceback(None) from None


def block(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """As contextlib.contextmanager(), for expectations."""
    made = contextmanager(function)

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Block(made(*args, **kwargs))

    return make
