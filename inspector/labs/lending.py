"""The lender's desk: what a lab asks of /dev/lender, and what everybody says of a loan."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inspector.kernel import buddy, pageblocks
from inspector.kernel.memmap import MemMap
from inspector.labs.actor import Actor
from inspector.labs.stage import Stage
from inspector.labs.story import Frame, Look, Number, NumbersShown
from inspector.units import Pfn, VirtAddr

# qemu_images/modules/lender/lender.h
ACCOUNT, MOVABLE, FORGET, DONTCOPY = 1, 2, 4, 8
_TAKE = 1 << 30 | 12 << 16 | ord("L") << 8 | 1  # _IOW('L', 1, struct lender_wish)

CALLS = {
    "pfn": "vmf_insert_pfn",
    "remap": "remap_pfn_range",
    "page": "vm_insert_page",
    "pages": "vm_map_pages",
    "fault": "vmf->page",
}
"""What maps a page, by the way's name in enum lender_way."""

_KINDS = "pf", "io", "mm", "dc"  # VM_PFNMAP, VM_IO, VM_MIXEDMAP, VM_DONTCOPY
_NOWHERE = VirtAddr(0)
_WORD = 8  # bytes a frame in /proc/kpage*
_BLOCK = 4096
_CHANGES, _TRIES = 256, 20


@dataclass(frozen=True, slots=True)
class Loan:
    """Pages that the driver has taken for an open file: their frames by its log; `va` where it is mapped."""

    name: str
    call: str
    frames: tuple[Pfn, ...]
    va: VirtAddr = _NOWHERE


