"""What a test may expect of guest memory. Each explains itself where it does not hold.

For example:

    from inspector.testing import expect

    def test_touch(guest):
        task = guest.task(guest.spawn("/labs/touch 8M"))
        expect.page(guest, pfn, owner="anon", flags="lru uptodate", mapcount=1)
"""

from __future__ import annotations

from inspector.testing.changes import fault, rss_growth
from inspector.testing.frames import contiguous, page, stays
from inspector.testing.leaks import no_leaks
from inspector.testing.mappings import huge, mapping, not_mapped, resident, shared
from inspector.testing.places import frames

__all__ = [
    "contiguous",
    "fault",
    "frames",
    "huge",
    "mapping",
    "no_leaks",
    "not_mapped",
    "page",
    "resident",
    "rss_growth",
    "shared",
    "stays",
]
