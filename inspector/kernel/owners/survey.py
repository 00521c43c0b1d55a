"""All page tables of a moment, read once for all painters, and the threads that they and stacks belong to."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.arch import StillSpace
from inspector.kernel.bulk import columns
from inspector.kernel.cpus import idle_tasks, user_roots
from inspector.kernel.recall import confirm, recall, recall_survey
from inspector.kernel.tasks import task_views, user_end
from inspector.symbols import Kernel
from inspector.units import printable

_COMM = 16  # TASK_COMM_LEN
_KERNEL_MMS = (
    "poking_mm",
    "text_poke_mm",
)  # to write code through (arch/x86/kernel/alternative.c): no task's


@dataclass(frozen=True, slots=True)
class Survey:
    """All threads and address spaces, and what the page tables of these hold.

    The `root` of `user_leaves` and `user_tables` is an address space's index, that of `kernel_tables` one
    more, and 0 for the kernel's own; a large page is one leaf. See arch.survey() for the rows. `kernel` reads
    through these tables.
    """

    kernel: Kernel
    threads: Threads
    user_leaves: NDArray[np.void]
    user_tables: NDArray[np.void]
    kernel_tables: NDArray[np.void]

    @classmethod
    def of(cls, kernel: Kernel) -> Survey:
        """Read them. Raises CorruptGuest."""
        space, border = kernel.space, user_end(kernel)
        nobody = np.zeros(1, np.uint32)
        shared = recall_survey(kernel, "kernel", np.array([space.root], np.uint64), nobody, border)
        kernel = copy(kernel)
        confirm(kernel, StillSpace(kernel.memory, space.format, space.root, shared.stretches))
        threads = recall(kernel, all_threads)
        # Kernel addresses may differ between address spaces: the LDT, and all of a user's root (KPTI).
        found = recall_survey(kernel, "users", threads.roots, threads.origins, known=shared.tables["pa"])
        user_leaves, _ = _halves(found.leaves, border)
        user_tables, others = _halves(found.tables, border)
        others["root"] += 1
        return cls(kernel, threads, user_leaves, user_tables, np.concatenate((shared.tables, others)))


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads as columns, and all address spaces.

    `names` are the threads' (`comm (pid)`), `stacks` the lowest address of each one's kernel stack. `spaces`
    names each address space after a process that has it. `roots` are the physical addresses of all top page
    tables, `origins` the index of each one's address space.
    """

    names: list[str]
    stacks: NDArray[np.uint64]
    spaces: list[str]
    roots: NDArray[np.uint64]
    origins: NDArray[np.uint32]


def all_threads(kernel: Kernel) -> Threads:
    """A question for recall()."""
    threads, idle = (
        [view.address for view in each] for each in (task_views(kernel, True), idle_tasks(kernel))
    )
    every = np.array([*threads, *idle], np.uint64)
    pid, tgid, stack, mm = (
        columns(kernel, "task_struct", every, member)[0] for member in ("pid", "tgid", "stack", "mm")
    )
    names = _names(kernel, every, pid, len(idle))
    leaders = np.flatnonzero((pid == tgid) & (mm != 0))
    leaders = leaders[leaders < len(threads)]
    mms, whose = mm[leaders], [names[place] for place in leaders.tolist()]
    own = {symbol: kernel.word(symbol) for symbol in _KERNEL_MMS if symbol in kernel.symbols}
    own = {symbol: at for symbol, at in own.items() if at}
    spaces, first = np.unique(np.append(mms, np.array([*own.values()], np.uint64)), return_index=True)
    whose += own
    (pgd,) = columns(kernel, "mm_struct", spaces, "pgd")
    roots = kernel.space.locate(pgd)[0]
    users = user_roots(kernel, roots)
    return Threads(
        names=names,
        stacks=stack.astype(np.uint64),
        spaces=[whose[place] for place in first.tolist()],
        roots=np.concatenate((roots, users)),
        origins=np.tile(np.arange(len(roots), dtype=np.uint32), 1 + (len(users) > 0)),
    )


def _halves(rows: NDArray[np.void], border: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Those of the user's addresses, and of the kernel's."""
    user = rows["va"] < np.uint64(border)
    return (rows, rows[:0]) if user.all() else (rows[user], rows[~user])


def _names(kernel: Kernel, threads: NDArray[np.uint64], pids: NDArray[np.int64], idle: int) -> list[str]:
    """`comm (pid)` of each; the last `idle` are idle tasks, which all have PID 0."""
    at = threads + np.uint64(kernel.types.offsetof("task_struct", "comm"))
    raw, _ = kernel.space.gather(at, np.dtype(np.uint8), _COMM)
    rows = raw.tobytes()
    texts = (rows[first : first + _COMM].split(b"\0", 1)[0] for first in range(0, len(rows), _COMM))
    whose = [*map(str, pids[: len(pids) - idle].tolist()), *["idle"] * idle]
    return [
        f"{printable(text.decode('utf-8', 'backslashreplace'))} ({who})"
        for text, who in zip(texts, whose, strict=True)
    ]