class Desk:
    """Where loans are made and looked at, for one lab."""

    def __init__(self, stage: Stage) -> None:
        """Loads the module. Raises LabFailed."""
        self.stage, self.actor, self.guest = stage, stage.actor, stage.guest
        stage.load("lender")
        stage.require_type("enum lender_way")
        self._ways = stage.guest.kernel.types.enum("lender_way")

    # Loans

    def open(self, *names: str) -> None:
        """Open the device, once a name."""
        for name in names:
            self.actor.open(name, "/dev/lender")

    def take(self, name: str, way: str, count: int = 1, flags: int = 0) -> Loan:
        """Have the driver take pages for an open file; they are not mapped yet."""
        wish = struct.pack("=III", self._ways[f"LENDER_{way.upper()}"], flags, count)
        self.actor.ioctl(name, _TAKE, wish)
        said = self.stage.log(r"lender: loan \d+ page \d+ at (0x[0-9a-f]+)$")[-count:]
        frames = tuple(Pfn(int(found[1], 16) // self.stage.page_size) for found in said)
        return Loan(name, CALLS[way], frames)

    def map(self, loan: Loan, pages: int = 1) -> Loan:
        """Map its first pages."""
        return replace(loan, va=self.actor.map(loan.name, pages, "shared", f"device={loan.name}"))

    def lend(self, way: str, flags: int = 0, name: str = "") -> Loan:
        """Open, take a page, map it."""
        self.open(name or way)
        return self.map(self.take(name or way, way, 1, flags))

    def give_back(self, *loans: Loan) -> None:
        """Unmap all that is mapped of them, and close."""
        for loan in loans:
            if loan.va:
                self.actor.unmap(loan.va, len(loan.frames))
            self.actor.close_device(loan.name)

    # What memory says

    def look(self, loan: Loan, who: Actor | None = None) -> Look:
        """Its first page, by the name of what mapped it."""
        return replace(self.stage.look(loan.va, who), who=loan.call)

    def frame(self, loan: Loan) -> Frame:
        """The struct page of its first page."""
        return self.stage.frame(loan.frames[0])

    def counts(self, *loans: Loan) -> str:
        """Refcount and mapcount of each one's first page: `2/1, 1/0`."""
        frames = [self.frame(loan) for loan in loans]
        return ", ".join(f"{frame.refcount}/{frame.mapcount}" for frame in frames)

    def rss(self, before: NumbersShown | None = None) -> NumbersShown:
        """The program's counters of resident pages, beside an earlier reading."""
        mm = self.stage.task().mm
        pages = {"file": mm.rss_file, "anonymous": mm.rss_anon, "shmem": mm.rss_shmem} if mm else {}
        was = {row.name: row.value for row in before.rows} if before else {}
        size = self.stage.page_size // 1024
        rows = (Number(name, count * size, "KiB", was.get(name)) for name, count in pages.items())
        return NumbersShown("rss_stat in struct mm_struct", tuple(rows))

    def blocks(self, frames: Sequence[Pfn]) -> list[str]:
        """The migratetype of each frame's pageblock."""
        kernel = self.guest.kernel
        with self.guest.paused():
            kinds, names = pageblocks.migratetypes(kernel, MemMap(kernel)), buddy.migratetypes(kernel)
            return [names[kinds[pfn >> pageblocks.order(kernel)]] for pfn in frames]

    # What the guest says

    def words(self, file: str, frames: Sequence[Pfn]) -> list[int]:
        """What a file with 8 bytes a frame, as /proc/kpagecount, has for these."""
        per_block = _BLOCK // _WORD
        blocks = sorted({pfn // per_block for pfn in frames})
        read = "; ".join(f"dd if={file} bs={_BLOCK} skip={block} count=1 2>/dev/null" for block in blocks)
        raw = self.guest.run(read).check().stdout_bytes
        found = np.frombuffer(raw, "<u8").reshape(len(blocks), per_block)
        return [int(found[blocks.index(pfn // per_block), pfn % per_block]) for pfn in frames]

    def group(self) -> tuple[str, int]:
        """The program's memory cgroup: its path, and the inode of its directory."""
        path = f"$(sed -n s/^0:://p /proc/{self.actor.pid}/cgroup)"
        said = self.guest.run(f'path="{path}"; echo "$path"; stat -c %i "/sys/fs/cgroup$path"').check()
        name, inode = said.stdout.split()
        return name, int(inode)

    def charged(self) -> int:
        """The kernel memory that the program's cgroup pays for, in KiB, by its memory.stat, at rest.

        Twice the same: what has ended is uncharged after an RCU grace period.
        """
        now, before = self._charged(), -1
        for _ in range(_TRIES):
            if now == before:
                break
            self.guest.run("sleep 0.3").check()
            now, before = self._charged(), now
        return now

    def _charged(self) -> int:
        """One reading. Of few changes the kernel tells up to two seconds later, so that many are made first
        (C: memcg_vmstats_needs_flush(), mm/memcontrol.c); until Linux 6.16 reading cpu.stat was enough.
        """
        start = self.actor.map("many", _CHANGES)
        self.actor.touch(start, _CHANGES)
        self.actor.unmap(start, _CHANGES)
        folder = f"/sys/fs/cgroup{self.group()[0]}"
        text = self.guest.run(f"cat {folder}/cpu.stat >/dev/null; cat {folder}/memory.stat").check().stdout
        found = re.search(r"^kernel (\d+)$", text, re.MULTILINE)
        return int(found[1]) // 1024 if found else 0

    def vm_flags(self, *loans: Loan) -> str:
        """Of each one's mapping the VmFlags in /proc/PID/smaps that tell its kind: `pf, io pf, none`."""
        text = self.guest.run(f"cat /proc/{self.actor.pid}/smaps").check().stdout
        found = dict(re.findall(r"^([0-9a-f]+)-(?:.*\n)+?VmFlags: (.*)$", text, re.MULTILINE))
        flags = [found.get(f"{loan.va:08x}", "").split() for loan in loans]
        return ", ".join(" ".join(kind for kind in _KINDS if kind in its) or "none" for its in flags)

    def rss_of(self, *loans: Loan) -> str:
        """Rss of each one's mapping in /proc/PID/smaps, : `4, 0 KiB`."""
        return ", ".join(str(self.actor.smaps(loan.va)["Rss"]) for loan in loans) + " KiB"
