"""How a foreign QEMU's RAM is laid out and named, out of what its monitor says."""

from __future__ import annotations

from typing import Any, cast

import pytest

from inspector.errors import MachineError, QmpError
from inspector.machine.foreign_ram import find_ram
from inspector.machine.qmp import Qmp

# QEMU 7.2, q35 with two NUMA nodes of 64 MiB, and an ivshmem device whose memory is no RAM of the guest.
NUMA = """
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): node0
  00000000000c0000-0000000003ffffff (prio 0, ram): node0 @00000000000c0000
  0000000004000000-0000000007ffffff (prio 0, ram): node1
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
"""
OLD = NUMA.replace("node0", "/objects/node0").replace("node1", "/objects/node1")


class Monitor:
    """Answers as QEMU 7.2 does; memory holds its own physical address in each word."""

    def __init__(self, mtree: str, whole: str | None, names: list[str]) -> None:
        self.mtree, self.whole, self.names = mtree, whole, names

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if command == "query-memdev":
            return [{"id": name, "size": 1 << 26, "share": False} for name in self.names]
        if command == "query-memory-devices":
            return []
        if command == "qom-get" and self.whole is not None:
            return self.whole
        raise QmpError(f"QEMU refused {command}")

    def hmp(self, command: str) -> str:
        if command == "info mtree -f":
            return self.mtree
        words, address = int(command.split()[1][1:-2]), int(command.split()[2], 16)
        lines = [f"{at:016x}: {at:#018x} {at + 8:#018x}" for at in range(address, address + 8 * words, 16)]
        return "\r\n".join(lines) + "\r\n"


def found(mtree: str, whole: str | None, names: list[str]) -> Any:
    return find_ram(cast(Qmp, Monitor(mtree, whole, names)), None, lambda: None)


@pytest.mark.parametrize("mtree", [NUMA, OLD], ids=["plain", "before-4.1"])
@pytest.mark.parametrize("whole", ["", None])
def test_nodes_follow_each_other(mtree: str, whole: str | None) -> None:
    ram = found(mtree, whole, ["node1", "node0", "unused"])
    # (start, size, offset): node1 is first in our numbering
    assert ram.blocks == [
        (0, 0xA0000, 0x4000000),
        (0xC0000, 0x3F40000, 0x40C0000),
        (0x4000000, 0x4000000, 0),
    ]
    buffer = bytearray(0x2000)
    ram.source.read(0x4000000 + 0x9F000, memoryview(buffer))  # over the edge of VGA's window, which is no RAM
    words = [int.from_bytes(buffer[at : at + 8], "little") for at in range(0, 0x2000, 8)]
    assert words == [*range(0x9F000, 0xA0000, 8), *(0 for _ in range(512))]
    assert ram.how == "RAM read slowly, by xp"
    assert ram.lack.endswith("on its host, give the path of a Unix socket")


def test_a_devices_memory_is_no_ram() -> None:
    ram = found(NUMA, "/objects/node0", ["node1", "node0"])
    assert [start for start, _, _ in ram.blocks] == [0, 0xC0000]


def test_no_ram_at_all() -> None:
    with pytest.raises(MachineError, match="shows no RAM"):
        found(NUMA, "/objects/pc.ram", ["pc.ram"])
