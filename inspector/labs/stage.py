"""What a story has at hand: the guest, the actor, and eyes for what is in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from inspector.errors import LabFailed, MachineError, NoSuchFrame, NoSuchTask, NoSuchType
from inspector.guest import Guest
from inspector.guest_modules import Parameter
from inspector.kernel import ptes
from inspector.kernel.modules import Module
from inspector.kernel.ptes import EntryUse
from inspector.kernel.tasks import Task
from inspector.kernel.vmas import Vma
from inspector.kernlog import KernelLog
from inspector.labs.actor import Access, Actor, Child
from inspector.labs.story import (
    AliasesShown,
    AliasRow,
    FaultShown,
    Frame,
    FrameShown,
    Lab,
    Look,
    Number,
    NumbersShown,
    PagesShown,
)
from inspector.trace import Fault
from inspector.units import Pfn, PhysAddr, VirtAddr


@dataclass(frozen=True, slots=True)
class Watched:
    """An access, and the page faults that the tracer saw of it."""

    access: Access
    faults: tuple[Fault, ...]

    @property
    def shown(self) -> tuple[FaultShown, ...]:
        """The faults as exhibits."""
        return tuple(FaultShown(fault) for fault in self.faults)


class Stage:
    """A guest with an actor in it, for one lab; a context manager."""

    def __init__(self, guest: Guest, lab: Lab, prepare: str | None = None) -> None:
        """Raises LabFailed where the actor does not come up: `prepare` takes the place of the lab's own."""
        self.guest = guest
        self.name = "program"  # what a story calls the actor
        self.page_size = guest.kernel.space.format.page_size
        self._loaded: list[str] = []
        self._log = KernelLog(guest)
        self.actor = Actor(guest, lab.prepare if prepare is None else prepare, lab.undo)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.guest.machine.alive:
            return
        self.actor.close()
        for name in reversed(self._loaded):
            self.guest.unload_module(name)

    # Drivers

    def load(self, name: str, **parameters: Parameter) -> Module:
        """Load a module of ours; the lab's end unloads it, after the program that uses it."""
        try:
            module = self.guest.load_module(name, **parameters)
        except MachineError as error:
            raise LabFailed(str(error)) from error
        self._loaded.append(name)
        return module

    def require_type(self, name: str) -> None:
        """Raises LabFailed where a type of a module that is loaded cannot be read from memory."""
        try:
            self.guest.kernel.types.find(name)
        except NoSuchType as error:
            raise LabFailed(
                f"{error}: it keeps no types of its modules (CONFIG_DEBUG_INFO_BTF_MODULES, from Linux 5.11)"
            ) from error

    def unload(self, name: str) -> None:
        """Unload it before the end."""
        try:
            self.guest.unload_module(name)
        except MachineError as error:
            raise LabFailed(str(error)) from error
        self._loaded.remove(name)

    def log(self, pattern: str) -> list[re.Match[str]]:
        """The lines that the kernel has logged since the lab began in which a pattern is found."""
        return self._log.find(pattern)

    def check_health(self) -> None:
        """Raises LabFailed where the kernel has warned or oopsed since the lab began."""
        if complaint := self._log.complaint():
            raise LabFailed(f"the kernel complains: {complaint}")

    def task(self, who: Actor | None = None) -> Task:
        """The actor's task, or its child's. Raises LabFailed where it is gone."""
        try:
            return self.guest.task((who or self.actor).pid)
        except NoSuchTask as error:
            raise LabFailed(f"the program is gone: {error}") from error

    def look(self, va: VirtAddr, who: Actor | None = None) -> Look:
        """An address of the program, or of its child: walk and frame, from one moment."""
        with self.guest.paused():
            walk = self.task(who).walk(va)
            meaning, frame = "", None
            if walk.pfn is not None:
                frame = self._frame(walk.pfn)
            elif walk.steps:
                meaning, pfn = self._nonpresent(walk.steps[-1].entry)
                frame = None if pfn is None else self._frame(pfn)
            return Look(self._name_of(who), walk, meaning, frame)

    def _name_of(self, who: Actor | None) -> str:
        return "child" if isinstance(who, Child) else self.name

    def _nonpresent(self, entry: int) -> tuple[str, Pfn | None]:
        """What an entry that is not present stands for, in words; the frame that it names, if one."""
        what = ptes.nonpresent(self.guest.kernel, entry)
        if what.use is EntryUse.NONE:
            return "empty, nothing is there", None
        if what.use is EntryUse.SWAP:
            return f"swap type {what.type}, offset {what.offset}", None
        return what.name, what.pfn

    def _frame(self, pfn: Pfn) -> Frame | None:
        try:
            page = self.guest.page(pfn)
        except NoSuchFrame:
            return None
        owner = page.owner.words
        return Frame(
            pfn=pfn,
            phys=PhysAddr(pfn * self.page_size),
            owner=f"{owner}: {page.owner_label}" if page.owner_label else owner,
            refcount=page.refcount,
            mapcount=page.mapcount,
            flags=page.flag_names,
            order=page.order,
        )

    def frame(self, pfn: Pfn) -> Frame:
        """A frame as it is now. Raises LabFailed where there is no struct page."""
        found = self._frame(pfn)
        if found is None:
            raise LabFailed(f"PFN {pfn:#x} has no struct page")
        return found

    def watch(self, act: Callable[[], Access], va: VirtAddr, who: Actor | None = None) -> Watched:
        """Let the program, or its child, act, and trace the page faults at the page of an address."""
        page = VirtAddr(va & -self.page_size)
        pid = (who or self.actor).pid
        if self.task(who).mm is None:  # it has ended, and nobody has waited for it
            raise LabFailed(f"the {self._name_of(who)} is gone")
        with self.guest.trace_faults(pid, start=page, end=VirtAddr(page + self.page_size)) as trace:
            access = act()
        return Watched(access, tuple(trace))

    def vma(self, va: VirtAddr, who: Actor | None = None) -> Vma | None:
        """The mapping that an address of the program lies in."""
        areas = self.task(who).vmas()
        return next((vma for vma in areas if vma.start <= va < vma.end), None)

    def aliases(self, pfn: Pfn) -> AliasesShown:
        """Every address of a frame, tasks' first."""
        rows = [
            AliasRow(
                f"{alias.task.comm} ({alias.task.pid})" if alias.task else alias.region,
                alias.va,
                alias.entry,
                alias.flags,
            )
            for alias in self.guest.mapped_by(pfn)
        ]
        return AliasesShown(pfn, tuple(rows))

    def pages(self, start: VirtAddr, count: int) -> PagesShown:
        """What is there of so many pages of the program."""
        with self.guest.paused():
            rows = self.task().space.scan(start, start + count * self.page_size, nonpresent=True)
            format = self.guest.kernel.space.format
            present = format.present(rows["entry"])
            kinds = ptes.decode(self.guest.kernel, rows["entry"])["use"]
        states = np.full(count, ".")
        for row, there, use in zip(rows, present.tolist(), kinds.tolist(), strict=True):
            first = max(0, (int(row["va"]) - start) // self.page_size)
            letter = "#" if there else "s" if use == EntryUse.SWAP else "x"
            states[first : first + int(row["size"]) // self.page_size] = letter
        return PagesShown(start, "".join(states.tolist()))

    def rss(self) -> int:
        """The program's resident set as its mm counts it, in KiB."""
        mm = self.task().mm
        return 0 if mm is None else mm.rss * self.page_size // 1024

    def sizes(self, before: NumbersShown | None = None) -> NumbersShown:
        """The sizes that the program's mm counts, beside an earlier reading."""
        mm, was = self.task().mm, [row.value for row in before.rows] if before else [None] * 3
        if mm is None:
            return NumbersShown("struct mm_struct", ())
        kib = self.page_size // 1024
        values = mm.total_vm * kib, mm.rss * kib, mm.pgtables_bytes // 1024
        names = "VSZ", "RSS", "page tables"
        rows = (Number(name, value, "KiB", old) for name, value, old in zip(names, values, was, strict=True))
        return NumbersShown("struct mm_struct", tuple(rows))

    def meminfo(self, names: Iterable[str], before: NumbersShown | None = None) -> NumbersShown:
        """Some lines of /proc/meminfo, computed from memory; beside an earlier reading."""
        known = self.guest.meminfo()
        earlier = {row.name: row.value for row in before.rows} if before else {}
        rows = tuple(Number(name, known.get(name, 0), "KiB", earlier.get(name)) for name in names)
        return NumbersShown("all of memory, as in /proc/meminfo", rows)


def frames_of(now: Look, before: Look | None = None) -> tuple[FrameShown, ...]:
    """The frame that a look found, if any, beside what it was at an earlier one."""
    if now.frame is None:
        return ()
    return (FrameShown(f"{now.who}'s frame", now.frame, before.frame if before else None),)
