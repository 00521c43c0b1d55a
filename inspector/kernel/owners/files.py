"""The page cache's kinds, and of which file each of its pages is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat
from inspector.kernel.files import file_names
from inspector.kernel.hugetlb import are_hugetlb
from inspector.kernel.owners.canvas import Canvas
from inspector.kernel.owners.model import Owner

_POINTER = ~np.uint64(3)  # PAGE_MAPPING_FLAGS


def paint(canvas: Canvas) -> None:
    """Tell swap cache, shared memory and hugetlb from other files' pages, and name the files."""
    _swap_cache(canvas)
    frames = canvas.frames
    places = np.flatnonzero(canvas.owner[frames.used] == Owner.PAGE_CACHE)
    pfns = frames.used[places]
    heads = frames.head[places]
    mappings = frames.mapping[np.searchsorted(frames.used, heads)] & _POINTER
    spaces, which = np.unique(mappings, return_inverse=True)
    kinds = _kinds(canvas, spaces)
    canvas.owner[pfns] = kinds[which]
    canvas.detail[pfns] = canvas.labelled(file_names(canvas.kernel, spaces))[which]
    canvas.index[places] = _index(canvas, heads) + (pfns - heads).astype(np.uint64)
    _hugetlb(canvas)


def _hugetlb(canvas: Canvas) -> None:
    """All of hugetlb's: beside files' pages those of private mappings, and the free ones in its pool."""
    pfns, heads, which = canvas.compound(Owner.ANON, Owner.DRIVER, Owner.MARKED, Owner.UNMARKED)
    pfns = pfns[are_hugetlb(canvas.memmap, heads, canvas.frames.word[heads])[which]]
    free = np.isin(canvas.owner[pfns], (Owner.MARKED, Owner.UNMARKED))
    canvas.owner[pfns] = Owner.HUGETLB
    canvas.detail[pfns[free]] = canvas.label("free, in the pool")


def _swap_cache(canvas: Canvas) -> None:
    """PG_swapcache shares its bit with other names; it counts with PG_swapbacked only."""
    pfns = canvas.owned(Owner.ANON, Owner.PAGE_CACHE)
    mask = np.uint64(_bit(canvas, "PG_swapcache") | _bit(canvas, "PG_swapbacked"))
    canvas.owner[pfns[canvas.frames.flags[pfns] & mask == mask]] = Owner.SWAP_CACHE


def _bit(canvas: Canvas, name: str) -> int:
    bit = canvas.kernel.types.constant(name)
    if not 0 <= bit < 64:
        raise BadFormat(f"the types are corrupt: {name} is bit {bit}")
    return 1 << bit


def _kinds(canvas: Canvas, spaces: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """What each struct address_space is for: its operations tell."""
    kernel = canvas.kernel
    found = np.full(len(spaces), Owner.PAGE_CACHE, np.uint8)
    at = spaces + np.uint64(kernel.types.offsetof("address_space", "a_ops"))
    operations, _ = kernel.space.gather(at, np.dtype(np.uint64))
    for symbol, owner in {"shmem_aops": Owner.SHMEM, "hugetlbfs_aops": Owner.HUGETLB}.items():
        if symbol in kernel.symbols:
            found[operations == np.uint64(kernel.symbol(symbol))] = owner
    return found


def _index(canvas: Canvas, heads: NDArray[np.int64]) -> NDArray[np.uint64]:
    """page->index of each head."""
    types = canvas.kernel.types
    # acc53a0b4c15 (6.16): kept for the folio alone
    path = "index" if types.has("page", "index") else "__folio_index"
    at = canvas.memmap.addresses(heads.astype(np.uint64)) + np.uint64(types.offsetof("page", path))
    return canvas.kernel.space.gather(at, np.dtype(np.uint64))[0]
