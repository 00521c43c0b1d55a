"""Who owns each frame: a class for every PFN and for most the very object, from all that the kernel keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadFormat, InspectorError, KernelError
from inspector.kernel import frames as states
from inspector.kernel import lists, modules, rmap, slabs, vmalloc
from inspector.kernel.bulk import mapped_frames
from inspector.kernel.cpus import idle_tasks
from inspector.kernel.frames import FrameState
from inspector.kernel.memmap import MemMap
from inspector.kernel.resources import iomem
from inspector.kernel.tasks import Task, tasks, user_end
from inspector.kernel.zones import nodes
from inspector.symbols import Kernel
from inspector.units import Pfn, PhysAddr, VirtAddr


class Owner(IntEnum):
    """What a frame belongs to."""

    NO_PAGE = 0  # no struct page
    FIRMWARE = 1  # RAM that the firmware kept, or no RAM at all
    KERNEL_IMAGE = 2
    MEMMAP = 3  # struct page itself
    RESERVED = 4  # kept back at boot, and no mark says what for
    FREE = 5  # in the buddy allocator
    PER_CPU_FREE = 6  # free, on a CPU's own list
    PAGE_TABLE = 7
    KERNEL_STACK = 8
    SLAB = 9
    VMALLOC = 10
    MODULE = 11
    PERCPU = 12
    ANON = 13
    SWAP_CACHE = 14
    SHMEM = 15
    PAGE_CACHE = 16
    HUGETLB = 17
    ZERO_PAGE = 18
    HUGE_ZERO_PAGE = 19
    DRIVER = 20  # a kernel allocation that a user mapping shows
    UNMARKED = 21  # allocated, and nothing that the kernel keeps says by whom


OWNED = np.dtype([("pfn", np.uint64), ("owner", np.uint8), ("detail", np.uint32)])
"""A frame, its Owner, and the index of its label in Owners.labels; 0 where there is none."""

# Hash tables that boot memory holds, and where 32 less their bits is kept (alloc_large_system_hash()).
_BOOT_HASHES = {"dentry_hashtable": "d_hash_shift", "inode_hashtable": "i_hash_shift"}

_FROM_STATE = {
    FrameState.HOLE: Owner.NO_PAGE,
    FrameState.RESERVED: Owner.RESERVED,
    FrameState.FREE: Owner.FREE,
    FrameState.PER_CPU: Owner.PER_CPU_FREE,
    FrameState.SLAB: Owner.SLAB,
    FrameState.PAGE_TABLE: Owner.PAGE_TABLE,
    FrameState.ANON: Owner.ANON,
    FrameState.FILE: Owner.PAGE_CACHE,
    FrameState.KERNEL: Owner.UNMARKED,
}


@dataclass(frozen=True, slots=True)
class Owners:
    """Every frame's owner at one moment. `rows` are OWNED, a row a PFN; `labels[0]` is empty."""

    rows: NDArray[np.void]
    labels: tuple[str, ...]

    def of(self, pfn: Pfn) -> tuple[Owner, str]:
        """A frame's owner, and which one; the label may hold guest text."""
        row = self.rows[pfn]
        return Owner(int(row["owner"])), self.labels[int(row["detail"])]

    def counts(self) -> dict[Owner, int]:
        """How many frames each class has."""
        found = np.bincount(self.rows["owner"], minlength=len(Owner))
        return {owner: int(found[owner]) for owner in Owner}

    def by_label(self, owner: Owner) -> dict[str, int]:
        """How many frames each object of a class has, most first."""
        details = self.rows["detail"][self.rows["owner"] == owner]
        found, count = np.unique(details, return_counts=True)
        order = np.argsort(-count, kind="stable")
        return {self.labels[int(found[i])]: int(count[i]) for i in order}


def owners(kernel: Kernel, rows: NDArray[np.void] | None = None) -> Owners:
    """The owner of every frame; `rows` are frames.frames() of this very moment. Raises CorruptGuest."""
    painter = _Painter(kernel, states.frames(kernel) if rows is None else rows)
    for paint in (
        painter.reserved,
        painter.boot_memory,
        painter.kernel_memory,
        painter.slabs,
        painter.page_tables,
        painter.kernel_stacks,
        painter.user_memory,
        painter.zero_pages,
    ):
        paint()
    return painter.finished()


