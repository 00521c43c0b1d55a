"""Which tasks are traced."""

from __future__ import annotations

from inspector.errors import InspectorError, NoSuchTask, UsageError
from inspector.kernel import cpus, tasks
from inspector.symbols import StructView
from inspector.trace.reading import Reader


class Followed:
    """A process with all its threads, and with `children` what it forks. Reads at stops.

    Raises NoSuchTask, and UsageError for a kernel thread.
    """

    def __init__(self, reader: Reader, pid: int, children: bool) -> None:
        found = tasks.task(reader.kernel, pid)
        if found.mm is None:
            raise UsageError(f"{found.name} (PID {pid}) is a kernel thread: it has no page faults of its own")
        self._reader = reader
        self._children = children
        task = reader.kernel.view("task_struct", found.address)
        self._leaders = {found.tgid: task.deref("group_leader") or task}
        self.mm = task.ptr("mm")
        """The process's struct mm_struct as the trace began; an exec brings another."""

    def running(self, cpu: int) -> StructView | None:
        """The task that a CPU runs, where it is a traced one."""
        task = cpus.current_task(self._reader.kernel, cpu)
        tgid = task.int("tgid")
        if tgid not in self._leaders:
            parent = task.deref("real_parent") if self._children else None
            leader = task.deref("group_leader")
            if parent is None or leader is None or parent.int("tgid") not in self._leaders:
                return None
            self._leaders[tgid] = leader
        return task

    def runs(self, cpu: int, task: StructView) -> bool:
        """Whether a CPU runs this very task."""
        return cpus.current_task(self._reader.kernel, cpu).address == task.address

    def alive(self) -> bool:
        """Whether a traced process has a thread left. What looks torn counts as alive: the guest may run.

        A task's last page faults come before it has an exit_state and, but for the leader, leaves the group
        (kernel/exit.c, do_exit()).
        """
        try:
            for tgid, leader in list(self._leaders.items()):
                signal = leader.deref("signal")
                others = signal is not None and signal.int("nr_threads") > 1
                if leader.int("tgid") == tgid and (others or not leader.int("exit_state")):
                    return True
                if self._children:  # its task_struct may soon be another's
                    del self._leaders[tgid]
        except NoSuchTask:
            return False
        except InspectorError:
            return True
        return False
