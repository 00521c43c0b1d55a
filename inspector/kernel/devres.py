"""Managed resources: what the driver core gives back when a driver lets go of its device (devm_*, dmam_*).

Source: drivers/base/devres.c, kernel/dma/mapping.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.kernel import ksyms, lists
from inspector.kernel.modules import Module
from inspector.symbols import Kernel, StructView
from inspector.units import BusAddr, VirtAddr, printable

_MAX_RESOURCES = 1 << 16
COHERENT = "dmam_release"
"""The release function of dmam_alloc_coherent() and dmam_alloc_attrs()."""


@dataclass(frozen=True, slots=True)
class Managed:
    """An entry of a device's devres list: `release` is the function that will give it back.

    `data` is where what it describes lies; `size` the bytes of that, None where the kernel does not keep it
    (5.10 does with CONFIG_DEBUG_DEVRES only).
    """

    release: str
    data: VirtAddr | None
    size: int | None


@dataclass(frozen=True, slots=True)
class ManagedDma:
    """Memory of dmam_alloc_coherent() or dmam_alloc_attrs(): `size` bytes (C: struct dma_devres)."""

    address: VirtAddr
    bus: BusAddr
    size: int


def managed(kernel: Kernel, device: StructView, loaded: list[Module]) -> list[Managed]:
    """What a struct device has, in the order that it was taken. Raises CorruptGuest."""
    nodes = list(lists.nodes(kernel, device.addr("devres_head"), _MAX_RESOURCES))
    found = [_entry(kernel.view("devres_node", _node(kernel, at))) for at in nodes]
    names = ksyms.symbolise(kernel, (release for release, _, _ in found), loaded)
    return [Managed(printable(names[release].partition("+")[0]), data, size) for release, data, size in found]


def managed_dma(kernel: Kernel, entries: list[Managed]) -> list[ManagedDma]:
    """Those of managed() that are memory for DMA."""
    found: list[ManagedDma] = []
    for entry in entries:
        if entry.release == COHERENT and entry.data is not None:
            view = kernel.view("dma_devres", entry.data)
            found.append(ManagedDma(view.ptr("vaddr"), BusAddr(view.int("dma_handle")), view.int("size")))
    return found


def _node(kernel: Kernel, link: VirtAddr) -> VirtAddr:
    return VirtAddr(link - kernel.types.offsetof("devres_node", "entry"))


def _entry(node: StructView) -> tuple[VirtAddr, VirtAddr | None, int | None]:
    """The address of its release function, where its data lie, and their size."""
    kernel = node.kernel
    release = node.ptr("release")
    entry = kernel.view("devres", VirtAddr(node.address - kernel.types.offsetof("devres", "node")))
    size = node.int("size") if node.has("size") else None
    if entry.has("release"):  # 7.2: a node may be a part of something else, and what has data says so
        if release != kernel.symbol("dr_node_release"):
            return release, None, size
        release = entry.ptr("release")
    return release, entry.addr("data"), size
