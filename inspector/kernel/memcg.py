"""Memory cgroups, and which one each page is charged to (mm/memcontrol.c; /proc/kpagecgroup)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel import lists
from inspector.kernel.bulk import columns
from inspector.kernel.memmap import MemMap
from inspector.kernel.pageflags import PageTypes
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr, printable

_OBJEXTS, _KMEM = 1 << 0, 1 << 1  # enum page_memcg_data_flags
_POINTER = ~0x7  # OBJEXTS_FLAGS_MASK and what it was before
_MAX_GROUPS = 1 << 18
_MAX_DEPTH = 256
_MAX_NAME = 256


class ChargeKind(IntEnum):
    """How a page is charged."""

    NONE = 0
    USER = 1  # memory of user space, page cache included
    KERNEL = 2  # memory of the kernel's own, taken on behalf of the group
    OBJECTS = 3  # a slab: each of its objects is charged, to whomever it is for


CHARGE = np.dtype([("inode", np.uint64), ("kind", np.uint8)])
"""`inode` is the cgroup's directory's; 0 where the page is charged to none, or its objects one by one."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A memory cgroup; `path` as in /proc/PID/cgroup, untrusted. `usage`, `max` and `high` are in pages.

    `inode` is that of its directory, which /proc/kpagecgroup names it by. `usage` is None for the root, which
    counts nothing of its own; `max` and `high` are None where there is no limit. A group whose directory is
    gone is not `online`; it stays as long as pages are charged to it.
    """

    path: str
    inode: int
    usage: int | None
    max: int | None
    high: int | None
    swap_usage: int | None
    online: bool
    address: VirtAddr
    parent: VirtAddr | None


def memory_groups(kernel: Kernel) -> list[MemoryGroup]:
    """Every memory cgroup, each before what is in it; none where they are off. Raises CorruptGuest."""
    if "root_mem_cgroup" not in kernel.symbols or not kernel.word("root_mem_cgroup"):
        return []
    css = kernel.types.offsetof("mem_cgroup", "css")
    online = kernel.types.constant("CSS_ONLINE")
    found: list[MemoryGroup] = []
    seen: set[int] = set()
    stack: list[tuple[VirtAddr, VirtAddr | None]] = [(VirtAddr(kernel.word("root_mem_cgroup")), None)]
    while stack:
        address, parent = stack.pop()
        if address in seen or len(seen) > _MAX_GROUPS:
            raise CorruptGuest(f"the tree of memory cgroups comes to {address:#x} again")
        seen.add(address)
        view = kernel.view("mem_cgroup", address)
        found.append(_group(view, parent, online))
        head = view.addr("css.children")
        children = lists.entries(kernel, head, "cgroup_subsys_state", "sibling", _MAX_GROUPS)
        stack += [(VirtAddr(child.address - css), address) for child in list(children)[::-1]]
    return found


def charges(
    kernel: Kernel, memmap: MemMap | None = None, groups: Sequence[MemoryGroup] | None = None
) -> NDArray[np.void]:
    """What each PFN from 0 to the last that has a struct page is charged to, as CHARGE rows.

    A compound page's pages are charged as its first is. As in /proc/kpagecgroup, a group that is gone is
    answered for by the nearest above it that is not.
    """
    memmap = memmap or MemMap(kernel)
    rows = np.zeros(memmap.end, CHARGE)
    path = _path(kernel)
    if path is None:
        return rows
    words = np.zeros(memmap.end, np.uint64)
    heads = np.arange(memmap.end)
    for first, end in memmap.runs:
        words[first:end] = memmap.column(first, end, path, "<u8")
        heads[first:end] = memmap.heads(first, end)
    words = words[heads]
    charged = np.flatnonzero(words)
    rows["inode"][charged], rows["kind"][charged] = _resolve(
        kernel, words[charged], memory_groups(kernel) if groups is None else groups
    )
    if path == "mem_cgroup":
        _mark_kernel_pages(memmap, rows, heads)
    return rows


def charge(kernel: Kernel, page: StructView) -> tuple[str, ChargeKind]:
    """What one struct page, no tail, is charged to: the cgroup's path and how; as charges() tells it."""
    path = _path(kernel)
    word = page.ptr(path) if path else 0
    if not word:
        return "", ChargeKind.NONE
    groups = memory_groups(kernel)
    inodes, kinds = _resolve(kernel, np.array([word], np.uint64), groups)
    kind = ChargeKind(int(kinds[0]))
    if path == "mem_cgroup" and PageTypes(kernel).name(page.int("page_type") & 0xFFFFFFFF) == "kmemcg":
        kind = ChargeKind.KERNEL
    return next((group.path for group in groups if group.online and group.inode == inodes[0]), ""), kind


