"""Tasks and threads (include/linux/sched.h, struct task_struct)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace, Walk
from inspector.errors import CorruptGuest, NoSuchTask, OutsideRam, PageFault
from inspector.kernel import lists, smaps, vmas
from inspector.kernel.mm import Mm
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr, printable

# Bits of task_struct.__state and .exit_state, include/linux/sched.h; the letters are fs/proc/array.c's.
_STATE_LETTERS = "RSDTtXZPI"
_TASK_REPORT = 0x7F
_TASK_IDLE = 0x402  # TASK_UNINTERRUPTIBLE | TASK_NOLOAD
_TASK_RTLOCK_WAIT = 0x1000
_PF_WQ_WORKER, _PF_KTHREAD = 0x00000020, 0x00200000
_MAX_NAME = 64  # the buffer of proc_task_name(), fs/proc/array.c
_UNREADABLE = (CorruptGuest, OutsideRam, PageFault)


@dataclass(frozen=True, slots=True)
class Task:
    """A thread as the kernel knows it; the leader of its group where pid == tgid.

    `name` is what ps shows: `comm`, but a kernel thread's in full and a worker's with its work; `state` is
    ps's letter; `cpu` is where it runs or ran; `stack` is the kernel stack's lowest address. `mm` is None
    for a kernel thread. `address` is the struct task_struct's.

    Of a task that cannot be read whole, `error` says why and `name` ends with it; its state is `?`, and what
    is not known is 0 or None.
    """

    pid: int
    tgid: int
    ppid: int
    comm: str
    name: str
    state: str
    uid: int
    cpu: int
    threads: int
    kernel_thread: bool
    stack: VirtAddr
    address: VirtAddr
    mm: Mm | None = field(repr=False)
    kernel: Kernel = field(repr=False, compare=False)
    error: str = ""

    def vmas(self) -> list[vmas.Vma]:
        """The mapped ranges of the address space, in order; none for a kernel thread. Raises CorruptGuest."""
        with self.kernel.still():
            return vmas.vmas(self.mm) if self.mm else []

    @property
    def space(self) -> AddressSpace:
        """What a CPU that runs the task walks: its own page tables, or the kernel's for a kernel thread."""
        if self.mm is None:
            return self.kernel.space
        return AddressSpace(self.kernel.memory, self.kernel.space.format, self.mm.pgd)

    def walk(self, va: VirtAddr) -> Walk:
        """Follow an address through the task's page tables, level by level."""
        with self.kernel.still():
            return self.space.walk(va)

    def mappings(self) -> NDArray[np.void]:
        """Every leaf entry of the user half, by address, as arch.MAPPING rows; empty for a kernel thread."""
        with self.kernel.still():
            return self.space.scan(0, user_end(self.kernel) if self.mm else 0)

    def smaps(self) -> NDArray[np.void]:
        """What memory each VMA uses, as smaps.SMAPS rows in the order of vmas(). Raises CorruptGuest."""
        with self.kernel.still():
            return smaps.smaps(self.kernel, self.space, self.vmas())


def user_end(kernel: Kernel) -> VirtAddr:
    """Where the user's part of the address space ends: half of it where addresses are sign-extended."""
    paging = kernel.space.format
    return VirtAddr(1 << paging.va_bits - 1) if paging.sign_extended else kernel.page_offset


def tasks(kernel: Kernel, threads: bool = False) -> list[Task]:
    """Every process by PID, kernel threads too; with `threads` every thread.

    A task that cannot be read is there with its `error`. Raises CorruptGuest where the list does not end.
    """
    return sorted((_task_or_error(view) for view in task_views(kernel, threads)), key=lambda task: task.pid)


def task(kernel: Kernel, pid: int) -> Task:
    """The process or thread with that PID (TID). Raises NoSuchTask."""
    for view in task_views(kernel, threads=True):
        if view.int("pid") == pid:
            return _task(view)
    raise NoSuchTask(f"no task has PID {pid}; `kmi report` lists them")


