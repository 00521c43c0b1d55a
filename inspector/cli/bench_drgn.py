"""The bench's peer: drgn on the same guest, over the second QMP socket, with the kernel's DWARF vmlinux."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

NAME = "drgn"


def installed() -> bool:
    """Whether drgn can be imported; it is a development dependency only."""
    return importlib.util.find_spec("drgn") is not None


class Drgn:
    """A drgn program attached to a guest. `qmp` is a QMP socket of QEMU's that nobody else uses."""

    def __init__(self, qmp: Path, vmlinux: Path) -> None:
        program: Any = importlib.import_module("drgn").Program()
        program.set_qemu_qmp(str(qmp))
        program.load_debug_info([str(vmlinux)])
        self._program = program
        self._mm = importlib.import_module("drgn.helpers.linux.mm")
        self._list = importlib.import_module("drgn.helpers.linux.list")
        self._mmzone = importlib.import_module("drgn.helpers.linux.mmzone")
        self._pid = importlib.import_module("drgn.helpers.linux.pid")

    def translate(self, pid: int, vas: Sequence[int]) -> list[int]:
        """The physical address of each address of a task: a follow_phys() a page."""
        mm, follow = self._pid.find_task(self._program, pid).mm, self._mm.follow_phys
        return [follow(mm, va).value_() for va in vas]

    def page_flags(self, count: int) -> list[int]:
        """The flags word of the first frames' struct pages."""
        return [page.flags.value_() for page in islice(self._mm.for_each_page(self._program), count)]

    def allocated_objects(self, caches: Sequence[str]) -> list[int]:
        """How many objects each slab cache has handed out, one by one."""
        slab = importlib.import_module("drgn.helpers.linux.slab")
        found = [slab.find_slab_cache(self._program, name) for name in caches]
        each = slab.slab_cache_for_each_allocated_object
        return [sum(1 for _ in each(cache, "struct page")) for cache in found]

    def free_blocks(self) -> int:
        """How many blocks all buddy free lists hold, counted one by one."""
        count = 0
        for node in self._mmzone.for_each_online_pgdat(self._program):
            for zone in node.node_zones:
                if not zone.present_pages:
                    continue
                for area in zone.free_area:
                    for head in area.free_list:
                        count += sum(1 for _ in self._list.list_for_each(head.address_of_()))
        return count
