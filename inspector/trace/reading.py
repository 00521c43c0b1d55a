"""What the kernel's memory says at a stop; everything stands still."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace, Walk
from inspector.errors import InspectorError, KernelError
from inspector.kernel import ksyms, modules, ptes, vmas
from inspector.kernel.memmap import MemMap
from inspector.kernel.mm import Mm
from inspector.kernel.pages import compound_order
from inspector.kernel.vmas import Vma
from inspector.symbols import Kernel, StructView
from inspector.trace.kinds import Entry
from inspector.trace.records import FrameState
from inspector.units import MIB, Pfn, VirtAddr, printable

# Software bits of a present entry (arch/x86/include/asm/pgtable_types.h): _PAGE_UFFD_WP, _PAGE_SOFT_DIRTY.
_UFFD_WP, _SOFT_DIRTY = 1 << 10, 1 << 11
_S_IFMT, _S_IFREG, _S_IFBLK = 0o170000, 0o100000, 0o060000
_MAX_SIGNALS = 64
VSYSCALL = 0xFFFF_FFFF_FF60_0000  # VSYSCALL_ADDR, arch/x86/include/uapi/asm/vsyscall.h
_MAX_MEMMAP = 16 * MIB
"""Up to so many bytes of struct pages (1 GiB of memory) are kept from a fault's begin to its end."""


StructPages = list[tuple[Pfn, NDArray[np.uint8]]]
"""The bytes of struct pages that follow one another, a row each; every run with its first PFN."""


