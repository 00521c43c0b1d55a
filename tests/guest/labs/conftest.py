"""One guest a kernel for all labs that are content with its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from inspector import Guest
from inspector.labs import Lab, find

KERNELS = ("debian-6.1", "debian-6.12")


@pytest.fixture(scope="session", params=KERNELS)
def stage_for(
    request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]
) -> Iterator[Callable[[Lab], Guest]]:
    """For the guest that `kmi lab` boots for a lab, of each kernel."""
    guests: dict[str, Guest] = {}
    with ExitStack() as stack:

        def guest_of(lab: Lab) -> Guest:
            if lab.memory not in guests:
                guests[lab.memory] = stack.enter_context(boot_guest(request.param, lab.memory, 1))
            return guests[lab.memory]

        yield guest_of


@pytest.fixture(scope="session")
def stage_guest(stage_for: Callable[[Lab], Guest]) -> Guest:
    """The guest of most labs."""
    return stage_for(find("copy-on-write"))
