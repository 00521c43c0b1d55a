"""For all tests: start as a job in the foreground does, measure no time, skip nothing under CI."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import settings

import inspector
from inspector import Guest
from inspector.errors import BootError, GuestDied, SetupError

pytest_plugins = ["pytester"]

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """A shell lets its background jobs ignore Ctrl-C, and so would all that the tests start: undo that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where nothing may be missing, a test that is skipped has failed: it would never be seen to."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where CI is set: {report.longreprtext or report.longrepr}"
    return report


def boot(kernel: str, memory: str, cpus: int, **options: Any) -> Guest:
    """Boot a guest; a missing prerequisite skips, but fails under CI.

    Under TCG a kernel may panic while it boots, once in hundreds of times, untouched by us: there is a
    second go.
    """
    try:
        return inspector.boot(kernel, memory, cpus, **options)
    except SetupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    except (BootError, GuestDied) as error:
        if "Kernel panic" not in str(error):
            raise
        warnings.warn(f"{kernel} did not come up, and is booted again: {error}", stacklevel=2)
        return inspector.boot(kernel, memory, cpus, **options)


@pytest.fixture(scope="session")
def boot_guest() -> Callable[..., Guest]:
    """For a guest of the test's own; the test closes it."""
    return boot
