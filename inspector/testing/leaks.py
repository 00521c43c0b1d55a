"""The expectation that a block of work leaves nothing behind, and who allocated what it did leave."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from inspector.guest import Guest
from inspector.kernel.owners import Owner
from inspector.kernel.slab_tracks import jiffies, tracks
from inspector.snapshots import Leak
from inspector.snapshots.leaks import KEPT
from inspector.testing.claims import Unexpected, block
from inspector.trace import Allocation, AllocationTrace
from inspector.units import VirtAddr, printable

_PAUSE = 0.3  # seconds between looks
_CALLERS = 5  # lines for each leak
# What only passes an allocation on: the caller is who is behind it. _noprof: since 6.10.
_ALLOCATORS = re.compile(
    r"(__|___)?(get_page_from_freelist|alloc_(frozen_)?pages\w*|folio_alloc\w*|get_(zeroed|free)_pages?\w*|"
    r"kmalloc\w*|k[vz]\w*alloc\w*|kmem_cache_alloc\w*|slab_alloc\w*|allocate_slab|new_slab|vmalloc\w*|"
    r"vmap_alloc\w*)(\.\w+)*\+"
)


@block
def no_leaks(
    guest: Guest,
    *,
    frames: int = 0,
    objects: int = 0,
    ignore: Collection[Owner] = KEPT,
    trace: bool = False,
    patience: float = 3.0,
) -> Iterator[None]:
    """Inside, no frame and no slab object is taken that is still in use after it: see snapshots.Leaks.

    A holder, an owner of frames or a slab cache, may have grown by so many `frames` or `objects`. What is
    freed late has `patience` seconds to go. The message says who allocated what leaked where it can be known:
    vmalloc areas always, slab objects of a guest booted with `slub_debug=U`, pages where `trace` is set,
    which stops the guest at each allocation. Do the work once before: what is made the first time may stay.
    Raises Unexpected.
    """
    __tracebackhide__ = True
    before, started = guest.snapshot(), jiffies(guest.kernel)
    tracing: AbstractContextManager[AllocationTrace | None] = (
        guest.trace_allocations() if trace else nullcontext()
    )
    with tracing as recorded:
        yield
    until = time.monotonic() + patience
    while leaks := guest.snapshot().diff(before).leaked(frames=frames, objects=objects, ignore=ignore):
        if time.monotonic() > until:
            break
        time.sleep(_PAUSE)
    if not leaks:
        return
    title, *_ = str(leaks).splitlines()
    lines = [title.replace(" leaked:", " leaked in this block:")]
    takers = _takers(recorded or ())
    for leak in leaks.found:
        callers = _of_objects(guest, leak, started) or Counter(
            takers[pfn] for pfn in np.union1d(leak.pfns, leak.forgotten).tolist() if pfn in takers
        )
        lines.append(f"  {printable(str(leak))}")
        lines += [f"    {n} allocated by {printable(who)}" for who, n in callers.most_common(_CALLERS)]
    raise Unexpected("\n".join(lines))


def _takers(allocations: Iterable[Allocation]) -> dict[int, str]:
    """Who took each frame that was allocated and not freed."""
    takers: dict[int, str] = {}
    for each in allocations:
        for pfn in range(each.pfn, each.pfn + (1 << each.order)):
            if each.freed:
                takers.pop(pfn, None)
            else:
                takers[pfn] = _caller(each)
    return takers


def _caller(allocation: Allocation) -> str:
    places = [frame.place for frame in allocation.stack]
    return next((place for place in places if not _ALLOCATORS.match(place)), "nobody on its stack")


def _of_objects(guest: Guest, leak: Leak, started: int) -> Counter[str]:
    """Who allocated the objects of a cache that are there since the block began."""
    if leak.holder.owner is not Owner.SLAB:
        return Counter()
    cache = next((cache for cache in guest.slabs() if cache.name == leak.holder.label), None)
    with guest.still():
        rows = tracks(guest.kernel, cache) if cache else None
        if rows is None:
            return Counter()
        recent = rows["caller"][rows["when"] >= started].tolist()
        return Counter(_place(guest, VirtAddr(address)) for address in recent)


def _place(guest: Guest, address: VirtAddr) -> str:
    found = guest.symbol_at(address)
    if not found:
        return f"{address:#x}"
    symbol, offset = found
    return f"{symbol.name}+{offset:#x}" + (f" [{symbol.module}]" if symbol.module else "")
