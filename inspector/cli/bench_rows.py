"""What the bench measures: a row a question, the floor under it and a peer beside it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from inspector.cli.bench_drgn import NAME, Drgn
from inspector.errors import KernelError
from inspector.guest import Guest
from inspector.kernel.tasks import Task
from inspector.machine import LocalMachine
from inspector.units import VirtAddr, format_size


@dataclass(frozen=True, slots=True)
class Row:
    """One question. Times are medians in seconds: `ours_s` for all `count` items, `peer_s` for `peer_count`.

    `ratio` is the peer's time per item over ours; `floor_s` is for a copy of the bytes that must be read.
    """

    name: str
    count: int
    ours_s: float
    peer: str | None = None
    peer_count: int | None = None
    peer_s: float | None = None
    ratio: float | None = None
    floor_s: float | None = None
    note: str = ""

    def beside(self, count: int, seconds: float) -> Row:
        """The same row with what the peer took for `count` items."""
        ratio = (seconds / count) / (self.ours_s / self.count)
        return replace(self, peer=NAME, peer_count=count, peer_s=seconds, ratio=ratio)


@dataclass(frozen=True, slots=True)
class Effort:
    """How often things are measured; items and slab caches that the peer is given; page faults to trace."""

    repeats: int
    attaches: int
    sample: int
    caches: int | None
    faults: int


FULL = Effort(repeats=15, attaches=15, sample=4000, caches=None, faults=300)
QUICK = Effort(repeats=3, attaches=3, sample=500, caches=3, faults=50)


def seconds(question: Callable[[], object], repeats: int) -> float:
    """The median time of some askings."""
    return statistics.median(_once(question) for _ in range(repeats))


def by_turns(repeats: int, *timers: Callable[[], float]) -> list[float]:
    """The median of what each of these measures: by turns, so that whatever else the host does meets all."""
    rounds = [[timer() for timer in timers] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _once(question: Callable[[], object]) -> float:
    """The time of one asking."""
    started = time.perf_counter()
    question()
    return time.perf_counter() - started


def attach_rows(machines: Sequence[LocalMachine], effort: Effort) -> list[Row]:
    """Attaching to a guest that is up, with and without a cached profile, in guests of several sizes."""
    rows: list[Row] = []
    for kind in ("cold", "warm"):
        timers = (partial(_attach, machine, kind == "warm") for machine in machines)
        medians = by_turns(effort.attaches, *timers)
        for machine, took in zip(machines, medians, strict=True):
            note = f"with {'a' if kind == 'warm' else 'no'} cached profile"
            if machine is not machines[0]:
                off = (took / medians[0] - 1) * 100
                note += f"; {off:+.0f}% against {format_size(machines[0].memory_size)}"
            rows.append(Row(f"attach_{kind}_{_size_name(machine.memory_size)}", 1, took, note=note))
    return rows


def _size_name(size: int) -> str:
    return format_size(size).replace(" ", "").replace("iB", "")


def _attach(machine: LocalMachine, warm: bool) -> float:
    """Seconds that Guest(machine) takes, with a cache folder of its own."""
    with _private_cache():
        if warm:
            Guest(machine).memory.close()
        started = time.perf_counter()
        guest = Guest(machine)
        took = time.perf_counter() - started
        guest.memory.close()  # not the guest: the machine is in use
        return took


@contextmanager
def _private_cache() -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="kmi-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def run_row(guest: Guest, effort: Effort) -> Row:
    """A command in the guest that does nothing."""
    note = f"under {guest.machine.accel}: guest.run('true'), there and back"
    return Row("run_true", 1, seconds(lambda: guest.run("true").check(), effort.repeats), note=note)


def mappings_row(guest: Guest, task: Task, drgn: Drgn | None, effort: Effort) -> Row:
    """Every leaf mapping of a task; the floor copies the last level's tables."""
    rows = task.mappings()
    took = seconds(task.mappings, effort.repeats)
    with guest.paused():
        tables = _leaf_tables(task, rows)
        words = task.space.format.page_size // 8
        floor = seconds(lambda: guest.memory.gather(tables, np.dtype(np.uint64), words), effort.repeats)
    note = f"task.mappings(), the guest stopped and let go each time; floor copies {tables.size} tables"
    row = Row("mappings", rows.size, took, floor_s=floor, note=note)
    return _translated(row, guest, task, rows, drgn, effort)


