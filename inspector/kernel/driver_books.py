"""Drivers whose own books can be read: the buffers that they keep lists of, through their module's BTF.

A new driver is a function that reads its struct pci_dev, and a line in BOOKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inspector.errors import NoSuchField, NoSuchType
from inspector.kernel import lists
from inspector.symbols import StructView
from inspector.units import BusAddr, PhysAddr, VirtAddr

_MAX_BUFFERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A buffer as its driver keeps it. `place` is where its memory lies, None where only `address` tells.

    The other fields are those of kernel.dma_buffers.DmaBuffer.
    """

    driver: str
    kind: str
    label: str
    bus: BusAddr
    place: PhysAddr | None
    address: VirtAddr | None
    size: int
    direction: str
    pid: int
    transfer: str | None
    transfers: int


def entries(pci_dev: StructView) -> list[Entry]:
    """What the driver of a device has in its book; nothing where it keeps none that is known.

    Raises CorruptGuest.
    """
    driver = pci_dev.deref("dev.driver")
    name = driver.ptr("name") if driver else 0
    read = BOOKS.get(pci_dev.kernel.space.cstring(VirtAddr(name), 64)) if name else None
    data = pci_dev.ptr("dev.driver_data")
    if read is None or not data:
        return []
    try:
        return list(read(pci_dev, data))
    except (NoSuchField, NoSuchType):  # another driver of that name, or a module without BTF
        return []


def _edu(pci_dev: StructView, data: VirtAddr) -> Iterator[Entry]:
    """qemu_images/modules/edu/edu.c: struct edu, and its list of struct edu_buffer."""
    kernel = pci_dev.kernel
    edu = kernel.view("edu", data)
    busy, way = edu.ptr("busy"), "to RAM" if edu.int("to_ram") else "from RAM"
    kinds = {value: name for name, value in kernel.types.enum("edu_kind").items()}
    for buffer in lists.entries(kernel, edu.addr("buffers"), "edu_buffer", "node", _MAX_BUFFERS):
        kind = kinds.get(buffer.int("kind"), "EDU_UNKNOWN").removeprefix("EDU_").lower()
        yield Entry(
            driver="edu",
            kind=kind,
            label=f"buffer {buffer.int('number')}",
            bus=BusAddr(buffer.int("bus")),
            place=PhysAddr(buffer.int("place")) if buffer.int("place") else None,
            address=buffer.ptr("memory") or None,
            size=buffer.int("size"),
            direction="BIDIRECTIONAL",
            pid=buffer.int("owner"),
            transfer=way if busy == buffer.address else None,
            transfers=edu.int("transfers"),
        )


BOOKS: dict[str, Callable[[StructView, VirtAddr], Iterator[Entry]]] = {"edu": _edu}
"""By the driver's name (struct device_driver)."""
