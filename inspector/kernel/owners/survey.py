"""All page tables of a moment, read once for all painters, and the threads that they and stacks belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.arch import survey, translate
from inspector.kernel.bulk import columns
from inspector.kernel.cpus import idle_tasks, user_roots
from inspector.kernel.tasks import task_views, user_end
from inspector.symbols import Kernel
from inspector.units import printable

_COMM = 16  # TASK_COMM_LEN


@dataclass(frozen=True, slots=True)
class Survey:
    """Threads as columns, address spaces by their index, and what their page tables hold.

    `names` are the threads' (`comm (pid)`), `stacks` the lowest address of each one's kernel stack. `spaces`
    names each address space after a process that has it. The `root` of `user_leaves` and `user_tables` is
    an address space's index; a large page is one leaf. See arch.survey() for the rows.
    """

    names: tuple[str, ...]
    stacks: NDArray[np.uint64]
    spaces: tuple[str, ...]
    user_leaves: NDArray[np.void]
    user_tables: NDArray[np.void]
    kernel_leaves: NDArray[np.void]
    kernel_tables: NDArray[np.void]

    @classmethod
    def of(cls, kernel: Kernel) -> Survey:
        """Read them. Raises CorruptGuest."""
        threads = np.array([view.address for view in task_views(kernel, threads=True)], np.uint64)
        pid, tgid, stack, mm = columns(kernel, "task_struct", threads, "pid", "tgid", "stack", "mm")
        names = _names(kernel, threads, pid)
        leaders = np.flatnonzero((pid == tgid) & (mm != 0))
        spaces, first = np.unique(mm[leaders], return_index=True)
        (pgd,) = columns(kernel, "mm_struct", spaces, "pgd")
        memory, paging = kernel.memory, kernel.space.format
        roots = translate(memory, paging, kernel.space.root, pgd)[0]
        every = np.concatenate((roots, user_roots(kernel, roots)))
        border = user_end(kernel)
        user = survey(memory, paging, every, 0, border)
        for rows in user:
            rows["root"] %= max(len(roots), 1)
        init = np.array([kernel.space.root], np.uint64)
        # Kernel addresses may differ between address spaces: the LDT, and all of a user's root (KPTI).
        own = survey(memory, paging, np.concatenate((init, every)), border)
        idle = idle_tasks(kernel)
        return cls(
            names=(*names, *(f"{printable(view.text('comm'))} (idle)" for view in idle)),
            stacks=np.concatenate((stack, np.array([view.ptr("stack") for view in idle], np.uint64))),
            spaces=tuple(names[place] for place in leaders[first].tolist()),
            user_leaves=user[0],
            user_tables=user[1],
            kernel_leaves=own[0],
            kernel_tables=own[1],
        )


def _names(kernel: Kernel, threads: NDArray[np.uint64], pids: NDArray[np.int64]) -> list[str]:
    at = threads + np.uint64(kernel.types.offsetof("task_struct", "comm"))
    raw, _ = kernel.space.gather(at, np.dtype(np.uint8), _COMM)
    texts = (row.tobytes().split(b"\0", 1)[0].decode("utf-8", "backslashreplace") for row in raw)
    return [f"{printable(text)} ({pid})" for text, pid in zip(texts, pids.tolist(), strict=True)]