def _mark_kernel_pages(memmap: MemMap, rows: NDArray[np.void], heads: NDArray[np.int64]) -> None:
    """Before 18b2db3b0385 (5.11) it was a page type, PG_kmemcg, that told the kernel's own memory."""
    words = np.zeros(memmap.end, np.uint32)
    for first, end in memmap.runs:
        words[first:end] = memmap.column(first, end, "page_type", "<u4")
    types = PageTypes(memmap.kernel)
    marked = types.kinds(words[heads]) == types.names.index("kmemcg")
    rows["kind"][marked & (rows["kind"] == ChargeKind.USER)] = ChargeKind.KERNEL


def _resolve(
    kernel: Kernel, words: NDArray[np.uint64], groups: Sequence[MemoryGroup]
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The inode and kind of each memcg_data word."""
    unique, places = np.unique(words, return_inverse=True)
    objects = unique & np.uint64(_OBJEXTS) != 0
    pointers = unique & np.uint64(_POINTER & 0xFFFF_FFFF_FFFF_FFFF)
    inodes = _answering(groups)
    # A word points to the group or, for kernel memory, to an obj_cgroup that stands for it (b4e0b68fbd9d,
    # 5.13); the newest kernels charge every page through one. What is no group is an obj_cgroup.
    direct = np.isin(pointers, np.array(list(inodes), np.uint64))
    through = ~direct & ~objects & (pointers != 0)
    standing = kernel.types.has("obj_cgroup", "memcg")
    if standing and through.any():
        pointers[through] = columns(kernel, "obj_cgroup", pointers[through], "memcg")[0]
    found = np.array([inodes.get(int(pointer), 0) for pointer in pointers], np.uint64)
    found[objects] = 0
    kernels = (unique & np.uint64(_KMEM) != 0) & ~objects
    kinds = np.select([objects, kernels], [ChargeKind.OBJECTS, ChargeKind.KERNEL], ChargeKind.USER)
    return found[places], kinds.astype(np.uint8)[places]


def _answering(groups: Sequence[MemoryGroup]) -> dict[int, int]:
    """For each group the inode of itself or of the nearest above it that is online."""
    inodes: dict[int, int] = {}
    for group in groups:  # parents come first
        above = inodes.get(group.parent, 0) if group.parent is not None else 0
        inodes[group.address] = group.inode if group.online else above
    return inodes


def _path(kernel: Kernel) -> str | None:
    """The member of struct page; bcfe06bf2622 (5.11) made memcg_data of mem_cgroup."""
    return next((name for name in ("memcg_data", "mem_cgroup") if kernel.types.has("page", name)), None)


def _group(view: StructView, parent: VirtAddr | None, online: int) -> MemoryGroup:
    node = _node(view)
    return MemoryGroup(
        path=_node_path(node) if node else "",
        inode=node.ptr("id") if node else 0,
        usage=view.int("memory.usage.counter") if parent is not None else None,
        max=_limit(view, "memory.max"),
        high=_limit(view, "memory.high"),
        swap_usage=view.int("swap.usage.counter") if parent is not None and view.has("swap") else None,
        online=bool(view.int("css.flags") & online),
        address=view.address,
        parent=parent,
    )


def _limit(view: StructView, path: str) -> int | None:
    """PAGE_COUNTER_MAX, the most that a long can count in bytes, stands for no limit."""
    pages = view.int(path)
    return None if pages >= (1 << 63) // view.kernel.space.format.page_size - 1 else pages


def _node(view: StructView) -> StructView | None:
    """The directory's struct kernfs_node."""
    group = view.deref("css.cgroup")
    return group.deref("kn") if group else None


def _node_path(node: StructView) -> str:
    parts: list[str] = []
    at: StructView | None = node
    for _ in range(_MAX_DEPTH):
        # 633488947ef6 (6.15) put the parent behind RCU, and two underscores before it.
        above = at.deref("__parent" if at.has("__parent") else "parent") if at else None
        if at is None or above is None:  # the root has an empty name
            return "/" + "/".join(reversed(parts))
        name = at.ptr("name")
        parts.append(printable(at.kernel.space.cstring(name, _MAX_NAME)) if name else "")
        at = above
    raise CorruptGuest(f"the path of the cgroup at {node.address:#x} does not end")
