"""The kernel's linked lists (include/linux/list.h), followed with a bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

LIMIT = 1 << 22  # tasks, threads, modules, zones: nothing walked one by one comes near


def nodes(kernel: Kernel, head: VirtAddr, limit: int = LIMIT) -> Iterator[VirtAddr]:
    """The address of every struct list_head on the list, the head itself left out.

    Raises CorruptGuest where the list does not come back to its head within `limit` steps or runs in a
    loop that leaves the head out.
    """
    seen = {head}
    at = _next(kernel, head)
    while at != head:
        if at in seen or len(seen) > limit:
            raise CorruptGuest(f"the list at {head:#x} does not end: it loops at {at:#x}")
        seen.add(at)
        yield at
        at = _next(kernel, at)


def entries(
    kernel: Kernel, head: VirtAddr, type_name: str, member: str, limit: int = LIMIT
) -> Iterator[StructView]:
    """The structs on the list, linked by `member` (C: list_for_each_entry)."""
    offset = kernel.types.offsetof(type_name, member)
    for node in nodes(kernel, head, limit):
        yield kernel.view(type_name, VirtAddr(node - offset))


def follow(
    links: NDArray[np.uint64], following: NDArray[np.uint64], heads: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """For each link the index of the head that its chain of pointers ends in; -1 where it ends nowhere.

    Each round doubles how far every link sees: a million links take twenty rounds, and a loop holds nobody.
    """
    every = np.concatenate((links, heads))
    order = np.argsort(every, kind="stable")  # links mostly are in order, and that is then fast
    in_order = every[order]
    places = np.minimum(np.searchsorted(in_order, following), every.size - 1)
    lost = every.size
    step = np.arange(every.size + 1)
    step[: links.size] = np.where(in_order[places] == following, order[places], lost)
    for _ in range(links.size.bit_length() + 1):
        step = step[step]
    ends = step[: links.size]
    return np.where((ends >= links.size) & (ends < lost), ends - links.size, -1)


def _next(kernel: Kernel, node: VirtAddr) -> VirtAddr:
    return VirtAddr(kernel.space.u64(node))
