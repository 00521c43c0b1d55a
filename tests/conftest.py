"""For all tests: start as a job in the foreground does, and measure no time."""

from __future__ import annotations

import signal

from hypothesis import settings

pytest_plugins = ["pytester"]

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """A shell lets its background jobs ignore Ctrl-C, and so would all that the tests start: undo that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
