"""PCI devices: what they are, where their BARs lie, and what memory they can reach.

Source: include/linux/pci.h, include/linux/device.h, drivers/pci/; /sys/bus/pci/devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.errors import CorruptGuest
from inspector.kernel import lists
from inspector.kernel.devres import Managed, managed
from inspector.kernel.dma import DmaPool, pools_of
from inspector.kernel.modules import Module, modules
from inspector.kernel.pci_classes import class_name
from inspector.symbols import Kernel, StructView
from inspector.units import PhysAddr, VirtAddr, format_size, printable

_MAX_BUSES = 1 << 16
_MAX_DEVICES = 1 << 16
_MAX_NAME = 128
_MAX_BARS = 64
_STANDARD = 6  # PCI_STD_NUM_BARS
_NO_NODE = -1  # NUMA_NO_NODE
_ALL_ONES = (1 << 64) - 1

# include/linux/ioport.h: macros.
_IO, _MEM, _PREFETCH, _MEM_64, _UNSET = 0x100, 0x200, 0x2000, 0x00100000, 0x20000000
_DISABLED = 0x10000000


@dataclass(frozen=True, slots=True)
class Bar:
    """A struct resource of a device: `start` is a physical address, or a port number where `kind` is IO.

    `name` is BAR 0 to BAR 5, ROM, VF BAR n (SR-IOV), window n (of a bridge) or region n (of anything else);
    `index` its place among the lines of sysfs's `resource`, `size` in bytes, `flags` IORESOURCE_* bits.
    """

    index: int
    name: str
    kind: str
    start: PhysAddr
    size: int
    flags: int

    @property
    def end(self) -> PhysAddr:
        """Exclusive."""
        return PhysAddr(self.start + self.size)

    @property
    def is_64(self) -> bool:
        """Whether it may lie above 4 GiB."""
        return bool(self.flags & _MEM_64)

    @property
    def prefetch(self) -> bool:
        """Whether reading it has no side effects."""
        return bool(self.flags & _PREFETCH)

    @property
    def assigned(self) -> bool:
        """Whether it has been given a place; `start` means nothing otherwise."""
        return not self.flags & _UNSET

    def __str__(self) -> str:
        if not self.assigned:
            return f"{format_size(self.size)}, without a place"
        what = "ports" if self.kind == "IO" else "memory"
        kinds = ["64-bit"] * self.is_64 + ["prefetchable"] * self.prefetch
        return ", ".join([f"{what} {self.start:#x} to {self.end - 1:#x}", format_size(self.size), *kinds])


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A struct pci_dev. What this kernel does not keep, or nobody has set, is None.

    `address` is domain:bus:device.function as in sysfs, `class_code` 24 bits: base class, subclass and
    programming interface. `driver` is the one that is bound to it, `module` where that comes from, None if it
    is built in. `irq` is its INTx line or, with MSI, the vector's number; `interrupts` INTx, MSI or MSI-X.
    `enabled` counts pci_enable_device(). `bridge_to` is the bus number behind a bridge.

    DMA: `dma_mask` bounds streaming mappings, `coherent_dma_mask` dma_alloc_coherent(), `bus_dma_limit` what
    the way to memory lets pass, all as the highest address. `dma_ops` is "direct", "iommu" or the symbol of
    its struct dma_map_ops. `max_segment_size`, `segment_boundary_mask` and `min_align_mask` are in bytes.
    `pools` are its DMA pools, `managed` what the driver core will give back for its driver.
    """

    address: str
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    revision: int
    class_code: int
    driver: str | None
    module: str | None
    bars: tuple[Bar, ...]
    irq: int
    interrupts: str
    enabled: int
    bus_master: bool
    bridge_to: int | None
    dma_mask: int | None
    coherent_dma_mask: int
    bus_dma_limit: int | None
    dma_ops: str
    max_segment_size: int | None
    segment_boundary_mask: int | None
    min_align_mask: int | None
    numa_node: int | None
    pools: tuple[DmaPool, ...]
    managed: tuple[Managed, ...]
    at: VirtAddr

    @property
    def class_name(self) -> str:
        """The class in words."""
        return class_name(self.class_code)

    @property
    def reach(self) -> int | None:
        """The highest bus address that a streaming mapping may have; None for a device without DMA."""
        if self.dma_mask is None:
            return None
        return min(self.dma_mask, self.bus_dma_limit or _ALL_ONES)


def mask_text(mask: int) -> str:
    """A DMA mask in words: its bits, and the end of what it reaches."""
    if mask == _ALL_ONES:
        return "64 bits, all memory"
    return f"{mask.bit_length()} bits, to {format_size(mask + 1)}"


def pci_devices(kernel: Kernel) -> list[PciDevice]:
    """Every PCI device by address; none for a kernel without PCI. Raises CorruptGuest."""
    loaded = modules(kernel)
    found = [_device(view, loaded) for view in device_views(kernel)]
    return sorted(found, key=lambda device: device.address)


def device_views(kernel: Kernel) -> Iterator[StructView]:
    """The struct pci_dev of every device, bus by bus."""
    if "pci_root_buses" not in kernel.symbols:
        return
    seen: set[VirtAddr] = set()
    heads = [kernel.symbol("pci_root_buses")]
    while heads:
        for bus in lists.entries(kernel, heads.pop(), "pci_bus", "node", _MAX_BUSES):
            if bus.address in seen or len(seen) >= _MAX_BUSES:
                raise CorruptGuest(f"the PCI buses run in a loop: at {bus.address:#x} again")
            seen.add(bus.address)
            heads.append(bus.addr("children"))
            yield from lists.entries(kernel, bus.addr("devices"), "pci_dev", "bus_list", _MAX_DEVICES)


