"""What /dev/ringlog does with memory, seen from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspector import Guest
from inspector.testing import expect

# With slub_debug=U the kernel keeps who allocated each object.
pytestmark = pytest.mark.guest(modules=["../ringlog"], append="slub_debug=U")

RING_SIZE = 8


@pytest.fixture(autouse=True)
def warm(guest: Guest, chatter: Path) -> None:
    """The ring is full: from now on what comes in drives out as much."""
    guest.put(chatter, "/chatter")
    assert guest.run(f"/chatter {RING_SIZE}").stdout == f"{RING_SIZE}\n"


def test_a_message_has_a_page_of_its_own(guest: Guest) -> None:
    guest.run("/chatter 1 11").check()
    with guest.paused():  # its variables and its types are read by name, as the kernel's own are
        kernel = guest.kernel
        newest = (kernel.space.u32(guest.symbol("ringlog_next")) - 1) % RING_SIZE
        message = kernel.view("message", kernel.space.pointer(guest.symbol("ringlog_ring") + newest * 8))
        pfn = guest.pfn(message.ptr("page"))
        assert message.int("length") == 11
        expect.page(guest, pfn, refcount=1, flags="!lru", charge="", migratetype="Unmovable")
        assert guest.read_phys(pfn * 4096, 11) == b"a" * 11


def test_old_messages_leave_nothing(guest: Guest) -> None:
    with expect.no_leaks(guest, trace=True):
        guest.run("/chatter 5").check()


def test_messages_that_are_too_long_leave_nothing(guest: Guest) -> None:
    with expect.no_leaks(guest):
        assert guest.run("/chatter 5 5000").stdout == "0\n"
