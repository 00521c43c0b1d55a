"""The vast module's range: what its page tables, its store and its counters say, for a lab."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np

from inspector.errors import LabFailed
from inspector.kernel import xarray
from inspector.kernel.vmalloc import VmallocArea
from inspector.labs.stage import Stage
from inspector.labs.story import Look
from inspector.units import GIB, Pfn, PhysAddr, VirtAddr

MODULE = "the module"  # as a witness: its counters, by debugfs
_PEEK = 3 << 30 | 16 << 16 | ord("V") << 8 | 1  # _IOWR('V', 1, struct vast_peek), vast.h
_NODE = "/dev/vast"


@dataclass(frozen=True, slots=True)
class Packed:
    """A page that is not in RAM (C: struct packed): where, in whose memory, compressed to what."""

    address: VirtAddr
    owner: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Tables:
    """How many page tables of each level lie under the range."""

    pmd: int
    pte: int


class Range:
    """The range, open in the program as `vast`."""

    def __init__(self, stage: Stage, gib: int, frames: int) -> None:
        """Loads the module. Raises LabFailed."""
        self.stage, self.guest, self.actor = stage, stage.guest, stage.actor
        stage.load("vast", gib=gib, frames=frames)
        stage.require_type("struct vast")
        found = self.area(gib)
        if found is None:
            raise LabFailed(f"no area of {gib} GiB is in use: is there so much room for vmalloc?")
        self.gib, self.start, self.said = gib, found.start, str(found)
        self.actor.open("vast", _NODE)

    def area(self, gib: int) -> VmallocArea | None:
        """The area of that size that is in use."""
        areas = self.guest.vmalloc_areas()
        return next((area for area in areas if area.size > gib * GIB and "ioremap" in area.flags), None)

    def at(self, offset: int) -> VirtAddr:
        """Where an offset lies in the kernel."""
        return VirtAddr(self.start + offset)

    # What memory says

    def look(self, offset: int) -> Look:
        """A page in the kernel's own page tables."""
        with self.guest.paused():
            walk = self.guest.kernel.space.walk(self.at(offset))
            frame = None if walk.pfn is None else self.stage.frame(walk.pfn)
            return Look("kernel", walk, "" if frame else "empty, nothing is there", frame)

    def tables(self) -> Tables:
        """Count them, by the entries that lead to them."""
        kernel, pmds, ptes = self.guest.kernel, 0, 0
        size = kernel.space.format.page_size
        with self.guest.paused():
            for number in range(self.gib):
                steps = kernel.space.walk(self.at(number * GIB)).steps
                below = [step for step in steps if step.level.name == "PMD"]
                if below:
                    table = self.guest.read_phys(PhysAddr(below[0].entry_address & -size), size)
                    pmds += 1
                    ptes += int(np.count_nonzero(np.frombuffer(table, "<u8")))
        return Tables(pmds, ptes)

    def packed(self, offset: int) -> Packed | None:
        """What is kept of a page that is not in RAM: by the module's xarray. None where there is nothing."""
        kernel = self.guest.kernel
        size = kernel.space.format.page_size
        with self.guest.paused():
            entry = xarray.load(kernel.view("vast", self.guest.symbol("vast")).at("pages"), offset // size)
            if not entry or xarray.is_value(entry):
                return None
            at = VirtAddr(entry)
            bytes_at = VirtAddr(at + kernel.types.offsetof("packed", "bytes"))
            data = kernel.space.read(bytes_at, kernel.view("packed", at).int("size"))
            lies = kernel.space.translate(at)
            owner = self.stage.frame(Pfn(lies // size)).owner if lies is not None else "not mapped"
        return Packed(at, owner, data)

    # What others say

    def counts(self) -> dict[str, int]:
        """The module's counters, as the guest prints them."""
        text = self.guest.run("cd /sys/kernel/debug/vast && grep . *").check().stdout
        return {name: int(value) for name, value in re.findall(r"^(\w+):(\d+)$", text, re.MULTILINE)}

    def by_qemu(self, offset: int) -> Pfn | None:
        """The frame of a page of the kernel's, by QEMU's own walk."""
        with self.guest.paused():
            said = self.guest.machine.hmp(f"gva2gpa {self.at(offset):#x}")
        found = re.search(r"gpa: (0x[0-9a-f]+)", said)
        return Pfn(int(found[1], 16) // self.stage.page_size) if found else None

    def vmallocinfo(self) -> list[int]:
        """The sizes of the module's areas by /proc/vmallocinfo, in bytes."""
        text = self.guest.run("grep '\\[vast\\]' /proc/vmallocinfo || true").check().stdout
        return [int(line.split()[1]) for line in text.splitlines()]

    def slab(self) -> int:
        """What slabs that cannot be reclaimed take, in KiB, by /proc/meminfo."""
        return int(self.guest.run("awk '/^SUnreclaim:/ { print $2 }' /proc/meminfo").check().stdout)

    # Doing

    def peek(self, offset: int) -> str:
        """A load by the kernel where it may not sleep: the eight bytes, or why not."""
        try:
            return repr(self.actor.ioctl("vast", _PEEK, struct.pack("=QQ", offset, 0))[8:])
        except LabFailed as refusal:
            return str(refusal).rpartition(": ")[2]

    def drive_out(self, frames: int, offset: int) -> None:
        """Have as many other pages read as there are frames, from an offset on."""
        size = self.stage.page_size
        self.guest.run(
            f"dd if={_NODE} of=/dev/null bs={size} skip={offset // size} count={frames} 2>/dev/null"
        ).check()

    def write_text(self, offset: int, source: str) -> None:
        """Write what a command prints; for minutes, where that is much."""
        write = f"dd of={_NODE} bs=64k seek={offset >> 16} iflag=fullblock conv=notrunc 2>/dev/null"
        self.guest.run(f"{source} | {write}", 300).check()

    def checksum(self, offset: int, size: int) -> str:
        """The MD5 of so many bytes, read in the guest."""
        read = f"dd if={_NODE} bs=64k skip={offset >> 16} count={(size >> 16) + 1} 2>/dev/null"
        return self.guest.run(f"{read} | head -c {size} | md5sum", 300).check().stdout.split()[0]
