"""Tasks and VMAs against /proc/PID/status and /proc/PID/maps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from inspector import Guest
from inspector.errors import CorruptGuest, NoSuchTask, PageFault
from inspector.kernel.rmap import ReverseMap
from inspector.kernel.tasks import Task, task, tasks
from inspector.kernel.vmas import Vma
from inspector.symbols import Kernel
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest

_TRIES = 5


@pytest.fixture(scope="module")
def busy_guest(any_guest: Guest, start: Any) -> Guest:
    """A guest with tasks of every shape: threads, forks, odd names, huge and deleted mappings."""
    for command in ("/labs/maps", "/labs/fork 4M", "/labs/touch 8M --thp"):
        start(any_guest, command)
    return any_guest


def status(text: str) -> dict[str, str]:
    """The fields of /proc/PID/status by name."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def our_status(task: Task) -> dict[str, str]:
    """The fields that we know, spelled as the kernel spells them."""
    fields = {
        "Name": task.name,
        "State": task.state,
        "Tgid": str(task.tgid),
        "Pid": str(task.pid),
        "PPid": str(task.ppid),
        "Uid": str(task.uid),
        "Threads": str(task.threads),
    }
    if task.mm:
        fields |= {"VmSize": f"{task.mm.total_vm * 4}", "VmPTE": f"{task.mm.pgtables_bytes // 1024}"}
    return fields


def simplified(fields: dict[str, str]) -> dict[str, str]:
    """/proc's words cut down to ours: the first of several values, without units and explanations."""
    return {
        name: value.split()[0] if name != "Name" else value for name, value in fields.items() if value.split()
    }


def maps_line(vma: Vma) -> str:
    """A line of /proc/PID/maps, its padding folded."""
    name = vma.name.replace("\n", "\\012")
    line = (
        f"{vma.start:08x}-{vma.end:08x} {vma.permissions} {vma.offset:08x} "
        f"{vma.device[0]:02x}:{vma.device[1]:02x} {vma.inode} {name}"
    )
    return line.rstrip()


def our_maps(tasks: list[Task]) -> dict[int, list[str]]:
    """The maps of each task by PID."""
    return {task.pid: [maps_line(vma) for vma in task.vmas()] for task in tasks}


def folded(text: str) -> list[str]:
    """The lines of /proc/PID/maps, their padding folded."""
    return [re.sub(r"^((?:\S+ ){4}\S+) +", r"\1 ", line).rstrip() for line in text.splitlines()]


def test_status_of_every_task(busy_guest: Guest, witness: Any) -> None:
    for _ in range(_TRIES):
        pids = busy_guest.run("cd /proc; ls -d [0-9]*").stdout.split()

        # A worker that has nothing to do ends, at any moment (kernel/workqueue.c, idle_worker_timeout).
        lasting = [task for task in busy_guest.tasks() if not task.comm.startswith("kworker/")]
        stable = {str(task.pid) for task in lasting} & set(pids)
        paths = {pid: f"/proc/{pid}/status" for pid in sorted(stable, key=int)}
        witnessed, found = witness(
            busy_guest, list(paths.values()), lambda: {str(task.pid): task for task in busy_guest.tasks()}
        )
        wrong = {}
        for pid, path in paths.items():
            first, second = (simplified(status(reading.decode())) for reading in witnessed.readings[path])
            ours = our_status(found[pid])
            for name, value in ours.items():
                if first.get(name) == second.get(name) != value:
                    wrong[pid, name] = (first.get(name), value)
        if not wrong:
            assert len(paths) > 30
            return
    pytest.fail(f"(/proc, ours): {wrong}")


