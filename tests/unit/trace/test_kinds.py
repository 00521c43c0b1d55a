"""Evidence, made by hand after the kernel's handlers (mm/memory.c), and the kind that it is of."""

from __future__ import annotations

import pytest

from inspector.trace.kinds import SIGBUS, SIGSEGV, Entry, Evidence, FaultKind, classify, reason

_DONE = (frozenset[str](),)
_RETRIED = (frozenset({"RETRY"}), frozenset[str]())
_ANON = frozenset({"READ", "WRITE", "MAYREAD", "SOFTDIRTY"})
_SHARED = _ANON | {"SHARED"}
_READ_ONLY = Entry(pfn=10, size=4096, soft_dirty=True)
_WRITABLE = Entry(pfn=10, size=4096, writable=True, soft_dirty=True)
_OTHER = Entry(pfn=11, size=4096, writable=True, soft_dirty=True)

_CASES = {
    "do_anonymous_page() for a write": (
        Evidence(write=True, vma=_ANON, after=_OTHER, results=_DONE),
        FaultKind.ANONYMOUS,
    ),
    "do_anonymous_page() for a read": (
        Evidence(vma=_ANON, after=Entry(pfn=1, size=4096, zero=True), results=_DONE),
        FaultKind.ZERO_PAGE,
    ),
    "do_huge_pmd_anonymous_page()": (
        Evidence(write=True, vma=_ANON, after=Entry(pfn=512, size=2 << 20, writable=True), results=_DONE),
        FaultKind.THP,
    ),
    "its huge zero page": (
        Evidence(vma=_ANON, after=Entry(pfn=512, size=2 << 20, zero=True), results=_DONE),
        FaultKind.ZERO_PAGE,
    ),
    "hugetlb_fault()": (
        Evidence(
            write=True, vma=_ANON, hugetlb=True, file=True, after=Entry(pfn=512, size=2 << 20), results=_DONE
        ),
        FaultKind.HUGETLB,
    ),
    "wp_page_copy()": (
        Evidence(write=True, vma=_ANON, before=_READ_ONLY, after=_OTHER, results=_DONE),
        FaultKind.COW_COPY,
    ),
    "wp_page_copy() of the zero page": (
        Evidence(
            write=True, vma=_ANON, before=Entry(pfn=1, size=4096, zero=True), after=_OTHER, results=_DONE
        ),
        FaultKind.COW_COPY,
    ),
    "wp_page_reuse()": (
        Evidence(write=True, vma=_ANON, before=_READ_ONLY, after=_WRITABLE, results=_DONE),
        FaultKind.COW_REUSE,
    ),
    "do_cow_fault()": (
        Evidence(write=True, vma=_ANON, file=True, after=_OTHER, results=_DONE),
        FaultKind.COW_COPY,
    ),
    "do_read_fault()": (
        Evidence(vma=_ANON, file=True, after=_READ_ONLY, results=_DONE),
        FaultKind.FILE_MINOR,
    ),
    "do_read_fault() that waits for a disk": (
        Evidence(vma=_ANON, file=True, after=_READ_ONLY, results=_RETRIED, major=True),
        FaultKind.FILE_MAJOR,
    ),
    "do_shared_fault()": (
        Evidence(write=True, vma=_SHARED, file=True, after=_OTHER, results=_DONE),
        FaultKind.SHARED_WRITE,
    ),
    "wp_page_shared()": (
        Evidence(write=True, vma=_SHARED, file=True, before=_READ_ONLY, after=_WRITABLE, results=_DONE),
        FaultKind.SHARED_WRITE,
    ),
    "a driver's vm_ops->fault()": (
        Evidence(vma=_SHARED, file=True, device=True, after=_READ_ONLY, results=_DONE),
        FaultKind.DRIVER,
    ),
    "do_swap_page()": (
        Evidence(vma=_ANON, before=Entry(use="swap"), after=_OTHER, results=_DONE, major=True),
        FaultKind.SWAP_IN,
    ),
    "migration_entry_wait()": (
        Evidence(vma=_ANON, before=Entry(use="migration"), results=_DONE),
        FaultKind.MIGRATION,
    ),
    "do_numa_page()": (
        Evidence(vma=_ANON, before=Entry(use="prot_none"), after=_WRITABLE, results=_DONE),
        FaultKind.NUMA_HINT,
    ),
    "expand_stack()": (
        Evidence(write=True, vma=_ANON | {"GROWSDOWN"}, grew=True, after=_OTHER, results=_DONE),
        FaultKind.STACK_GROWTH,
    ),
    "a write to a page whose writes are tracked": (
        Evidence(
            write=True,
            vma=_ANON - {"SOFTDIRTY"},
            before=Entry(pfn=10, size=4096),
            after=_WRITABLE,
            results=_DONE,
        ),
        FaultKind.DIRTY_TRACKING,
    ),
    "such a page that is also shared after fork()": (
        Evidence(
            write=True,
            vma=_ANON - {"SOFTDIRTY"},
            before=Entry(pfn=10, size=4096),
            after=_OTHER,
            results=_DONE,
        ),
        FaultKind.COW_COPY,
    ),
    "handle_userfault(VM_UFFD_MISSING)": (
        Evidence(vma=_ANON | {"UFFD_MISSING"}, after=_OTHER, results=_RETRIED),
        FaultKind.USERFAULTFD,
    ),
    "the zero page where userfaultfd watches only for holes filled before": (
        Evidence(vma=_ANON | {"UFFD_WP"}, after=Entry(pfn=1, size=4096, zero=True), results=_DONE),
        FaultKind.ZERO_PAGE,
    ),
    "handle_userfault(VM_UFFD_WP)": (
        Evidence(
            write=True,
            vma=_ANON | {"UFFD_WP"},
            before=Entry(pfn=10, size=4096, uffd_wp=True),
            after=_WRITABLE,
            results=_RETRIED,
        ),
        FaultKind.USERFAULTFD_WP,
    ),
    "spurious: another thread was first": (
        Evidence(write=True, vma=_ANON, allowed=True, before=_WRITABLE, after=_WRITABLE, results=_DONE),
        FaultKind.SPURIOUS,
    ),
    "vmalloc_fault()": (
        Evidence(write=True, kernel_address=True, after=_OTHER),
        FaultKind.VMALLOC_SYNC,
    ),
    "spurious_kernel_fault()": (
        Evidence(write=True, kernel_address=True, before=_WRITABLE, after=_WRITABLE),
        FaultKind.SPURIOUS,
    ),
    "emulate_vsyscall()": (
        Evidence(kernel_address=True, vsyscall=True),
        FaultKind.VSYSCALL,
    ),
    "bad_area()": (
        Evidence(write=True, signal=SIGSEGV, signal_code=1),
        FaultKind.SIGSEGV,
    ),
    "bad_area_access_error() of a present page": (
        Evidence(write=True, vma=_ANON, before=_READ_ONLY, after=_READ_ONLY, signal=SIGSEGV, signal_code=2),
        FaultKind.SIGSEGV,
    ),
    "do_sigbus()": (
        Evidence(vma=_ANON, file=True, results=(frozenset({"SIGBUS"}),), signal=SIGBUS, signal_code=2),
        FaultKind.SIGBUS,
    ),
    "fixup_exception() in copy_from_user()": (
        Evidence(fixed_up=True),
        FaultKind.KERNEL_EFAULT,
    ),
    "pagefault_out_of_memory()": (
        Evidence(write=True, vma=_ANON, results=(frozenset({"OOM"}),)),
        FaultKind.OUT_OF_MEMORY,
    ),
    "a task that is killed before its fault is handled": (
        Evidence(write=True, vma=_ANON),
        FaultKind.UNKNOWN,
    ),
}


@pytest.mark.parametrize("name", _CASES)
def test_kind(name: str) -> None:
    seen, kind = _CASES[name]
    assert classify(seen) is kind


def test_reasons_say_why_a_signal_came() -> None:
    assert "SEGV_MAPERR" in reason(Evidence(signal=SIGSEGV, signal_code=1))
    assert "SEGV_ACCERR" in reason(Evidence(signal=SIGSEGV, signal_code=2))
    assert "SEGV_PKUERR" in reason(Evidence(signal=SIGSEGV, signal_code=4))
    assert "BUS_ADRERR" in reason(Evidence(signal=SIGBUS, signal_code=2))
    assert "kernel" in reason(Evidence(signal=SIGSEGV, signal_code=1, kernel_address=True))
    assert reason(Evidence()) == ""