def walk_row(guest: Guest, task: Task, drgn: Drgn | None, effort: Effort) -> Row:
    """Single addresses, one call each."""
    rows = task.mappings()
    vas = [VirtAddr(int(va)) for va in _sample(rows, effort.sample)["va"]]
    with guest.paused():
        space = task.space
        took = seconds(lambda: [space.walk(va) for va in vas], effort.repeats)
    row = Row("walk", len(vas), took, note="an address a call, every level with its flags decoded")
    return _translated(row, guest, task, rows, drgn, effort)


def _translated(
    row: Row, guest: Guest, task: Task, rows: NDArray[np.void], drgn: Drgn | None, effort: Effort
) -> Row:
    """The row beside drgn's follow_phys() on a sample of pages. Raises KernelError where they disagree."""
    if drgn is None:
        return row
    some = _sample(rows, effort.sample)
    vas = some["va"].tolist()
    with guest.paused():
        found = drgn.translate(task.pid, vas)
        took = seconds(lambda: drgn.translate(task.pid, vas), min(effort.repeats, 3))
    if found != some["pa"].tolist():
        raise KernelError(
            f"{NAME} translates addresses of task {task.pid} otherwise than we do: one is wrong"
        )
    return row.beside(len(vas), took)


def _sample(rows: NDArray[np.void], count: int) -> NDArray[np.void]:
    """Rows from all over, always the same ones."""
    chosen = np.random.default_rng(0).choice(rows.size, min(count, rows.size), replace=False)
    return rows[np.sort(chosen)]


def _leaf_tables(task: Task, rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Where the last-level tables lie that map the rows of the smallest page size."""
    space = task.space
    small = rows[rows["size"] == space.format.page_size]["va"]
    span = np.uint64(space.format.levels[-2].span)
    firsts = small[np.unique(small // span, return_index=True)[1]]
    entries = [space.walk(VirtAddr(int(va))).steps[-1].entry_address for va in firsts]
    page_mask = space.format.page_size - 1
    return np.array([entry & ~page_mask for entry in entries], np.uint64)


def free_row(guest: Guest, drgn: Drgn | None, effort: Effort) -> Row:
    """Zones, and every free block with its order and migratetype."""
    with guest.paused():
        count = int(sum(free.counts.sum() for free in guest.buddy()))
        took = seconds(lambda: (guest.zones(), guest.buddy()), effort.repeats)
        note = "guest.zones() and guest.buddy(), an item is a free block; the peer only counts the blocks"
        row = Row("zones_and_buddy", count, took, note=note)
        if drgn is None:
            return row
        found = drgn.free_blocks()
        peer = seconds(drgn.free_blocks, min(effort.repeats, 3))
    if found != count:
        raise KernelError(f"{NAME} finds {found} free blocks, we {count}: one is wrong")
    return row.beside(found, peer)


def touched_task(guest: Guest, size: str) -> Task:
    """A task that has touched so much memory in 4 KiB pages. Raises KernelError where it does not come up."""
    pid = guest.spawn(f"/labs/touch {size} --no-thp")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ] || [ ! -d /proc/{pid} ]; do sleep 0.1; done", timeout=300)
    if guest.run(f"[ -d /proc/{pid} ]").returncode:
        said = guest.run(f"cat /tmp/spawn-{pid}.log").stdout.strip()
        raise KernelError(f"/labs/touch {size} ended: {said}")
    return guest.task(pid)
