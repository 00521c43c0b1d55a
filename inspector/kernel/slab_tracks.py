"""Who allocated a slab cache's objects, where the kernel was told to keep it (slub_debug=U; mm/slub.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import NoSuchField, NoSuchType
from inspector.kernel import bulk
from inspector.kernel.slab_objects import objects
from inspector.kernel.slabs import SlabCache
from inspector.symbols import Kernel

TRACK = np.dtype([("address", np.uint64), ("caller", np.uint64), ("pid", np.int32), ("when", np.uint64)])
"""An allocated object: where the allocation returned to, by which task, and when, in jiffies."""

_STORE_USER = "STORE_USER"


def tracks(kernel: Kernel, cache: SlabCache) -> NDArray[np.void] | None:
    """Who allocated each object that is allocated, as TRACK rows; None where the cache does not keep it.

    C: get_track(), struct track; it lies behind the object, and behind the free pointer where that does not
    lie in the object. Raises CorruptGuest, UsageError as slab_objects.objects().
    """
    if _STORE_USER not in cache.flag_names:
        return None
    found = objects(kernel, cache)
    found = found[found["allocated"]]
    view = kernel.view("kmem_cache", cache.address)
    end = view.int("inuse")
    if view.int("offset") >= end:  # freeptr_outside_object()
        end += kernel.pointer_size
    rows = np.zeros(len(found), TRACK)
    rows["address"] = found["address"]
    try:
        caller, pid, when = bulk.columns(
            kernel, "track", found["address"] + np.uint64(end), "addr", "pid", "when"
        )
    except (NoSuchType, NoSuchField):  # a kernel without CONFIG_SLUB_DEBUG has no such struct
        return None
    rows["caller"], rows["pid"], rows["when"] = caller.view(np.uint64), pid, when
    known: NDArray[np.void] = rows[rows["caller"] != 0]
    return known


def jiffies(kernel: Kernel) -> int:
    """The kernel's clock for TRACK's `when` (C: jiffies)."""
    return kernel.space.u64(kernel.symbol("jiffies_64"))
