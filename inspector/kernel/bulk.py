"""Many kernel objects at once: members as columns, red-black trees level by level, frames of ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.symbols import Kernel

_MAX_NODES = 1 << 22  # of one tree
_MAX_HEIGHT = 48  # a red-black tree of _MAX_NODES has at most 2 * 22 levels
MAX_SPAN = 1 << 16  # bytes read of each of many structs; the kernel's own stay far below
_MAX_FRAMES = 1 << 25  # 128 GiB of small pages

RANGE_FRAME = np.dtype([("pfn", np.uint64), ("va", np.uint64), ("index", np.uint32)])
"""A small page's worth of memory mapped inside range number `index`."""


def columns(
    kernel: Kernel, type_name: str, addresses: NDArray[np.uint64], *paths: str
) -> tuple[NDArray[Any], ...]:
    """Members of the structs at these addresses, an array each: int64 where C has a sign, else uint64.

    A member that this kernel lacks raises NoSuchField; a struct that is not mapped CorruptGuest.
    """
    fields = [kernel.types.field(type_name, path) for path in paths]
    size = max((each.offset + each.width for each in fields), default=0)
    if size > MAX_SPAN:
        raise BadFormat(f"the types are corrupt: a member of {type_name} lies {size} bytes in")
    raw = _gather(kernel, addresses, np.dtype(np.uint8), size, f"struct {type_name}")
    found: list[NDArray[Any]] = []
    for each in fields:
        width = each.width
        words = np.zeros((len(addresses), 8), np.uint8)
        words[:, :width] = raw[:, each.offset : each.offset + width]
        values = words.view(np.uint64)[:, 0]
        bits = each.bit_size or 8 * width
        values = values >> np.uint64(each.bit_shift) & np.uint64((1 << bits) - 1)
        if each.type.signed:
            away = np.uint64(64 - bits)
            found.append((values << away).view(np.int64) >> away.astype(np.int64))
        else:
            found.append(values)
    return tuple(found)


def words(kernel: Kernel, addresses: NDArray[np.uint64], what: str) -> NDArray[np.uint64]:
    """The pointer or unsigned long at each address. Raises CorruptGuest where one is not mapped."""
    return _gather(kernel, addresses, np.dtype(np.uint64), 1, what)[:, 0]


def _gather(
    kernel: Kernel, addresses: NDArray[np.uint64], dtype: np.dtype[Any], count: int, what: str
) -> NDArray[Any]:
    values, ok = kernel.space.gather(addresses, dtype, count)
    if not ok.all():
        bad = int(addresses[np.flatnonzero(~ok)[0]])
        raise CorruptGuest(f"{what} at {bad:#x} is not mapped in the kernel")
    return values.reshape(len(addresses), count)


def tree_nodes(kernel: Kernel, roots: NDArray[np.uint64], limit: int = _MAX_NODES) -> NDArray[np.uint64]:
    """The address of every struct rb_node below these struct rb_roots (include/linux/rbtree.h), unordered.

    Raises CorruptGuest where a node is met twice or lies deeper than a balanced tree of `limit` nodes goes.
    """
    children = kernel.types.offsetof("rb_node", "rb_right")  # rb_left follows it
    top = kernel.types.offsetof("rb_root", "rb_node")
    level = words(kernel, roots + np.uint64(top), "rb_root") if len(roots) else np.empty(0, np.uint64)
    level = level[level != 0]
    found: list[NDArray[np.uint64]] = []
    total = 0
    for _ in range(_MAX_HEIGHT):
        if not len(level):
            break
        total += len(level)
        if total > limit:
            raise CorruptGuest(f"a tree of more than {limit} nodes: it runs in a loop")
        found.append(level)
        pair = _gather(kernel, level + np.uint64(children), np.dtype(np.uint64), 2, "rb_node")
        level = pair[pair != 0]
    else:
        raise CorruptGuest(f"a red-black tree is over {_MAX_HEIGHT} levels deep: it runs in a loop")
    nodes = np.concatenate(found) if found else np.empty(0, np.uint64)
    if len(np.unique(nodes)) != len(nodes):
        raise CorruptGuest("a red-black tree meets a node twice")
    return nodes


def mapped_frames(
    kernel: Kernel,
    starts: NDArray[np.uint64],
    ends: NDArray[np.uint64],
    leaves: NDArray[np.void] | None = None,
) -> NDArray[np.void]:
    """The frames that the kernel's leaf mappings show in the ranges [start, end).

    `leaves` are those mappings (arch.MAPPING, arch.LEAF), where they have been read; else the page tables of
    the ranges are. RANGE_FRAME rows in the mappings' order. Ranges must not overlap. Large pages count as the
    small ones that they hold; a page that a range covers only in part belongs to it. Raises CorruptGuest
    where they are over 128 GiB.
    """
    order = np.argsort(starts, kind="stable")
    first, last = starts[order], ends[order]
    page = kernel.space.format.page_size

    def place(vas: NDArray[np.uint64], size: NDArray[np.uint64] | np.uint64) -> NDArray[np.int64]:
        # Of all ranges, only the one that begins last before the page's end can hold some of the page.
        places = np.searchsorted(first, vas + (size - np.uint64(1)), "right") - 1
        return np.where((places >= 0) & (last[np.maximum(places, 0)] > vas), places, -1)

    if not len(starts):
        return np.empty(0, RANGE_FRAME)
    if leaves is None:
        leaves = kernel.space.scan(int(starts.min()) & -page, int(ends.max()))
    leaves = leaves[place(leaves["va"], leaves["size"]) >= 0]
    counts = leaves["size"].astype(np.int64) // page
    total = int(counts.sum())
    if total > _MAX_FRAMES:
        raise CorruptGuest(f"kernel page tables map over {_MAX_FRAMES} pages in {len(first)} ranges")
    inside = (np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
    vas = np.repeat(leaves["va"], counts) + inside * np.uint64(page)
    places = place(vas, np.uint64(page))
    chosen = places >= 0
    rows = np.empty(int(chosen.sum()), RANGE_FRAME)
    rows["pfn"] = (np.repeat(leaves["pa"] // np.uint64(page), counts) + inside)[chosen]
    rows["va"], rows["index"] = vas[chosen], order[places[chosen]]
    return rows
