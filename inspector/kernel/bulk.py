"""Many kernel objects at once: members as columns, red-black trees level by level, frames of ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, CorruptGuest
from inspector.symbols import Kernel
from inspector.symbols.types import Field

_MAX_NODES = 1 << 22  # of one tree
_MAX_HEIGHT = 48  # a red-black tree of _MAX_NODES has at most 2 * 22 levels
MAX_SPAN = 1 << 16  # bytes read of each of many structs; the kernel's own stay far below
_MAX_FRAMES = 1 << 25  # 128 GiB of small pages
_ADDRESS = (1 << 64) - 1

RANGE_FRAME = np.dtype([("pfn", np.uint64), ("va", np.uint64), ("index", np.uint32)])
"""A small page's worth of memory mapped inside range number `index`."""


def columns(
    kernel: Kernel, type_name: str, addresses: NDArray[np.uint64], *paths: str
) -> tuple[NDArray[Any], ...]:
    """Members of the structs at these addresses, an array each: int64 where C has a sign, else uint64.

    A member that this kernel lacks raises NoSuchField; a struct that is not mapped CorruptGuest.
    """
    fields = [kernel.types.field(type_name, path) for path in paths]
    start = min((each.offset for each in fields), default=0) & -8  # memory is gathered in words
    size = max((each.offset + each.width for each in fields), default=0) - start
    if start + size > MAX_SPAN:
        raise BadFormat(f"the types are corrupt: a member of {type_name} lies {start + size} bytes in")
    at = addresses + np.uint64(start) if start else addresses
    raw = _gather(kernel, at, np.dtype(np.uint8), size, f"struct {type_name}")
    return tuple(member(raw[:, each.offset - start :], each) for each in fields)


def member(raw: NDArray[np.uint8], field: Field) -> NDArray[Any]:
    """The number that each row of bytes begins with, where this field lies: int64 or uint64 as columns()."""
    width, bits = field.width, field.bit_size
    kind = "i" if field.type.signed and not bits else "u"
    values = raw[:, :width].view(f"<{kind}{width}")[:, 0].astype(np.int64 if kind == "i" else np.uint64)
    if not bits:
        return values
    values = values >> np.uint64(field.bit_shift) & np.uint64((1 << bits) - 1)
    if not field.type.signed:
        return values
    away = np.uint64(64 - bits)
    return np.asarray((values << away).view(np.int64) >> away.astype(np.int64))


def spread(firsts: NDArray[np.uint64], counts: NDArray[np.int64], step: int = 1) -> NDArray[np.uint64]:
    """All the numbers of runs: `counts` many, `step` apart, from each of `firsts` on."""
    ends = np.cumsum(counts)
    every = np.arange(ends[-1] if len(ends) else 0, dtype=np.uint64)
    befores = (ends - counts).view(np.uint64)  # how many numbers are in the runs before
    if step != 1:
        every, befores = every * np.uint64(step), befores * np.uint64(step)
    return np.asarray(np.repeat(firsts - befores, counts) + every)


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


def mapped_frames(kernel: Kernel, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> NDArray[np.void]:
    """The frames that the kernel's page tables map in the ranges [start, end), as RANGE_FRAME rows.

    By address. Large pages count as the small ones that they hold. A page that a range covers only in part
    belongs to it, and one that two share to the second; else ranges must not overlap. Raises CorruptGuest
    where they are over 128 GiB.
    """
    if not len(starts):
        return np.empty(0, RANGE_FRAME)
    page = kernel.space.format.page_size
    order = np.argsort(starts, kind="stable")
    first, last = starts[order], ends[order]
    last = np.where(last > first, last + np.uint64(page - 1) & np.uint64(-page & _ADDRESS), first)
    first &= np.uint64(-page & _ADDRESS)
    np.minimum(last[:-1], first[1:], out=last[:-1])
    which, vas, pas, sizes = kernel.space.overlaps(first, last)
    counts = (sizes // np.uint64(page)).astype(np.int64)
    total = int(counts.sum())
    if total > _MAX_FRAMES:
        raise CorruptGuest(f"kernel page tables map over {_MAX_FRAMES} pages in {len(first)} ranges")
    rows = np.empty(total, RANGE_FRAME)
    rows["pfn"] = spread(pas // np.uint64(page), counts)
    rows["va"] = spread(vas, counts, page)
    rows["index"] = np.repeat(order[which].astype(np.uint32), counts)
    return rows
