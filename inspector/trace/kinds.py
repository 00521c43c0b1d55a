"""What kind of page fault it was, by what was seen of it; knows no guest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SIGBUS, SIGSEGV = 7, 11
_SEGV_CODES = {  # include/uapi/asm-generic/siginfo.h
    1: "no mapping there (SEGV_MAPERR)",
    2: "the mapping does not allow it (SEGV_ACCERR)",
    3: "bounds (SEGV_BNDERR)",
    4: "the protection key forbids it (SEGV_PKUERR)",
}
_BUS_CODES = {
    1: "unaligned (BUS_ADRALN)",
    2: "nothing behind the mapping there, as past the end of a file (BUS_ADRERR)",
    4: "the memory is broken (BUS_MCEERR_AR)",
}


class FaultKind(Enum):
    """The kinds of page fault."""

    ANONYMOUS = "anonymous first touch"
    ZERO_PAGE = "zero page read"
    THP = "transparent huge page"
    HUGETLB = "hugetlb page"
    COW_COPY = "copy-on-write, copied"
    COW_REUSE = "copy-on-write, reused"
    FILE_MINOR = "file read, minor"
    FILE_MAJOR = "file read, major"
    SHARED_WRITE = "shared write"
    SWAP_IN = "swap-in"
    MIGRATION = "wait for migration"
    NUMA_HINT = "NUMA hint"
    STACK_GROWTH = "stack growth"
    DIRTY_TRACKING = "write-protect for dirty tracking"
    USERFAULTFD = "userfaultfd"
    USERFAULTFD_WP = "userfaultfd write-protect"
    DRIVER = "driver fault"
    VMALLOC_SYNC = "vmalloc sync"
    VSYSCALL = "vsyscall emulation"
    SPURIOUS = "spurious"
    OUT_OF_MEMORY = "out of memory"
    SIGSEGV = "SIGSEGV"
    SIGBUS = "SIGBUS"
    KERNEL_EFAULT = "kernel access failed"
    UNKNOWN = "not told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The last entry that a walk came to. `use` is what a not-present one stands for: `none`, `swap`, ...

    `writable` is the rights of all levels together; `size` is that of the page, in bytes; `zero`: the frame
    is the zero page or the huge zero page; `anonymous`: its struct page says so.
    """

    use: str = "none"
    pfn: int | None = None
    size: int | None = None
    writable: bool = False
    soft_dirty: bool = False
    uffd_wp: bool = False
    zero: bool = False
    anonymous: bool = False

    @property
    def present(self) -> bool:
        """Whether it maps a page."""
        return self.pfn is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the kind of a fault is told by. `allowed`: the walk before it already granted the access.

    `results` are the names of what each handle_mm_fault() returned, VM_FAULT_ left out, of which the last is
    the outcome; `vma` the names of the VMA's flags, VM_ left out, None where no VMA was found; `device`: its
    file is a device; `fixed_up`: the kernel's own access failed and it went to its exception table.
    """

    write: bool = False
    kernel_address: bool = False
    vsyscall: bool = False
    allowed: bool = False
    vma: frozenset[str] | None = None
    file: bool = False
    device: bool = False
    hugetlb: bool = False
    before: Entry = Entry()
    after: Entry = Entry()
    results: tuple[frozenset[str], ...] = ()
    major: bool = False
    grew: bool = False
    fixed_up: bool = False
    signal: int | None = None
    signal_code: int | None = None


def classify(seen: Evidence) -> FaultKind:
    """The kind. What ended in a signal is that, whatever it began as."""
    for kind in (_failed(seen), _without_handler(seen), _by_entry(seen)):
        if kind is not None:
            return kind
    if seen.before.present:
        return _present(seen)
    return _first_touch(seen)


def _failed(seen: Evidence) -> FaultKind | None:
    if seen.signal == SIGSEGV:
        return FaultKind.SIGSEGV
    if seen.signal == SIGBUS:
        return FaultKind.SIGBUS
    if seen.fixed_up:
        return FaultKind.KERNEL_EFAULT
    if seen.results and "OOM" in seen.results[-1]:
        return FaultKind.OUT_OF_MEMORY
    return None


def _without_handler(seen: Evidence) -> FaultKind | None:
    """What never comes to handle_mm_fault()."""
    if seen.vsyscall:
        return FaultKind.VSYSCALL
    if seen.kernel_address:
        made = not seen.before.present and seen.after.present
        return FaultKind.VMALLOC_SYNC if made else FaultKind.SPURIOUS
    if not seen.results:
        return FaultKind.SPURIOUS if seen.allowed else FaultKind.UNKNOWN
    return None


def _by_entry(seen: Evidence) -> FaultKind | None:
    """What the entry before, or the VMA, tells alone."""
    vma = seen.vma or frozenset()
    if "UFFD_WP" in vma and seen.before.uffd_wp and seen.write:
        return FaultKind.USERFAULTFD_WP
    waited = any("RETRY" in result for result in seen.results)
    if "UFFD_MISSING" in vma and seen.before.use == "none" and not seen.before.present and waited:
        return FaultKind.USERFAULTFD
    if seen.before.use == "swap":
        return FaultKind.SWAP_IN
    if seen.before.use == "migration":
        return FaultKind.MIGRATION
    if seen.before.use == "prot_none":
        return FaultKind.NUMA_HINT
    if seen.grew:
        return FaultKind.STACK_GROWTH
    if seen.hugetlb and not seen.before.present:
        return FaultKind.HUGETLB
    return None


def _first_touch(seen: Evidence) -> FaultKind:
    """Nothing was mapped before."""
    shared = "SHARED" in (seen.vma or ())
    if seen.device:
        return FaultKind.DRIVER
    if seen.after.zero:
        return FaultKind.ZERO_PAGE
    if seen.file:
        if seen.write:
            return FaultKind.SHARED_WRITE if shared else FaultKind.COW_COPY
        return FaultKind.FILE_MAJOR if seen.major else FaultKind.FILE_MINOR
    if (seen.after.size or 0) > 4096:
        return FaultKind.THP
    return FaultKind.ANONYMOUS


def _present(seen: Evidence) -> FaultKind:
    """A page was mapped before: the access was a write, or nothing was wrong."""
    before, after = seen.before, seen.after
    if seen.allowed or not seen.write:
        return FaultKind.SPURIOUS
    tracked = "SOFTDIRTY" not in (seen.vma or ()) and not before.soft_dirty and after.soft_dirty
    if after.pfn == before.pfn and tracked:
        return FaultKind.DIRTY_TRACKING
    if "SHARED" in (seen.vma or ()):
        return FaultKind.SHARED_WRITE
    return FaultKind.COW_REUSE if after.pfn == before.pfn else FaultKind.COW_COPY


def reason(seen: Evidence) -> str:
    """Why a signal was sent, in words; empty without one."""
    code = seen.signal_code or 0
    if seen.signal == SIGBUS:
        return _BUS_CODES.get(code, f"si_code {code}")
    if seen.signal != SIGSEGV:
        return ""
    if seen.kernel_address:
        return "the address is the kernel's"
    return _SEGV_CODES.get(code, f"si_code {code}")