class _Painter:
    """Paints owners over what the struct pages say; what comes later knows better."""

    def __init__(self, kernel: Kernel, frames: NDArray[np.void]) -> None:
        self.kernel = kernel
        self.frames = frames
        self.page_size: int = kernel.space.format.page_size
        self.memmap = MemMap(kernel)
        self.threads = tasks(kernel, threads=True)
        self.processes = [task for task in self.threads if task.pid == task.tgid]
        self.rows = np.zeros(len(frames), OWNED)
        self.rows["pfn"] = frames["pfn"]
        table = np.zeros(len(FrameState), np.uint8)
        for state, owner in _FROM_STATE.items():
            table[state] = owner
        self.rows["owner"] = table[frames["state"]]
        self.labels: list[str] = [""]
        self._known: dict[str, int] = {"": 0}

    def finished(self) -> Owners:
        return Owners(self.rows, tuple(self.labels))

    def label(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.labels)
            self.labels.append(text)
        return self._known[text]

    def labelled(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        return np.array([self.label(text) for text in texts], np.uint32)

    def paint(
        self,
        pfns: NDArray[np.uint64],
        owner: Owner,
        details: NDArray[np.uint32] | int = 0,
        over: tuple[Owner, ...] = (Owner.UNMARKED, Owner.RESERVED),
    ) -> None:
        """Give frames to an owner where they are one of `over`: a mark in struct page is not overruled."""
        inside = pfns < np.uint64(len(self.rows))
        chosen = pfns[inside].astype(np.int64)
        detail = np.broadcast_to(details, pfns.shape)[inside]
        free = np.isin(self.rows["owner"][chosen], over)
        self.rows["owner"][chosen[free]] = owner
        self.rows["detail"][chosen[free]] = detail[free]

    def run(self, start: int, end: int) -> NDArray[np.uint64]:
        """The PFNs of a physical range, of those that a page of it lies in."""
        last = min(-(-end // self.page_size), len(self.rows))
        return np.arange(start // self.page_size, max(last, start // self.page_size), dtype=np.uint64)

    def reserved(self) -> None:
        """What the resource tree says of memory that the page allocator never had."""
        ram = np.zeros(len(self.rows), np.bool_)
        resources = iomem(self.kernel)
        for resource in resources:
            if resource.depth == 0 and "SYSRAM" in resource.flag_names:
                ram[self.run(resource.start, resource.end).astype(np.int64)] = True
        outside = np.flatnonzero(~ram & (self.rows["owner"] == Owner.RESERVED)).astype(np.uint64)
        self.paint(outside, Owner.FIRMWARE)
        for resource in resources:
            if resource.depth == 0 and "SYSRAM" not in resource.flag_names:
                pfns = self.run(resource.start, resource.end)
                self.paint(pfns, Owner.FIRMWARE, self.label(resource.name), (Owner.FIRMWARE,))
            elif resource.name.startswith("Kernel "):
                # What of it boot gave back, such as the unused part of .bss..decrypted, is not reserved.
                pfns = self.run(resource.start, resource.end)
                label = self.label(resource.name.removeprefix("Kernel "))
                self.paint(pfns, Owner.KERNEL_IMAGE, label, (Owner.RESERVED,))

    def boot_memory(self) -> None:
        """What was taken before there was a page allocator, as far as symbols lead to it."""
        kernel, symbols = self.kernel, self.kernel.symbols
        over = (Owner.RESERVED,)
        image = self.run(kernel.virt_to_phys(kernel.symbol("_text")), self._image_end())
        self.paint(image, Owner.KERNEL_IMAGE, self.label("brk and padding"), over)
        # fc4f4be9b5271 (5.13) keeps the first MiB, where real-mode code and the firmware's habits are.
        self.paint(self.run(0, 1 << 20), Owner.RESERVED, self.label("first MiB"), over)
        for node in nodes(kernel):
            start = kernel.virt_to_phys(node.address)
            label = self.label("struct pglist_data")
            self.paint(self.run(start, start + node.type.size), Owner.RESERVED, label, over)
        for table, shift in _BOOT_HASHES.items():
            if table in symbols and shift in symbols and (at := kernel.word(table)):
                bits = 32 - kernel.space.u32(kernel.symbol(shift))
                phys = kernel.space.translate(VirtAddr(at))
                if phys is not None and 0 < bits < 32:
                    end = phys + (kernel.pointer_size << bits)
                    self.paint(self.run(phys, end), Owner.RESERVED, self.label(table), over)

    def _image_end(self) -> int:
        """Where the image ends in physical memory: _end itself need not be mapped."""
        text = self.kernel.symbol("_text")
        return self.kernel.virt_to_phys(text) + self.kernel.symbol("_end") - text

    def kernel_memory(self) -> None:
        """What the kernel's page tables show beside the direct map: mem_map, vmalloc, modules, per-CPU."""
        kernel = self.kernel
        size = self.memmap.struct_size
        starts = np.array([self.memmap.base + first * size for first, _ in self.memmap.runs], np.uint64)
        ends = np.array([self.memmap.base + end * size for _, end in self.memmap.runs], np.uint64)
        self.paint(mapped_frames(kernel, starts, ends)["pfn"], Owner.MEMMAP)
        loaded = modules.modules(kernel)
        found = modules.module_frames(kernel, loaded)
        names = self.labelled([module.name for module in loaded])
        self.paint(found["pfn"], Owner.MODULE, names[found["index"]] if len(found) else 0)
        self.vmalloc()
        self.percpu()

    def vmalloc(self) -> None:
        """Areas by caller; an ioremap()ed device has no struct page, or is not ours to give."""
        table = vmalloc.area_table(self.kernel)
        table = table[table["kind"] == vmalloc.BUSY]
        callers = [area.caller for area in vmalloc.areas(self.kernel, table)]
        percpu = np.array([caller.startswith("pcpu_") for caller in callers], np.bool_)
        details = self.labelled(callers)
        found = vmalloc.area_frames(self.kernel, table)
        io = (table["flags"] & np.uint64(vmalloc.VM_FLAGS["ioremap"])) != 0
        found = found[~io[found["index"]]]
        is_percpu = percpu[found["index"]]
        self.paint(found["pfn"][is_percpu], Owner.PERCPU)
        rest = found[~is_percpu]
        self.paint(rest["pfn"], Owner.VMALLOC, details[rest["index"]] if len(rest) else 0)

    def percpu(self) -> None:
        """The first chunk, which boot memory holds: one unit a CPU (mm/percpu.c, pcpu_unit_offsets)."""
        symbols = self.kernel.symbols
        if not all(name in symbols for name in ("pcpu_base_addr", "pcpu_unit_size", "pcpu_unit_offsets")):
            return
        base = self.kernel.word("pcpu_base_addr")
        unit = self.kernel.space.u32(self.kernel.symbol("pcpu_unit_size"))
        offsets = self.kernel.word("pcpu_unit_offsets")
        for cpu in self.kernel.possible_cpus:
            start = base + self.kernel.space.u64(VirtAddr(offsets + cpu * self.kernel.pointer_size))
            phys = self.kernel.space.translate(VirtAddr(start & self.kernel.pointer_mask))
            if phys is not None:
                self.paint(self.run(phys, phys + unit), Owner.PERCPU, self.label(f"CPU {cpu}"))

    def slabs(self) -> None:
        """Slabs by cache."""
        caches = slabs.Caches(self.kernel)
        found = slabs.slab_pages(self.kernel, self.memmap, caches)
        names = self.labelled([*caches.names, "no cache"])
        index = np.minimum(found["cache"].astype(np.int64), len(caches.names))
        self.blocks(found["pfn"], found["order"], Owner.SLAB, names[index])

    def blocks(
        self, pfns: NDArray[np.uint64], orders: NDArray[np.uint8], owner: Owner, details: NDArray[np.uint32]
    ) -> None:
        """Label whole blocks of 2**order frames that already are the owner's."""
        sizes = np.left_shift(1, orders.astype(np.int64))
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.paint(
            np.repeat(pfns, sizes) + inside.astype(np.uint64), owner, np.repeat(details, sizes), (owner,)
        )

    def page_tables(self) -> None:
        """Tables by whose they are and their level; the kernel's own carry no mark."""
        over = (Owner.UNMARKED, Owner.RESERVED, Owner.PAGE_TABLE)
        kernel_tables = self.kernel.space.tables(user_end(self.kernel))
        self._tables(kernel_tables, "kernel", over)
        for task in self.processes:
            if task.mm:
                found = task.space.tables(0, user_end(self.kernel))
                self._tables(found, _name(task), over)

        self._deposited_tables()

    def _tables(self, found: NDArray[np.void], whose: str, over: tuple[Owner, ...]) -> None:
        names = self.labelled([f"{level.name} table, {whose}" for level in self.kernel.space.format.levels])
        self.paint(found["pa"] // np.uint64(self.page_size), Owner.PAGE_TABLE, names[found["level"]], over)

    def _deposited_tables(self) -> None:
        """The tables in no tree: one kept for each huge page, to split it (C: pgtable_trans_huge_deposit()).

        Their list hangs on the table that maps the huge page, without a head: the first stands for one.
        """
        types = self.kernel.types
        # f5ecca06b3a5 (6.5) split struct ptdesc from struct page.
        kind = "ptdesc" if types.has("ptdesc", "pmd_huge_pte") else "page"
        if not types.has(kind, "pmd_huge_pte"):
            return
        rows, link = self.rows, np.uint64(types.offsetof("page", "lru"))
        tables = np.flatnonzero((rows["owner"] == Owner.PAGE_TABLE) & (rows["detail"] != 0))
        owners = self.memmap.addresses(tables.astype(np.uint64)) + np.uint64(
            types.offsetof(kind, "pmd_huge_pte")
        )
        firsts, _ = self.kernel.space.gather(owners, np.dtype(np.uint64))
        unknown = np.flatnonzero((rows["owner"] == Owner.PAGE_TABLE) & (rows["detail"] == 0)).astype(
            np.uint64
        )
        pages = self.memmap.addresses(unknown)
        places = np.searchsorted(pages, firsts)
        heads = np.flatnonzero((places < pages.size) & (pages[np.minimum(places, pages.size - 1)] == firsts))
        if not pages.size or not heads.size:
            return
        following, _ = self.kernel.space.gather(pages + link, np.dtype(np.uint64))
        is_head = np.isin(pages, firsts[heads])
        ends = np.full(pages.size, -1)
        ends[~is_head] = lists.follow(pages[~is_head] + link, following[~is_head], firsts[heads] + link)
        ends[places[heads]] = np.arange(heads.size)
        whose = [self.labels[int(rows["detail"][tables[head]])].partition(", ")[2] for head in heads]
        names = self.labelled([f"deposited table, {name}" for name in whose])
        known = ends >= 0
        self.paint(unknown[known], Owner.PAGE_TABLE, names[ends[known]], (Owner.PAGE_TABLE,))

    def kernel_stacks(self) -> None:
        """Each thread's kernel stack: a vmalloc area of its own, or pages of the direct map."""
        threads = self.threads
        idle = idle_tasks(self.kernel)
        size = stack_size(self.kernel)
        stacks = [thread.stack for thread in threads] + [view.ptr("stack") for view in idle]
        starts = np.array(stacks, np.uint64)
        found = mapped_frames(self.kernel, starts, starts + np.uint64(size))
        names = self.labelled([*map(_name, threads), *(f"{view.text('comm')} (idle)" for view in idle)])
        self.paint(
            found["pfn"],
            Owner.KERNEL_STACK,
            names[found["index"]],
            (Owner.UNMARKED, Owner.RESERVED, Owner.VMALLOC),
        )

    def user_memory(self) -> None:
        """Anonymous memory by task; the page cache's kinds; kernel allocations that a task can see."""
        index = rmap.ReverseMap.build(self.kernel, self.processes, user_only=True)
        names = self.labelled([_name(task) for task in index.owners])
        rows = index.rows
        sizes = rows["size"].astype(np.int64) // self.page_size
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        pfns = np.repeat(rows["pa"] // np.uint64(self.page_size), sizes) + inside.astype(np.uint64)
        details = names[np.repeat(rows["owner"], sizes)] if len(rows) else np.empty(0, np.uint32)
        self.paint(pfns, Owner.ANON, details, (Owner.ANON,))
        self.paint(pfns, Owner.DRIVER, details, (Owner.UNMARKED, Owner.VMALLOC))
        # PG_swapcache shares its bit with other names; it counts with PG_swapbacked only.
        swap_cached = self._flagged("PG_swapcache") & self._flagged("PG_swapbacked")
        swap_cached &= np.isin(self.rows["owner"], (Owner.ANON, Owner.PAGE_CACHE))
        self.rows["owner"][swap_cached] = Owner.SWAP_CACHE
        self._files()

    def _flagged(self, name: str) -> NDArray[np.bool_]:
        bit = self.kernel.types.constant(name)
        if not 0 <= bit < self.frames["flags"].itemsize * 8:
            raise BadFormat(f"the types are corrupt: {name} is bit {bit}")
        return (self.frames["flags"] >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)

    def _files(self) -> None:
        """Shared memory and hugetlb apart from the page cache: their address spaces' operations tell."""
        kinds = {"shmem_aops": Owner.SHMEM, "hugetlbfs_aops": Owner.HUGETLB}
        offset = self.kernel.types.offsetof("address_space", "a_ops")
        for first, end in self.memmap.runs:
            part = self.rows[first:end]
            cached = np.flatnonzero(part["owner"] == Owner.PAGE_CACHE)
            heads = self.memmap.heads(first, end)[cached] - first
            mappings = self.memmap.column(first, end, "mapping", "<u8")[heads] & ~np.uint64(3)
            spaces, which = np.unique(mappings, return_inverse=True)
            operations, _ = self.kernel.space.gather(spaces + np.uint64(offset), np.dtype(np.uint64))
            for symbol, owner in kinds.items():
                if symbol in self.kernel.symbols:
                    ours = operations == np.uint64(self.kernel.symbol(symbol))
                    part["owner"][cached[ours[which]]] = owner

    def zero_pages(self) -> None:
        """The page of zeros, and the huge one where it has been made."""
        every = tuple(Owner)
        if "empty_zero_page" in self.kernel.symbols:
            zero = self.kernel.virt_to_phys(self.kernel.symbol("empty_zero_page"))
            self.paint(self.run(zero, zero + 1), Owner.ZERO_PAGE, 0, every)
        start = self._huge_zero()
        if start is not None:
            levels = self.kernel.space.format.levels
            self.paint(self.run(start, start + levels[-2].span), Owner.HUGE_ZERO_PAGE, 0, every)

    def _huge_zero(self) -> PhysAddr | None:
        # 5691753d73a2 (6.10) made it a folio; a page before.
        for name in ("huge_zero_folio", "huge_zero_page"):
            if name in self.kernel.symbols and (page := self.kernel.word(name)):
                try:
                    return PhysAddr(self.memmap.pfn(VirtAddr(page)) * self.page_size)
                except InspectorError:
                    return None
        return None


def stack_size(kernel: Kernel) -> int:
    """Bytes of a kernel stack (C: THREAD_SIZE), from the linker's bounds of the first task's."""
    for name in ("stack", "task"):  # 4d99fa1b2cd4 (6.10) renamed them
        if f"__start_init_{name}" in kernel.symbols:
            return kernel.symbol(f"__end_init_{name}") - kernel.symbol(f"__start_init_{name}")
    raise KernelError("this kernel does not bound its first task's stack")


def _name(task: Task) -> str:
    return f"{task.comm} ({task.pid})"
