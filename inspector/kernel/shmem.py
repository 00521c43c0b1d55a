"""Shared memory and tmpfs: which pages of a file are swapped out (mm/shmem.c, lib/xarray.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel.bulk import columns
from inspector.kernel.vmas import Vma
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_NODE_MARK, _VALUE_MARK = np.uint64(3), np.uint64(1)  # the low bits of an xarray's entry
_FIRST_NODE = np.uint64(4096)  # below it an internal entry is no node, but says that a neighbour goes on
_MAX_NODES = 1 << 20
_MAX_SHIFT = 64
_MAX_VALUES = 1 << 26


def swapped_pages(kernel: Kernel, area: Vma) -> NDArray[np.uint64]:
    """The pages of a VMA's file, counted from its beginning, that lie in swap and that the VMA covers.

    None where the VMA has no file, or one that is not shared memory's. Raises CorruptGuest.
    """
    none = np.empty(0, np.uint64)
    file = kernel.view("vm_area_struct", area.address).deref("vm_file") if area.inode else None
    mapping = file.deref("f_mapping") if file else None
    inode = file.deref("f_inode") if file else None
    if mapping is None or inode is None or not kernel.symbols.has("shmem_aops"):
        return none
    if mapping.ptr("a_ops") != kernel.symbol("shmem_aops"):
        return none
    around = inode.address - kernel.types.offsetof("shmem_inode_info", "vfs_inode")
    if not kernel.view("shmem_inode_info", VirtAddr(around)).int("swapped"):
        return none
    page = kernel.space.format.page_size
    first, count = area.offset // page, area.size // page
    indexes = _values(mapping.at("i_pages"))
    return indexes[(indexes >= np.uint64(first)) & (indexes < np.uint64(first + count))]


def _values(xarray: StructView) -> NDArray[np.uint64]:
    """The indexes at which an xarray holds a value and no pointer, in order. Raises CorruptGuest."""
    kernel = xarray.kernel
    root = xarray.ptr("xa_head")
    if root & int(_VALUE_MARK):
        return np.zeros(1, np.uint64)
    nodes = np.array([root], np.uint64)
    bases = np.zeros(1, np.uint64)
    found = [np.empty(0, np.uint64)]
    slots = kernel.types.field("xa_node", "slots")
    count = slots.type.count
    seen, above = 0, _MAX_SHIFT
    while True:
        inner = (nodes & _NODE_MARK == 2) & (nodes > _FIRST_NODE)
        at, bases = nodes[inner] - np.uint64(2), bases[inner]
        seen += len(at)
        if not len(at):
            return np.sort(np.concatenate(found))
        (shifts,) = columns(kernel, "xa_node", at, "shift")
        shift = int(shifts[0])
        if seen > _MAX_NODES or shift >= above or (shifts != shift).any():
            raise CorruptGuest(f"the xarray at {xarray.address:#x} is no tree")
        words, ok = kernel.space.gather(at + np.uint64(slots.offset), np.dtype(np.uint64), count)
        if not ok.all():
            raise CorruptGuest(f"a node of the xarray at {xarray.address:#x} is not mapped in the kernel")
        span = np.uint64(1 << shift)
        indexes = bases[:, None] + np.arange(count, dtype=np.uint64) * span
        # An entry of several slots stands in the first; the others name it: sibling entries.
        sibling = (words & _NODE_MARK == 2) & (words <= _FIRST_NODE)
        origin = np.where(sibling, words >> np.uint64(2), np.arange(count, dtype=np.uint64))
        meant = np.take_along_axis(words, np.minimum(origin, count - 1).astype(np.int64), 1)
        starts = indexes[meant & _VALUE_MARK != 0]
        if len(starts) << shift > _MAX_VALUES:
            raise CorruptGuest(f"the xarray at {xarray.address:#x} has over {_MAX_VALUES} values")
        found.append((starts[:, None] + np.arange(int(span), dtype=np.uint64)).ravel())
        nodes, bases, above = words.ravel(), indexes.ravel(), shift
