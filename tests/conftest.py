"""For all tests: start as a job in the foreground does."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell lets its background jobs ignore Ctrl-C, and so would all that the tests start: undo that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
