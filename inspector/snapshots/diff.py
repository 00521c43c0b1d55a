"""What changed hands between two snapshots: frames, tasks, slab objects, areas, modules, mappings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector.errors import UsageError
from inspector.kernel.owners import Owner
from inspector.kernel.vmalloc import BUSY
from inspector.snapshots import leaks, telling
from inspector.snapshots.frames import FrameDiff, Held, compare
from inspector.snapshots.leaks import Leaks
from inspector.snapshots.records import (
    AreaChange,
    CacheChange,
    ModuleChange,
    SpaceChange,
    TaskChange,
    ZoneChange,
)
from inspector.units import VirtAddr

if TYPE_CHECKING:
    from inspector.snapshots.snapshot import Snapshot, TaskState

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Diff(FrameDiff):
    """What one snapshot has that an earlier one has not, and the other way round.

    A task that changed its name is the same holder still. `seconds` lie between the two; `stack_callers` are
    the vmalloc callers that kernel stacks come from. `forgotten` are the PFNs of unmarked frames that nothing
    in the kernel points to any more, and, where it is allocated since, never did. `str()` is a text.
    """

    seconds: float
    page_size: int
    tasks: tuple[TaskChange, ...]
    caches: tuple[CacheChange, ...]
    areas: tuple[AreaChange, ...]
    modules: tuple[ModuleChange, ...]
    spaces: tuple[SpaceChange, ...]
    zones: tuple[ZoneChange, ...]
    stack_callers: frozenset[str]
    forgotten: NDArray[np.uint64]

    def __str__(self) -> str:
        return telling.text(self)

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.balances or self.tasks or self.caches or self.areas or self.modules or self.spaces)

    def leaked(self, *, frames: int = 0, objects: int = 0, ignore: Collection[Owner] = leaks.KEPT) -> Leaks:
        """What is in use and was not, without what the kernel keeps to be quick: see Leaks for the rule.

        A holder may have so many more `frames`, a slab cache so many more `objects`, before it is told.
        """
        return leaks.leaked(self, frames, objects, ignore)

    def as_data(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return telling.as_data(self)


def diff(before: Snapshot, after: Snapshot) -> Diff:
    """What changed between two snapshots of one guest. Raises UsageError where they are of two."""
    for what in ("build_id", "kaslr_offset", "page_size"):
        if getattr(before, what) != getattr(after, what):
            whose = " and ".join(f"{each.release} at {each.kaslr_offset:#x}" for each in (before, after))
            raise UsageError(f"these snapshots are of two guests, or of two boots of one: {whose}")
    frames = compare(_held(before), _held(after), _renamed(before, after))
    return Diff(
        holders=frames.holders,
        pfns=frames.pfns,
        was=frames.was,
        now=frames.now,
        balances=frames.balances,
        seconds=after.taken - before.taken,
        page_size=after.page_size,
        tasks=_tasks(before.tasks, after.tasks),
        caches=_caches(before, after),
        areas=_areas(before, after),
        modules=_modules(before, after),
        spaces=tuple(_spaces(before, after)),
        zones=_zones(before, after),
        stack_callers=_stack_callers(before) | _stack_callers(after),
        forgotten=np.setdiff1d(after.forgotten, before.forgotten),
    )


def _held(snapshot: Snapshot) -> Held:
    return Held(snapshot.frames["owner"], snapshot.frames["detail"], snapshot.labels)


def _renamed(before: Snapshot, after: Snapshot) -> dict[str, str]:
    """The new label of each task that changed its name: exec() is no handover."""
    now = {(task.pid, task.address): task for task in after.tasks}
    pairs = ((task, now.get((task.pid, task.address))) for task in before.tasks)
    return {was.label: task.label for was, task in pairs if task and task.comm != was.comm}


def _paired(
    before: Iterable[_T], after: Iterable[_T], key: Callable[[_T], Hashable]
) -> list[tuple[_T | None, _T | None]]:
    """Each thing as it was and as it is; None where it was not, or is not."""
    was, now = ({key(each): each for each in side} for side in (before, after))
    return [(was.get(name), now.get(name)) for name in dict.fromkeys((*was, *now))]


def _tasks(before: Sequence[TaskState], after: Sequence[TaskState]) -> tuple[TaskChange, ...]:
    def memory(task: TaskState) -> tuple[Any, ...]:
        counts = (task.rss_anon, task.rss_file, task.rss_shmem, task.swap_entries)
        return (*counts, task.pgtables_bytes, task.total_vm, task.comm, task.mm)

    pairs = _paired(before, after, lambda task: (task.pid, task.address))
    found = [TaskChange(*pair) for pair in pairs if not all(pair) or len({memory(t) for t in pair if t}) > 1]
    return tuple(sorted(found, key=lambda each: (-each.rss, each.task.pid)))


def _caches(before: Snapshot, after: Snapshot) -> tuple[CacheChange, ...]:
    pairs = _paired(before.caches, after.caches, lambda cache: cache.name)
    found = [CacheChange(*pair) for pair in pairs]
    changed = [each for each in found if each.objects or each.slabs or not (each.before and each.after)]
    return tuple(
        sorted(changed, key=lambda each: (-each.objects * each.cache.size, -each.slabs, each.cache.name))
    )


def _areas(before: Snapshot, after: Snapshot) -> tuple[AreaChange, ...]:
    was, now = (
        {(area.start, area.end, area.caller): area for area in side.areas if area.kind == BUSY}
        for side in (before, after)
    )
    came = (AreaChange(area, True) for key, area in now.items() if key not in was)
    went = (AreaChange(area, False) for key, area in was.items() if key not in now)
    return (*came, *went)


def _modules(before: Snapshot, after: Snapshot) -> tuple[ModuleChange, ...]:
    pairs = _paired(before.modules, after.modules, lambda module: (module.name, module.address))
    came = (ModuleChange(now, True) for was, now in pairs if now and not was)
    went = (ModuleChange(was, False) for was, now in pairs if was and not now)
    return (*came, *went)


def _spaces(before: Snapshot, after: Snapshot) -> Iterable[SpaceChange]:
    def spaces(side: Snapshot) -> dict[VirtAddr, tuple[TaskState, NDArray[np.void]]]:
        indices = np.arange(len(side.tasks) + 1)
        edges = np.searchsorted(side.mappings["owner"], indices).tolist()
        return {
            task.mm: (task, side.mappings[edges[index] : edges[index + 1]])
            for index, task in enumerate(side.tasks)
            if edges[index] < edges[index + 1]
        }

    was, now = spaces(before), spaces(after)
    for mm in dict.fromkeys((*was, *now)):
        task = (now.get(mm) or was[mm])[0]
        old = was[mm][1] if mm in was else before.mappings[:0]
        new = now[mm][1] if mm in now else after.mappings[:0]
        gained, lost = new[~_among(new, old)], old[~_among(old, new)]
        if len(gained) or len(lost):
            yield SpaceChange(task, gained, lost)


def _among(rows: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which rows, by address, have their equal among the others: frame, size and rights."""
    if not len(others):
        return np.zeros(len(rows), np.bool_)
    places = np.minimum(np.searchsorted(others["va"], rows["va"]), len(others) - 1)
    same = np.ones(len(rows), np.bool_)
    for name in ("va", "pa", "size", "rights"):
        same &= rows[name] == others[name][places]
    return same


def _zones(before: Snapshot, after: Snapshot) -> tuple[ZoneChange, ...]:
    pairs = _paired(before.zones, after.zones, lambda zone: (zone.node, zone.name))
    return tuple(
        ZoneChange(now.node, now.name, was.free, now.free)
        for was, now in pairs
        if was and now and was.free != now.free
    )


def _stack_callers(snapshot: Snapshot) -> frozenset[str]:
    return leaks.stack_callers(snapshot.areas, [task.stack for task in snapshot.tasks])
