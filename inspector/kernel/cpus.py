"""What runs where: each CPU's current task, and which page tables its CR3 names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.errors import KernelError
from inspector.symbols import Kernel, StructView
from inspector.units import PhysAddr, VirtAddr

_PTI_WORD, _PTI_BIT = 7, 11  # X86_FEATURE_PTI, arch/x86/include/asm/cpufeatures.h
_PTI_USER = 1 << 12  # PTI_PGTABLE_SWITCH_BIT is PAGE_SHIFT, arch/x86/include/asm/processor-flags.h
_MAX_COMM = 16


def page_table_isolation(kernel: Kernel) -> bool:
    """Whether each mm has two roots, one for user mode that maps little of the kernel (KPTI)."""
    if not kernel.types.has("cpuinfo_x86", f"x86_capability[{_PTI_WORD}]"):
        return False
    cpu = kernel.variable("cpuinfo_x86", "boot_cpu_data")
    return bool(cpu.int(f"x86_capability[{_PTI_WORD}]") >> _PTI_BIT & 1)


def user_root(kernel: Kernel, root: PhysAddr) -> PhysAddr | None:
    """The root that the MMU uses in user mode for an mm with this kernel root; None where they are one."""
    return PhysAddr(root | _PTI_USER) if page_table_isolation(kernel) else None


def user_roots(kernel: Kernel, roots: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """user_root() of many; none at all where user mode has no roots of its own."""
    return roots | np.uint64(_PTI_USER) if page_table_isolation(kernel) else np.empty(0, np.uint64)


def root_kind(kernel: Kernel, root: PhysAddr) -> str:
    """What a CR3 names: `kernel and user` without KPTI; with it `kernel` or `user`."""
    if not page_table_isolation(kernel):
        return "kernel and user"
    return "user" if root & _PTI_USER else "kernel"


def current_task(kernel: Kernel, cpu: int) -> StructView:
    """The struct task_struct that the CPU runs. Raises KernelError where it is in no known place."""
    if kernel.types.has("pcpu_hot", "current_task"):  # e57ef2ed97c1 (6.2), gone again in 6.15
        hot = kernel.view("pcpu_hot", kernel.per_cpu("pcpu_hot", cpu))
        task = hot.deref("current_task")
    elif kernel.symbols.has("current_task"):
        pointer = kernel.space.u64(kernel.per_cpu("current_task", cpu))
        task = kernel.view("task_struct", VirtAddr(pointer)) if pointer else None
    else:
        task = None
    if task is None:
        raise KernelError(f"CPU {cpu} has no current task")
    return task


def active_root(kernel: Kernel, cpu: int) -> PhysAddr:
    """The root of the mm that the CPU's task runs on, its own or a borrowed one (C: current->active_mm->pgd).

    For where nobody saved CR3. Raises KernelError, PageFault.
    """
    mm = current_task(kernel, cpu).deref("active_mm")
    if mm is None:
        raise KernelError(f"the task on CPU {cpu} has no active_mm")
    return kernel.virt_to_phys(mm.ptr("pgd"))


def idle_tasks(kernel: Kernel) -> list[StructView]:
    """Each online CPU's idle task, which is on no list (C: cpu_rq(cpu)->idle)."""
    if "runqueues" not in kernel.symbols:
        return []
    idle = [kernel.view("rq", kernel.per_cpu("runqueues", cpu)).deref("idle") for cpu in kernel.online_cpus()]
    return [task for task in idle if task is not None]
