"""One guest a kernel for all labs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from inspector import Guest


@pytest.fixture(scope="session", params=["debian-6.1", "debian-6.12"])
def stage_guest(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """The guest that `kmi lab` boots, of each kernel."""
    with boot_guest(request.param, "512M", 1) as guest:
        yield guest