def name_of(device: StructView) -> str:
    """What sysfs calls a struct device (C: dev_name)."""
    name = device.ptr("kobj.name")
    return printable(device.kernel.space.cstring(name, _MAX_NAME)) if name else ""


def _device(view: StructView, loaded: list[Module]) -> PciDevice:
    device = view.at("dev")
    mask, limits, behind = device.ptr("dma_mask"), device.deref("dma_parms"), view.deref("subordinate")
    driver, module = _driver(device)
    return PciDevice(
        address=name_of(device),
        vendor=view.int("vendor"),
        device=view.int("device"),
        subsystem_vendor=view.int("subsystem_vendor"),
        subsystem_device=view.int("subsystem_device"),
        revision=view.int("revision"),
        class_code=view.int("class"),
        driver=driver,
        module=module,
        bars=tuple(_bars(view)),
        irq=view.int("irq"),
        interrupts=_interrupts(view),
        enabled=view.int("enable_cnt.counter"),
        bus_master=bool(view.int("is_busmaster")),
        bridge_to=behind.int("number") if behind else None,
        dma_mask=view.kernel.space.u64(mask) if mask else None,
        coherent_dma_mask=device.int("coherent_dma_mask"),
        bus_dma_limit=(device.int("bus_dma_limit") if device.has("bus_dma_limit") else 0) or None,
        dma_ops=dma_ops(device),
        max_segment_size=limits.int("max_segment_size") if limits else None,
        segment_boundary_mask=limits.int("segment_boundary_mask") if limits else None,
        min_align_mask=_optional(limits, "min_align_mask"),  # since 5.12, and in stable 5.10
        numa_node=_numa_node(device),
        pools=tuple(pools_of(device)),
        managed=tuple(managed(view.kernel, device, loaded)),
        at=view.address,
    )


def dma_ops(device: StructView) -> str:
    """Who maps memory for a struct device: "direct", "iommu" or a symbol (C: get_dma_ops)."""
    kernel = device.kernel
    if _uses_iommu(device):
        return "iommu"
    ops = device.ptr("dma_ops") if device.has("dma_ops") else 0
    if not ops and "dma_ops" in kernel.symbols:  # arch/x86/kernel/pci-dma.c
        ops = kernel.word("dma_ops")
    if not ops:
        return "direct"
    named = kernel.symbols.lookup(VirtAddr(ops))
    return printable(named[0].name) if named else f"{ops:#x}"


def _uses_iommu(device: StructView) -> bool:
    """C: use_dma_iommu(); before "dma-mapping: direct calls for dma-iommu" (6.12) there were only dma_ops."""
    if device.has("dma_iommu"):
        return bool(device.int("dma_iommu"))
    if not device.kernel.types.has("struct_device_flags"):  # 7.2 has it there
        return False
    bit = device.kernel.types.enum("struct_device_flags").get("DEV_FLAG_DMA_IOMMU")
    return bit is not None and bool(device.int("flags[0]") >> bit & 1)


def _optional(view: StructView | None, path: str) -> int | None:
    return view.int(path) if view and view.has(path) else None


def _numa_node(device: StructView) -> int | None:
    node = _optional(device, "numa_node")
    return None if node == _NO_NODE else node


def _driver(device: StructView) -> tuple[str | None, str | None]:
    """The names of the driver and of its module."""
    driver = device.deref("driver")
    if driver is None:
        return None, None
    name, owner = driver.ptr("name"), driver.deref("owner")
    text = printable(device.kernel.space.cstring(name, _MAX_NAME)) if name else ""
    return text, printable(owner.text("name")) if owner else None


def _interrupts(view: StructView) -> str:
    for member, name in (("msix_enabled", "MSI-X"), ("msi_enabled", "MSI")):
        if view.int(member):
            return name
    return "INTx"


def _bars(view: StructView) -> Iterator[Bar]:
    """The resources that the device has; sysfs has lines of zeros for the others."""
    count = view.kernel.types.field("pci_dev", "resource").type.count
    if count > _MAX_BARS:
        raise CorruptGuest(f"a PCI device of {count} resources")
    windows = view.kernel.types.constant("PCI_BRIDGE_RESOURCES")
    for index in range(count):
        resource = view.at(f"resource[{index}]")
        flags, start = resource.int("flags"), resource.int("start")
        if not flags & (_IO | _MEM) or (index >= windows and flags & (_UNSET | _DISABLED)):
            continue
        yield Bar(
            index=index,
            name=_bar_name(index, windows, "window" if view.ptr("subordinate") else "region"),
            kind="IO" if flags & _IO else "MEM",
            start=PhysAddr(start),
            size=resource.int("end") + 1 - start,
            flags=flags,
        )


def _bar_name(index: int, windows: int, further: str) -> str:
    if index < _STANDARD:
        return f"BAR {index}"
    if index == _STANDARD:
        return "ROM"
    return f"{further} {index - windows}" if index >= windows else f"VF BAR {index - _STANDARD - 1}"