class Reader:
    """Reads at stops, with translations of its own: others may read meanwhile, with theirs."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = copy.copy(kernel)
        self.kernel.space = AddressSpace(kernel.memory, kernel.space.format, kernel.space.root)
        self.kernel.still = nullcontext

    def fresh(self) -> None:
        """Forget translations: the guest has run."""
        self.kernel.space.flush()

    def word(self, address: VirtAddr) -> int:
        """An unsigned long."""
        return self.kernel.space.u64(address)

    def space(self, mm: StructView) -> AddressSpace:
        """The address space of a struct mm_struct."""
        kernel = self.kernel
        return AddressSpace(kernel.memory, kernel.space.format, kernel.virt_to_phys(mm.ptr("pgd")))

    def entry(self, walk: Walk) -> Entry:
        """The last entry of a walk, as the kernel means it."""
        if not walk.steps:
            return Entry()
        raw = walk.steps[-1].entry
        if not raw:
            return Entry()
        if walk.pfn is None:
            what = ptes.nonpresent(self.kernel, raw)
            return Entry(use=what.use.name.lower(), soft_dirty=what.soft_dirty, uffd_wp=what.uffd_wp)
        size = walk.page_size or 0
        first = Pfn(walk.pfn & ~(size // walk.format.page_size - 1))
        return Entry(
            pfn=walk.pfn,
            size=size,
            writable=walk.writable,
            soft_dirty=bool(raw & _SOFT_DIRTY),
            uffd_wp=bool(raw & _UFFD_WP),
            zero=walk.pfn == self.zero_pfn or first == self.huge_zero_pfn(),
        )

    # Tasks

    def signals(self, task: StructView) -> int:
        """The signals that wait for the thread itself, bit N-1 for signal N (C: task->pending.signal)."""
        return self.word(task.addr("pending.signal"))

    def signal_code(self, task: StructView, signal: int) -> int | None:
        """The si_code of a signal that waits; None where none is kept."""
        head = task.addr("pending.list")
        at = VirtAddr(self.word(head))
        for _ in range(_MAX_SIGNALS):
            if at in (head, 0):
                break
            queued = self.kernel.view("sigqueue", at)  # `list` is its first member
            if queued.int("info.si_signo") == signal:
                return queued.int("info.si_code")
            at = VirtAddr(self.word(at))
        return None

    def place(self, ip: VirtAddr, mm: StructView | None) -> str:
        """Where code lies: `symbol+0xoffset`, or the file and the offset in it."""
        user = self.kernel.space.format.va_bits - 1
        if ip & -self.kernel.space.format.page_size == VSYSCALL:
            return f"[vsyscall]+{ip - VSYSCALL:#x}"
        if ip >> user:
            found = ksyms.in_kernel(self.kernel, ip)
            if found is None:
                found = ksyms.symbolise(self.kernel, [ip], modules.modules(self.kernel))[ip]
            return printable(found.split("/")[0])
        vma = self.vma_at(mm, ip) if mm else None
        if vma is None:
            return f"{ip:#x}"
        return printable(f"{vma.name or 'anonymous memory'}+{ip - vma.start + vma.offset:#x}")

    # VMAs

    def vma(self, view: StructView) -> Vma:
        """A struct vm_area_struct in hand."""
        mm = view.deref("vm_mm")
        if mm is None:
            raise KernelError("a VMA without an mm")
        return vmas.read(view, Mm.read(mm, ()))

    def vma_at(self, mm: StructView, address: VirtAddr) -> Vma | None:
        """The VMA that an address lies in."""
        return vmas.find(Mm.read(mm, ()), address)

    def backing(self, view: StructView) -> tuple[bool, bool]:
        """Whether a VMA maps a file, and whether its pages come from a driver (or are the vDSO's)."""
        if not view.ptr("vm_ops"):
            return False, False  # C: vma_is_anonymous()
        file = view.deref("vm_file")
        inode = file.deref("f_inode") if file else None
        device = inode is None or inode.int("i_mode") & _S_IFMT not in (_S_IFREG, _S_IFBLK)
        return True, device

    # Frames

    @cached_property
    def zero_pfn(self) -> Pfn:
        """The frame of zeros (C: empty_zero_page)."""
        at = self.kernel.virt_to_phys(self.kernel.symbol("empty_zero_page"))
        return Pfn(at // self.kernel.space.format.page_size)

    def huge_zero_pfn(self) -> int | None:
        """The first frame of the huge zero page; None where there is none now."""
        if "huge_zero_pfn" not in self.kernel.symbols:
            return None
        return self.word(self.kernel.symbol("huge_zero_pfn"))

    @cached_property
    def _memmap(self) -> MemMap:
        return MemMap(self.kernel)

    def struct_pages(self) -> StructPages | None:
        """A copy of every struct page, to look one up later; None where that is too much to copy."""
        memmap = self._memmap
        if sum(end - first for first, end in memmap.runs) * memmap.struct_size > _MAX_MEMMAP:
            return None
        return [(first, structs.copy()) for first, _, structs in memmap.pieces(memmap.end)]

    def frame_before(self, pages: StructPages | None, pfn: Pfn) -> FrameState | None:
        """A frame's state in such a copy, or its compound page's."""
        page = self._copied(pages, pfn)
        if page is None:
            return None
        words = self._memmap.compound_words(page)
        head = self._copied(pages, Pfn(int(self._memmap.heads_of(np.array([pfn]), words)[0])))
        return self._state(pfn, (page if head is None else head).tobytes())

    def _copied(self, pages: StructPages | None, pfn: Pfn) -> NDArray[np.uint8] | None:
        """A struct page in a copy, as the only row."""
        for first, structs in pages or ():
            if 0 <= pfn - first < len(structs):
                return structs[pfn - first : pfn - first + 1]
        return None

    def frame(self, pfn: Pfn) -> FrameState | None:
        """A frame's state now, or its compound page's; None for a frame without a struct page."""
        if not self._memmap.has(pfn):
            return None
        raw = self.kernel.space.read(self._memmap.address(pfn), self._memmap.struct_size)
        head = int(self._memmap.heads(pfn, Pfn(pfn + 1))[0])
        if head != pfn:
            raw = self.kernel.space.read(self._memmap.address(Pfn(head)), self._memmap.struct_size)
        return self._state(pfn, raw)

    def order(self, pfn: Pfn) -> int:
        """The order of the compound page that begins at a frame; 0 for a page of its own."""
        memmap = self._memmap
        flags = memmap.view(pfn).int("flags.f" if self.kernel.types.has("page", "flags.f") else "flags")
        if not flags >> self._flags["PG_head"] & 1:
            return 0
        return compound_order(self.kernel, memmap.address(pfn), memmap.struct_size)

    def _state(self, pfn: Pfn, raw: bytes) -> FrameState:
        def number(path: str, size: int, signed: bool = False) -> int:
            at = self.kernel.types.offsetof("page", path)
            return int.from_bytes(raw[at : at + size], "little", signed=signed)

        word = number("page_type", 4)
        typed = word >> 31 == 1 and word != 0xFFFFFFFF
        flags = number("flags", 8)
        mapping, count = number("mapping", 8), number("_refcount.counter", 4)
        slab = "PG_slab" in self._flags and flags >> self._flags["PG_slab"] & 1
        return FrameState(
            pfn=pfn,
            use=self._use(pfn, flags, word if typed else None, mapping, count, bool(slab)),
            refcount=count,
            mapcount=None if typed or slab else number("_mapcount.counter", 4, True) + 1,
        )

    @cached_property
    def _flags(self) -> dict[str, int]:
        return dict(self.kernel.types.enum("pageflags"))

    def _use(self, pfn: Pfn, flags: int, kind: int | None, mapping: int, count: int, slab: bool) -> str:
        if pfn == self.zero_pfn:
            return "zero page"
        if slab:
            return "slab"
        if kind is not None:
            return self._typed(kind)
        if count == 0:
            return "free"  # in the buddy allocator, or on a CPU's list
        if mapping & 3 == 1:
            return "anonymous"
        if mapping & 3 == 3:
            return "KSM"
        if mapping:
            return "shared memory" if flags >> self._flags["PG_swapbacked"] & 1 else "page cache"
        return "reserved" if flags >> self._flags["PG_reserved"] & 1 else "kernel"

    def _typed(self, word: int) -> str:
        if word == self.kernel.vmcoreinfo.number("PAGE_BUDDY_MAPCOUNT_VALUE") & 0xFFFFFFFF:
            return "free"
        if self.kernel.types.has("pagetype"):  # 4ffca5a96678 (6.12): the top byte is the type
            names = {number: name for name, number in self.kernel.types.enum("pagetype").items()}
            name = names.get(word >> 24, "").removeprefix("PGTY_")
            return {"buddy": "free", "table": "page table"}.get(name, name or "kernel")
        return "kernel"


def safe_place(reader: Reader, ip: VirtAddr, mm: StructView | None) -> str:
    """`Reader.place`, or the bare address where memory does not tell."""
    try:
        return reader.place(ip, mm)
    except InspectorError:
        return f"{ip:#x}"
