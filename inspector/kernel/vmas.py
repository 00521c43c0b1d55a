"""Virtual memory areas: what an address space promises, and /proc/PID/maps' names (fs/proc/task_mmu.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.errors import CorruptGuest
from inspector.kernel import maple
from inspector.kernel.mm import Mm
from inspector.kernel.paths import file_path
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_MAX_VMAS = 1 << 20
_MINOR_BITS = 20  # include/linux/kdev_t.h
_MAX_ANON_NAME = 80  # ANON_VMA_NAME_MAX_LEN

# include/linux/mm.h; macros, so neither BTF nor DWARF has them. Bits above 31 move with the configuration.
VM_FLAGS = {
    "READ": 0, "WRITE": 1, "EXEC": 2, "SHARED": 3,
    "MAYREAD": 4, "MAYWRITE": 5, "MAYEXEC": 6, "MAYSHARE": 7,
    "GROWSDOWN": 8, "UFFD_MISSING": 9, "PFNMAP": 10, "UFFD_WP": 12,
    "LOCKED": 13, "IO": 14, "SEQ_READ": 15, "RAND_READ": 16,
    "DONTCOPY": 17, "DONTEXPAND": 18, "LOCKONFAULT": 19, "ACCOUNT": 20,
    "NORESERVE": 21, "HUGETLB": 22, "SYNC": 23, "WIPEONFORK": 25,
    "DONTDUMP": 26, "SOFTDIRTY": 27, "MIXEDMAP": 28, "HUGEPAGE": 29,
    "NOHUGEPAGE": 30, "MERGEABLE": 31,
}  # fmt: skip
_VM_READ, _VM_WRITE, _VM_EXEC, _VM_MAYSHARE = (
    1 << VM_FLAGS[name] for name in ("READ", "WRITE", "EXEC", "MAYSHARE")
)


@dataclass(frozen=True, slots=True)
class Vma:
    """A struct vm_area_struct: `start` to `end` exclusive. `offset` is in bytes; device, inode: the file's.

    `name` is what /proc/PID/maps prints, unescaped and untrusted; empty for plain anonymous memory.
    """

    start: VirtAddr
    end: VirtAddr
    flags: int
    offset: int
    device: tuple[int, int]
    inode: int
    name: str
    address: VirtAddr

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def permissions(self) -> str:
        """As in /proc/PID/maps: `rw-p`."""
        return (
            ("r" if self.flags & _VM_READ else "-")
            + ("w" if self.flags & _VM_WRITE else "-")
            + ("x" if self.flags & _VM_EXEC else "-")
            + ("s" if self.flags & _VM_MAYSHARE else "p")
        )

    @property
    def flag_names(self) -> tuple[str, ...]:
        """The VM_* flags that are set, without their VM_."""
        return tuple(name for name, bit in VM_FLAGS.items() if self.flags >> bit & 1)


def vmas(mm: Mm) -> list[Vma]:
    """Every VMA of an address space in order, the vsyscall page that all 64-bit tasks share last."""
    found = [read(view, mm) for view in _views(mm.view)]
    gate = _gate(mm)
    return [*found, gate] if gate else found


def find(mm: Mm, address: VirtAddr) -> Vma | None:
    """The VMA that an address lies in; None between them. The vsyscall page is not looked at."""
    kernel = mm.view.kernel
    if mm.view.has("mm_mt"):
        value = maple.find(mm.view.at("mm_mt"), address)
        if value is None or kernel.space.translate(value) is None:
            return None
        return read(kernel.view("vm_area_struct", value), mm)
    for view in _views(mm.view):
        if view.ptr("vm_start") <= address < view.ptr("vm_end"):
            return read(view, mm)
    return None


def _views(mm: StructView) -> Iterator[StructView]:
    kernel = mm.kernel
    if mm.has("mm_mt"):
        for entry in maple.entries(mm.at("mm_mt")):
            if kernel.space.translate(entry.value) is not None:  # XA_ZERO_ENTRY marks a range in the making
                yield kernel.view("vm_area_struct", entry.value)
        return
    vma = mm.deref("mmap")  # before 763ecb035029 (6.1): a list in address order
    seen: set[int] = set()
    while vma is not None:
        if vma.address in seen or len(seen) > _MAX_VMAS:
            raise CorruptGuest(f"the VMA list of the mm at {mm.address:#x} does not end")
        seen.add(vma.address)
        yield vma
        vma = vma.deref("vm_next")


def read(view: StructView, mm: Mm) -> Vma:
    """A struct vm_area_struct of this address space."""
    file = view.deref("vm_file")
    inode = file.deref("f_inode") if file else None
    superblock = inode.deref("i_sb") if inode else None
    device = superblock.int("s_dev") if superblock else 0
    return Vma(
        start=VirtAddr(view.ptr("vm_start")),
        end=VirtAddr(view.ptr("vm_end")),
        flags=view.int("vm_flags"),
        offset=view.int("vm_pgoff") * view.kernel.space.format.page_size if file else 0,
        device=(device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1),
        inode=inode.int("i_ino") if inode else 0,
        name=_name(view, file, mm),
        address=view.address,
    )


def _name(view: StructView, file: StructView | None, mm: Mm) -> str:
    given_name = _given_name(view)
    if file:
        return f"[anon_shmem:{given_name}]" if given_name else file_path(file)
    if special := _special_mapping(view):
        return special
    start, end = view.ptr("vm_start"), view.ptr("vm_end")
    if start < mm.brk and end > mm.start_brk:
        return "[heap]"
    if start <= mm.start_stack <= end:
        return "[stack]"
    return f"[anon:{given_name}]" if given_name else ""


def _given_name(view: StructView) -> str:
    """What prctl(PR_SET_VMA_ANON_NAME) called the memory; 9a10064f5625 (5.17)."""
    if not view.has("anon_name"):
        return ""
    if view.ptr("vm_file") and view.addr("anon_name") == view.addr(
        "shared"
    ):  # one union until d09e8ca6cb93 (6.2)
        return ""
    given = view.deref("anon_name")
    return view.kernel.space.cstring(given.addr("name"), _MAX_ANON_NAME) if given else ""


def _special_mapping(view: StructView) -> str:
    """[vdso], [vvar] and the like name themselves (struct vm_special_mapping, mm/mmap.c)."""
    kernel = view.kernel
    if not kernel.symbols.has("special_mapping_vmops") or view.ptr("vm_ops") != kernel.symbol(
        "special_mapping_vmops"
    ):
        return ""
    mapping = kernel.view("vm_special_mapping", view.ptr("vm_private_data"))
    return kernel.space.cstring(mapping.ptr("name"), 64)


def _gate(mm: Mm) -> Vma | None:
    """The vsyscall page: one VMA for all, in no mm's tree (get_gate_vma(), arch/x86/entry/vsyscall)."""
    kernel: Kernel = mm.view.kernel
    if not kernel.symbols.has("gate_vma") or not _has_vsyscall(mm):
        return None
    gate = read(kernel.variable("vm_area_struct", "gate_vma"), mm)
    return Vma(gate.start, gate.end, gate.flags, gate.offset, (0, 0), 0, "[vsyscall]", gate.address)


def _has_vsyscall(mm: Mm) -> bool:
    if mm.view.kernel.symbols.has("vsyscall_mode"):
        mode = int.from_bytes(mm.view.kernel.space.read(mm.view.kernel.symbol("vsyscall_mode"), 4), "little")
        if mode == 2:  # NONE of an unnamed enum: EMULATE, XONLY, NONE
            return False
    if mm.view.has("context.flags"):  # 5c7919bb1994 (5.12): MM_CONTEXT_HAS_VSYSCALL is bit 1
        return bool(mm.view.int("context.flags") >> 1 & 1)
    return True
