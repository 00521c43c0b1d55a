"""The resource tree: what each range of physical addresses is for (kernel/resource.c; /proc/iomem)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.errors import CorruptGuest
from inspector.kernel.recall import recall
from inspector.symbols import Kernel, StructView
from inspector.units import PhysAddr, printable

_MAX_RESOURCES = 1 << 16
_MAX_DEPTH = 64
_MAX_NAME = 256

# include/linux/ioport.h: macros.
_FLAGS = {
    "IO": 0x100, "MEM": 0x200, "REG": 0x300, "IRQ": 0x400, "DMA": 0x800, "BUS": 0x1000,
    "PREFETCH": 0x2000, "READONLY": 0x4000, "CACHEABLE": 0x8000, "MUXED": 0x400000,
    "SYSRAM": 0x01000000, "EXCLUSIVE": 0x08000000, "DISABLED": 0x10000000, "UNSET": 0x20000000,
    "AUTO": 0x40000000, "BUSY": 0x80000000,
}  # fmt: skip
_TYPE_BITS = 0x1F00


@dataclass(frozen=True, slots=True)
class Resource:
    """A struct resource: `start` to `end` exclusive, and what lies in it. `depth` is 0 for those at the top.

    `flags` are IORESOURCE_* bits; `parent` is the index of the one around it in the list, None at the top.
    """

    start: PhysAddr
    end: PhysAddr
    name: str
    flags: int
    depth: int
    parent: int | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def flag_names(self) -> tuple[str, ...]:
        """The IORESOURCE_* flags that are set; the kind of resource first."""
        return tuple(
            name
            for name, bits in _FLAGS.items()
            if (self.flags & _TYPE_BITS == bits if bits & _TYPE_BITS else self.flags & bits)
        )

    def __str__(self) -> str:
        indent = "  " * min(self.depth, 5)  # MAX_IORES_LEVEL
        return f"{indent}{self.start:08x}-{self.end - 1:08x} : {self.name}"


def iomem(kernel: Kernel) -> list[Resource]:
    """The tree of physical memory in the order of /proc/iomem. Raises CorruptGuest."""
    return list(recall(kernel, _iomem))


def _iomem(kernel: Kernel) -> list[Resource]:
    found: list[Resource] = []
    for view, depth, parent in _walk(kernel.variable("resource", "iomem_resource")):
        name = view.ptr("name")
        found.append(
            Resource(
                start=PhysAddr(view.int("start")),
                end=PhysAddr(view.int("end") + 1),
                name=printable(kernel.space.cstring(name, _MAX_NAME)) if name else "<BAD>",
                flags=view.int("flags"),
                depth=depth,
                parent=parent,
            )
        )
    return found


def _walk(root: StructView) -> Iterator[tuple[StructView, int, int | None]]:
    """Every resource below the root in order, with its depth and the index of its parent."""
    seen: set[int] = set()
    above: list[int | None] = [None]  # the index of the resource around each depth
    stack = [(root.deref("child"), 0)]
    while stack:
        view, depth = stack.pop()
        if view is None:
            continue
        if view.address in seen or len(seen) >= _MAX_RESOURCES or depth > _MAX_DEPTH:
            raise CorruptGuest(f"the resource tree does not end: it comes to {view.address:#x} again")
        index = len(seen)
        seen.add(view.address)
        del above[depth + 1 :]
        yield view, depth, above[depth]
        above.append(index)
        stack += [(view.deref("sibling"), depth), (view.deref("child"), depth + 1)]
