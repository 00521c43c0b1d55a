"""The names of PCI class codes (PCI Code and ID Assignment Specification; include/linux/pci_ids.h)."""

from __future__ import annotations

_BASE = {
    0x00: "unclassified",
    0x01: "mass storage",
    0x02: "network",
    0x03: "display",
    0x04: "multimedia",
    0x05: "memory",
    0x06: "bridge",
    0x07: "communication",
    0x08: "system",
    0x09: "input",
    0x0A: "docking station",
    0x0B: "processor",
    0x0C: "serial bus",
    0x0D: "wireless",
    0x0E: "intelligent I/O",
    0x0F: "satellite",
    0x10: "encryption",
    0x11: "signal processing",
    0x12: "accelerator",
    0xFF: "unclassified",
}
_SUBCLASS = {
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0104: "RAID controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0108: "NVM controller",
    0x0200: "Ethernet controller",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0401: "audio device",
    0x0403: "HD audio device",
    0x0500: "RAM controller",
    0x0502: "CXL memory",
    0x0600: "host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI bridge",
    0x0700: "serial controller",
    0x0780: "communication controller",
    0x0800: "interrupt controller",
    0x0801: "DMA controller",
    0x0805: "SD host controller",
    0x0806: "IOMMU",
    0x0C03: "USB controller",
    0x0C05: "SMBus controller",
}


def class_name(code: int) -> str:
    """A 24-bit class code in words: of its subclass where that is a usual one, else of its base class."""
    base = code >> 16 & 0xFF
    return _SUBCLASS.get(code >> 8 & 0xFFFF) or f"{_BASE.get(base, 'unknown')} device"