def task_views(kernel: Kernel, threads: bool) -> Iterator[StructView]:
    """The struct task_struct of every process, or of every thread; idle tasks are on no list."""
    init = kernel.variable("task_struct", "init_task")
    for leader in lists.entries(kernel, init.addr("tasks"), "task_struct", "tasks"):
        try:
            yield from list(_group(leader)) if threads else (leader,)
        except _UNREADABLE:
            yield leader  # which will not be read whole either: its threads are needed for its counters


def _group(view: StructView) -> Iterable[StructView]:
    """Every thread of the task's process."""
    signal = view.deref("signal")
    if signal is None or signal.int("nr_threads") == 1:
        return (view,)
    return lists.entries(view.kernel, signal.addr("thread_head"), "task_struct", "thread_node")


def _task_or_error(view: StructView) -> Task:
    """The task; for one that is corrupt, what there is of it."""
    try:
        return _task(view)
    except _UNREADABLE as error:
        why = str(error)

    def number(member: str) -> int:
        try:
            return view.int(member)
        except _UNREADABLE:
            return 0

    try:
        comm = printable(view.text("comm"))
    except _UNREADABLE:
        comm = ""
    return Task(
        pid=number("pid"),
        tgid=number("tgid"),
        ppid=0,
        comm=comm,
        name=f"{comm} (unreadable: {why})",
        state="?",
        uid=0,
        cpu=0,
        threads=1,
        kernel_thread=bool(number("flags") & _PF_KTHREAD),
        stack=VirtAddr(number("stack")),
        address=view.address,
        mm=None,
        kernel=view.kernel,
        error=why,
    )


def _task(view: StructView) -> Task:
    kernel = view.kernel
    signal, mm, parent = view.deref("signal"), view.deref("mm"), view.deref("real_parent")
    # bcf9033e5449 (5.16) moved the CPU back into thread_info.
    cpu = view.int("thread_info.cpu" if view.has("thread_info.cpu") else "cpu")
    cred = view.deref("cred")
    return Task(
        pid=view.int("pid"),
        tgid=view.int("tgid"),
        ppid=parent.int("tgid") if parent else 0,
        comm=printable(view.text("comm")),
        name=printable(_name(view)),
        state=_state(view),
        uid=cred.int("uid.val") if cred else 0,
        cpu=cpu,
        threads=signal.int("nr_threads") if signal else 1,
        kernel_thread=bool(view.int("flags") & _PF_KTHREAD),
        stack=view.ptr("stack"),
        address=view.address,
        mm=Mm.read(mm, _group(view)) if mm else None,
        kernel=kernel,
    )


def _state(view: StructView) -> str:
    # 2f064a59a11f (5.14) renamed state to __state.
    state = view.int("__state" if view.has("__state") else "state")
    if state & _TASK_IDLE == _TASK_IDLE:
        return "I"
    if state & _TASK_RTLOCK_WAIT:
        return "D"
    return _STATE_LETTERS[((state | view.int("exit_state")) & _TASK_REPORT).bit_length()]


def _name(view: StructView) -> str:
    """What proc_task_name() prints (fs/proc/array.c): a kernel thread's name may not fit comm."""
    comm = view.text("comm")
    flags = view.int("flags")
    # e32cf5dfbe22 (5.17): in its own member; before, where a user's thread keeps an address.
    private = view.ptr("worker_private" if view.has("worker_private") else "set_child_tid")
    if not flags & _PF_KTHREAD or not private:
        return comm
    kthread = view.kernel.view("kthread", VirtAddr(private))
    full = kthread.ptr("full_name") if kthread.has("full_name") else 0  # d6986ce24fc0 (5.17)
    worker = flags & _PF_WQ_WORKER
    # 2a1b02bcba78 (6.11): a workqueue's rescuer is kworker/R-NAME in full; other workers go by comm.
    name = comm
    if full and (not worker or comm.startswith("kworker/R-")):
        name = view.kernel.space.cstring(VirtAddr(full), _MAX_NAME)
    return name + (_work(view.kernel.view("worker", kthread.ptr("data"))) if worker else "")


def _work(worker: StructView) -> str:
    """What a worker does (+) or did last (-), as wq_worker_comm() says it (kernel/workqueue.c)."""
    description = worker.text("desc")
    if not description or not worker.ptr("pool"):
        return ""
    return ("+" if worker.ptr("current_work") else "-") + description
