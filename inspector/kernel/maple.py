"""Maple trees (include/linux/maple_tree.h, lib/maple_tree.c; new in 6.1, commit 54a611b60590)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.errors import CorruptGuest
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_NODE_MASK = 0xFF  # nodes are 256-byte aligned; the low byte of a node pointer holds its type
_TYPE_SHIFT, _TYPE_MASK = 3, 0xF
_NOT_A_POINTER = 4096
_MAX_DEPTH = 31  # MAPLE_HEIGHT_MAX
_MAX_NODES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One range of the tree: indices `first` to `last` inclusive, and the pointer stored for them."""

    first: int
    last: int
    value: VirtAddr


def entries(tree: StructView) -> Iterator[Entry]:
    """Every stored range of a struct maple_tree in order; gaps are left out.

    Raises CorruptGuest where nodes loop, lie too deep, or have a type that does not exist.
    """
    root = tree.ptr("ma_root")
    top = tree.kernel.pointer_mask
    if root & 3 == 2 and root > _NOT_A_POINTER:  # xa_is_node(), include/linux/xarray.h
        yield from _Walk(tree.kernel).node(root, 0, top, 0)
    elif root:
        yield Entry(0, 0, root)  # a tree with one entry keeps it in the root pointer


def find(tree: StructView, index: int) -> VirtAddr | None:
    """The pointer that is stored for an index; None for none. Raises CorruptGuest."""
    root = tree.ptr("ma_root")
    if root & 3 == 2 and root > _NOT_A_POINTER:
        return _Walk(tree.kernel).find(root, index)
    return root if root and index == 0 else None


class _Walk:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        types = kernel.types.enum("maple_type")
        # Both kinds of range node have the same layout; the one with gaps has fewer slots.
        plain, gaps = self._layout("maple_range_64"), self._layout("maple_arange_64")
        self.layouts = {
            types["maple_leaf_64"]: plain,
            types["maple_range_64"]: plain,
            types["maple_arange_64"]: gaps,
        }
        self.leaves = {types["maple_leaf_64"]}
        self.visited = 0

    def _layout(self, name: str) -> tuple[int, int, int]:
        slot = self.kernel.types.field(name, "slot")
        return self.kernel.types.offsetof(name, "pivot"), slot.offset, slot.type.count

    def node(self, encoded: int, low: int, high: int, depth: int) -> Iterator[Entry]:
        leaf = encoded >> _TYPE_SHIFT & _TYPE_MASK in self.leaves
        for first, last, value in self.slots(encoded, low, high, depth):
            if not leaf:
                yield from self.node(value, first, last, depth + 1)
            elif value:
                yield Entry(first, last, VirtAddr(value))

    def slots(self, encoded: int, low: int, high: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """Each slot of a node, that covers `low` to `high`: first and last index, and what is in it."""
        kind = encoded >> _TYPE_SHIFT & _TYPE_MASK
        self.visited += 1
        if kind not in self.layouts or depth > _MAX_DEPTH or self.visited > _MAX_NODES:
            raise CorruptGuest(f"maple node {encoded:#x} at depth {depth} is not a node: type {kind}")
        pivot_at, slot_at, slots = self.layouts[kind]
        raw = self.kernel.space.read(VirtAddr(encoded & ~_NODE_MASK), _NODE_MASK + 1)
        size = self.kernel.pointer_size
        words = [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]
        for index in range(slots):
            last = words[pivot_at // size + index] if index < slots - 1 else high
            if last == 0 and index:  # an unused pivot: this slot takes the rest
                last = high
            if not low <= last <= high:
                raise CorruptGuest(f"maple node {encoded:#x}: pivot {last:#x} outside {low:#x}-{high:#x}")
            yield low, last, words[slot_at // size + index]
            if last == high:
                return
            low = last + 1

    def find(self, encoded: int, index: int) -> VirtAddr | None:
        low, high = 0, self.kernel.pointer_mask
        while True:
            leaf = encoded >> _TYPE_SHIFT & _TYPE_MASK in self.leaves
            low, high, value = next(
                slot for slot in self.slots(encoded, low, high, self.visited) if slot[0] <= index <= slot[1]
            )
            if leaf:
                return VirtAddr(value) if value else None
            encoded = value