def test_threads(busy_guest: Guest) -> None:
    """Threads and their names, as /proc/PID/task lists them."""
    listed = busy_guest.run("cd /proc; for t in [0-9]*/task/*; do echo $t $(cat $t/comm); done").stdout
    theirs = {}
    for line in listed.splitlines():
        match = re.match(r"(\d+)/task/(\d+) (.*)", line)
        if match:
            theirs[int(match[2])] = int(match[1])
    ours = {task.pid: task.tgid for task in busy_guest.tasks(threads=True)}
    # The shell that listed them is gone, and the kernel's own come and go: all that both know must agree.
    both = theirs.keys() & ours.keys()
    assert {tid: theirs[tid] for tid in both} == {tid: ours[tid] for tid in both}
    several = [task for task in busy_guest.tasks() if task.comm == "maps"]
    assert several
    assert all(task.threads > 1 for task in several)
    assert {task.pid for task in busy_guest.tasks(threads=True) if task.tgid == several[0].pid} == {
        tid for tid, tgid in theirs.items() if tgid == several[0].pid
    }


def test_vmas_of_every_task(busy_guest: Guest, witness: Any) -> None:
    for _ in range(_TRIES):
        users = [task for task in busy_guest.tasks() if task.mm]
        paths = {task.pid: f"/proc/{task.pid}/maps" for task in users}
        witnessed, found = witness(busy_guest, list(paths.values()), functools.partial(our_maps, users))
        wrong = {
            pid: (folded(witnessed.text(path)), found[pid])
            for pid, path in paths.items()
            if witnessed.same(path) and folded(witnessed.text(path)) != found[pid]
        }
        if not wrong and all(witnessed.same(path) for path in paths.values()):
            names = " ".join(line for lines in found.values() for line in lines)
            assert "(deleted)" in names
            assert "\\012" in names
            return
    pytest.fail(f"(/proc, ours): {wrong}")


def test_rss_is_exact(busy_guest: Guest, witness: Any) -> None:
    """Our counters, per-CPU and per-thread shares added, against the kernel's walk of the page tables."""
    users = {task.pid: f"/proc/{task.pid}/smaps_rollup" for task in busy_guest.tasks() if task.mm}
    for _ in range(_TRIES):
        witnessed, found = witness(
            busy_guest, list(users.values()), lambda: {task.pid: task.mm for task in busy_guest.tasks()}
        )
        theirs = {
            pid: int(re.findall(r"Rss: +(\d+) kB", witnessed.text(path))[0]) for pid, path in users.items()
        }
        ours = {pid: found[pid].rss * 4 for pid in users}
        steady = {pid for pid, path in users.items() if witnessed.same(path)}
        if len(steady) == len(users) and theirs == ours:
            assert max(theirs.values()) > 4000
            return
    pytest.fail(f"(kB) /proc: {theirs}; ours: {ours}")


def test_no_such_task(guest: Guest) -> None:
    with pytest.raises(NoSuchTask, match="no task has PID 4194303"):
        guest.task(4194303)


@pytest.mark.parametrize("member", ["cred", "mm", "signal"])
def test_a_corrupt_task_does_not_hide_the_others(
    guest: Guest, private_copy: Callable[[Guest], Kernel], member: str
) -> None:
    """In a copy of the guest's memory, a pointer of one task leads to nowhere."""
    with guest.paused():
        victim, before = guest.task(1), guest.tasks()
        kernel = private_copy(guest)
        at = victim.address + kernel.types.offsetof("task_struct", member)
        kernel.memory.write(kernel.virt_to_phys(VirtAddr(at)), (0xFFFF_DEAD_0000_0000).to_bytes(8, "little"))
        for threads in (False, True):
            found = tasks(kernel, threads)
            (broken,) = (task for task in found if task.error)
            assert (broken.pid, broken.comm, broken.state, broken.mm) == (1, "init", "?", None)
            assert broken.name.startswith("init (unreadable: virtual address 0xffffdead")
            if not threads:
                whole = {task.pid: task.name for task in before if task.pid != 1}
                assert {task.pid: task.name for task in found if task.pid != 1} == whole
        with pytest.raises(PageFault, match="0xffffdead"):
            task(kernel, 1)
        with pytest.raises(CorruptGuest, match="what task 1 maps cannot be read"):
            ReverseMap.build(kernel)
