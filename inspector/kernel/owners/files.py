"""The page cache's kinds, and of which file each of its pages is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat
from inspector.kernel.files import file_names
from inspector.kernel.frames import FrameState
from inspector.kernel.hugetlb import are_hugetlb, hstates
from inspector.kernel.owners.canvas import Canvas
from inspector.kernel.owners.model import Owner
from inspector.kernel.recall import recall
from inspector.symbols import Kernel

_POINTER = ~np.uint64(3)  # PAGE_MAPPING_FLAGS


def paint(canvas: Canvas) -> None:
    """Tell swap cache, shared memory and hugetlb from other files' pages, and name the files."""
    frames, cached = canvas.frames, _swap_cache(canvas)
    places = np.flatnonzero(frames.used_as(FrameState.FILE) & ~cached)
    pfns = frames.used[places]
    heads = frames.head[places]
    of_head, tails = places.copy(), np.flatnonzero(pfns != heads)
    of_head[tails] = np.minimum(frames.used.searchsorted(heads[tails]), len(frames.used) - 1)
    spaces, which = np.unique(frames.mapping[of_head] & _POINTER, return_inverse=True)
    kinds, names = recall(canvas.kernel, _files, tuple(spaces.tolist()))
    canvas.owner[pfns] = kinds[which]
    canvas.detail[pfns] = canvas.labelled(names)[which]
    canvas.index[places] = frames.index[of_head] + (pfns - heads).astype(np.uint64)
    _hugetlb(canvas)


def _hugetlb(canvas: Canvas) -> None:
    """All of hugetlb's: beside files' pages those of private mappings, and the free ones in its pool."""
    if not recall(canvas.kernel, _any_hugetlb):
        return
    pfns, heads, which = canvas.compound(Owner.ANON, Owner.DRIVER, Owner.MARKED, Owner.UNMARKED)
    pfns = pfns[are_hugetlb(canvas.memmap, heads, canvas.frames.word[heads])[which]]
    free = np.isin(canvas.owner[pfns], (Owner.MARKED, Owner.UNMARKED))
    canvas.owner[pfns] = Owner.HUGETLB
    canvas.detail[pfns[free]] = canvas.label("free, in the pool")


def _any_hugetlb(kernel: Kernel) -> bool:
    return any(state.int("nr_huge_pages") for state in hstates(kernel))


def _swap_cache(canvas: Canvas) -> NDArray[np.bool_]:
    """Which of the frames in use it has: PG_swapcache, another's bit too, counts with PG_swapbacked."""
    frames = canvas.frames
    mask = np.uint64(_bit(canvas, "PG_swapcache") | _bit(canvas, "PG_swapbacked"))
    found: NDArray[np.bool_] = frames.used_flags & mask == mask
    found &= frames.used_as(FrameState.ANON) | frames.used_as(FrameState.FILE)
    canvas.owner[frames.used[found]] = Owner.SWAP_CACHE
    return found


def _bit(canvas: Canvas, name: str) -> int:
    bit = canvas.kernel.types.constant(name)
    if not 0 <= bit < 64:
        raise BadFormat(f"the types are corrupt: {name} is bit {bit}")
    return 1 << bit


def _files(kernel: Kernel, spaces: tuple[int, ...]) -> tuple[NDArray[np.uint8], list[str]]:
    """What each struct address_space is for, and its file's name."""
    every = np.array(spaces, np.uint64)
    return _kinds(kernel, every), file_names(kernel, every)


def _kinds(kernel: Kernel, spaces: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """What each is for: its operations tell."""
    found = np.full(len(spaces), Owner.PAGE_CACHE, np.uint8)
    at = spaces + np.uint64(kernel.types.offsetof("address_space", "a_ops"))
    operations, _ = kernel.space.gather(at, np.dtype(np.uint64))
    for symbol, owner in {"shmem_aops": Owner.SHMEM, "hugetlbfs_aops": Owner.HUGETLB}.items():
        if symbol in kernel.symbols:
            found[operations == np.uint64(kernel.symbol(symbol))] = owner
    return found
