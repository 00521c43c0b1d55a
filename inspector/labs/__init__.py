"""Labs: small demonstrations on a live guest that say beforehand what will be seen, and check it.

For example:

    from inspector import labs
    for event in labs.run(labs.find("copy-on-write"), guest):
        print(event)
"""

from __future__ import annotations

import difflib

from inspector.errors import UsageError
from inspector.labs import (
    accessed_dirty,
    aliases,
    bounce_buffer,
    cached_uncached,
    copy_on_write,
    demand_paging,
    dma_buffer,
    driver_page,
    huge_pages,
    page_cache,
    page_life,
    protect,
    segfault,
    stack_growth,
    swapping,
    translate,
    vast_range,
    zero_page,
)
from inspector.labs.runner import run
from inspector.labs.story import Lab

LABS: tuple[Lab, ...] = (
    translate.LAB,
    demand_paging.LAB,
    zero_page.LAB,
    copy_on_write.LAB,
    aliases.LAB,
    page_cache.LAB,
    swapping.LAB,
    accessed_dirty.LAB,
    protect.LAB,
    stack_growth.LAB,
    segfault.LAB,
    huge_pages.LAB,
    page_life.LAB,
    driver_page.LAB,
    dma_buffer.LAB,
    bounce_buffer.LAB,
    cached_uncached.LAB,
    vast_range.LAB,
)
"""Every lab, in the order in which they are best read."""


def find(name: str) -> Lab:
    """The lab of that name. Raises UsageError."""
    for lab in LABS:
        if lab.name == name:
            return lab
    near = difflib.get_close_matches(name, [lab.name for lab in LABS], 1)
    hint = f"did you mean {near[0]}" if near else "see `kmi lab --list`"
    raise UsageError(f"no lab {name!r}; {hint}")


__all__ = ["LABS", "Lab", "find", "run"]
