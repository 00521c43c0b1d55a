"""Where an expectation looks: a task's addresses or the kernel's, and the frames behind them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace, translate
from inspector.kernel.tasks import Task
from inspector.linux import Linux
from inspector.testing import drawing
from inspector.testing.claims import Claims
from inspector.units import VirtAddr, format_size, parse_size

Where = Task | Linux
"""Whose addresses: a task's, or with the guest itself the kernel's."""


def space_of(where: Where) -> AddressSpace:
    """The address space, read anew."""
    space = where.space if isinstance(where, Task) else where.kernel.space
    space.flush()
    return space


def name_of(where: Where) -> str:
    """For a message."""
    return f"{where.comm} ({where.pid})" if isinstance(where, Task) else "the kernel"


def size_of(size: int | str) -> int:
    """Bytes from a number or from `2M`. Raises UsageError."""
    return parse_size(size) if isinstance(size, str) else size


def frames(where: Where, va: VirtAddr, size: int | str) -> NDArray[np.uint64]:
    """The PFNs behind a range of addresses, in order. Raises Unexpected where a page is not present."""
    __tracebackhide__ = True
    with where.kernel.still():
        space = space_of(where)
        step, end = space.format.page_size, va + size_of(size)
        pages = np.arange(va & -step, end, step, dtype=np.uint64)
        places, there = translate(space.memory, space.format, space.root, pages)
        claims = Claims(f"{format_size(end - va)} at {va:#x} in {name_of(where)}")
        claims.equal("pages present", len(pages), int(there.sum()))
        claims.check(lambda: drawing.walk_text(space.walk(VirtAddr(int(pages[~there][0])))))
    return places // np.uint64(step)
