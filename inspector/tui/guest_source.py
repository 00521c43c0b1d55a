"""A Source over a live Guest: what the poller's thread reads, at one stop each."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector.arch import Right
from inspector.errors import InspectorError, KernelError, UsageError
from inspector.guest import Guest, GuestInfo
from inspector.kernel.frames import FrameState, frames
from inspector.kernel.owners import Owner
from inspector.kernel.slabs import SlabCache
from inspector.kernel.tasks import Task
from inspector.machine import Completed, RunState
from inspector.tui import readers
from inspector.tui.density import FrameCounts, Resident
from inspector.tui.dma import BufferKey, Devices
from inspector.tui.places import Place
from inspector.tui.source import (
    AliasRow,
    CpuRow,
    Frames,
    Memory,
    Overview,
    PageView,
    Slabs,
    Space,
    Swap,
    TaskRow,
    VmallocRow,
    VmaRow,
    WalkView,
)
from inspector.tui.tracing import Target, Traceable, Tracing, Watched
from inspector.units import Pfn, PhysAddr, VirtAddr, printable

if TYPE_CHECKING:
    from inspector.labs import Lab
    from inspector.labs.story import Event
    from inspector.trace import Allocation, Fault

NEIGHBOURS = 512
"""Frames on either side of a page whose states are read with it."""

CONTENTS = 512
"""Bytes of a frame that are read with it."""

_TERMINAL_CODES = re.compile(r"(?:\x1b|\\x1b)\[[0-9;?]*[A-Za-z]")  # the tail may come with ESC made visible
_MOST_ALIASES = 256  # of a page that a thousand tasks map, these will do
_T = TypeVar("_T")
_DUTY = 20  # what reads all memory, and is not what was asked for, may take 1/20 of the time


class _Recent(Generic[_T]):
    """What reads all memory, kept: a large guest is not stopped long for a decoration."""

    def __init__(self, read: Callable[[], _T]) -> None:
        self._read = read
        self._value: _T | None = None
        self._at = self._cost = 0.0

    def fresh(self) -> _T:
        """Read now."""
        started = time.monotonic()
        self._value = self._read()
        self._at = time.monotonic()
        self._cost = self._at - started
        return self._value

    def recent(self) -> _T:
        """As of some moments ago: the longer reading takes, the longer it is good."""
        if self._value is not None and time.monotonic() - self._at < self._cost * _DUTY:
            return self._value
        return self.fresh()


class GuestSource:
    """A Source over a live Guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._page_size = guest.kernel.space.format.page_size
        self._frames = _Recent(self._read_frames)
        self._reverse = _Recent(guest.reverse_map)
        self._caches = _Recent(guest.slabs)
        self._usage = _Recent(self._read_usage)
        self._smaps_pid = 1
        self._smaps = _Recent(lambda: guest.task(1).smaps())

    def state(self) -> RunState:
        """Running or stopped, and why."""
        return self._guest.state()

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        self._guest.pause()

    def resume(self) -> None:
        """Let the guest run."""
        self._guest.resume()

    def info(self) -> GuestInfo:
        """What guest this is."""
        return self._guest.info()

    def overview(self) -> Overview:
        """The guest at a glance, read at one stop."""
        with self._guest.still():
            return Overview(
                info=self._guest.info(),
                accel_reason=self._guest.machine.accel_reason,
                cpus=tuple(CpuRow(cpu, self._at(cpu.registers.rip)) for cpu in self._guest.cpus()),
                zones=tuple(zone for zone in self._guest.zones() if zone.populated),
                free=tuple(self._guest.buddy()),
                usage=self._usage.recent(),
                page_size=self._page_size,
            )

    def tasks(self, threads: bool) -> tuple[TaskRow, ...]:
        """Every process, or every thread."""
        return tuple(self._row(task) for task in self._guest.tasks(threads))

    def space(self, pid: int) -> Space:
        """A task's address space: VMAs and mappings of one stop. Raises NoSuchTask."""
        with self._guest.still():
            task = self._guest.task(pid)
            vmas, mappings = task.vmas(), task.mappings()
            root = task.space.root
            used = self._uses(pid)
        resident = Resident(mappings)
        large = Resident(mappings[mappings["size"] > self._page_size])
        starts = np.array([vma.start for vma in vmas], np.uint64)
        ends = np.array([vma.end for vma in vmas], np.uint64)
        rows = zip(
            vmas, resident.between(starts, ends).tolist(), large.between(starts, ends).tolist(), strict=True
        )
        return Space(
            task=self._row(task),
            vmas=tuple(VmaRow(vma, full, big, *used.get(vma.start, (0, 0))) for vma, full, big in rows),
            resident=resident,
            root=root,
            paging=self._guest.kernel.space.format.name,
            page_size=self._page_size,
        )

    def _uses(self, pid: int) -> dict[int, tuple[int, int]]:
        """PSS and swapped bytes of each of a task's VMAs by its start, maybe some moments old."""
        if pid != self._smaps_pid:
            self._smaps_pid, self._smaps = pid, _Recent(lambda: self._guest.task(pid).smaps())
        rows = self._smaps.recent()
        columns = (rows[name].tolist() for name in ("start", "pss", "swap"))
        return {start: (pss, swap) for start, pss, swap in zip(*columns, strict=True)}

    def walk(self, place: Place) -> WalkView:
        """An address followed in a task, from a CPU's CR3 or in the kernel's tables. Raises NoSuchTask."""
        with self._guest.still():
            cpu, va, pid = place.cpu, place.va, place.pid
            if va is None:
                cpu, pid = cpu or 0, None
                va = self._guest.cpus()[cpu].registers.rip
            symbol = self._symbol_at(va)
            if pid is not None:
                task = self._guest.task(pid)
                vma = next((vma for vma in task.vmas() if vma.start <= va < vma.end), None)
                walk = task.walk(va)
                whose = f"{task.name} ({task.pid})"
                fault = walk.fault.entry if walk.fault else None
                held = readers.entry(self._guest, fault) if fault else ("", None, False)
                holds, hidden, swapped = held
                return WalkView(walk, whose, "its mm's root", pid, symbol, vma, hidden, holds, swapped)
            if cpu is not None:
                found = [each for each in self._guest.cpus() if each.number == cpu]
                if not found:
                    raise UsageError(f"no CPU {cpu}; this guest has {self._guest.machine.cpus}")
                whose, kind = (
                    f"CPU {cpu}, which runs {found[0].comm} ({found[0].pid})",
                    f"CR3: {found[0].root_kind}",
                )
                return WalkView(self._guest.walk(va, cpu=cpu), whose, kind, None, symbol, None)
            return WalkView(self._guest.walk(va), "the kernel", "swapper_pg_dir", None, symbol, None)

    def frames(self) -> Frames:
        """All of memory by owner, read now."""
        return self._frames.fresh()

    def page(self, pfn: Pfn) -> PageView:
        """One frame, read now; owners and who maps it may be some moments older. Raises NoSuchFrame."""
        with self._guest.still():
            recent = self._frames.recent()
            page = self._guest.page(pfn, recent)
            raw = self._guest.read_virt(page.address, self._guest.kernel.types.sizeof("page"))
            contents = self._contents(pfn)
            aliases = self._aliases(pfn)
            cache = self._cache(recent, pfn)
            objects = readers.objects_around(self._guest, page, cache)
        owner, label = page.owner, page.owner_label
        first = max(0, pfn - NEIGHBOURS)
        return PageView(
            page=page,
            owner=owner,
            label=label,
            owned=int(recent.match(owner, label).sum()) if label else 0,
            charge=readers.charge(page),
            objects=objects,
            raw=raw,
            contents=contents,
            aliases=aliases,
            direct_map=self._guest.kernel.phys_to_virt(PhysAddr(pfn * self._page_size)),
            zone=next((zone for zone in recent.zones if zone.start_pfn <= pfn < zone.end_pfn), None),
            around_first=Pfn(first),
            around=recent.counts.states[first : pfn + NEIGHBOURS + 1],
            page_size=self._page_size,
        )

    def slabs(self) -> Slabs:
        """Every slab cache. Raises CorruptGuest."""
        return readers.slabs(self._guest)

    def vmalloc(self) -> tuple[VmallocRow, ...]:
        """Every vmalloc area, by address. Raises CorruptGuest."""
        return readers.vmalloc(self._guest)

    def swap(self) -> Swap:
        """Swap areas, and what is swapped out. Raises CorruptGuest."""
        return readers.swapped(self._guest, self._frames.recent().counts.states)

    def memory(self) -> Memory:
        """Counters of all memory. Raises CorruptGuest."""
        return readers.memory(self._guest)

    def devices(self, chosen: BufferKey | None) -> Devices:
        """PCI devices and their buffers; owners of frames may be some moments old. Raises CorruptGuest."""
        return readers.devices(self._guest, self._frames.recent(), chosen)

    def traceable(self, pid: int) -> Traceable:
        """A task to trace, or one that is gone."""
        try:
            with self._guest.still():
                task = self._guest.task(pid)
                return Traceable(pid, task.name, Resident(task.mappings()))
        except KernelError:
            return Traceable(pid, "", None)

    def trace_faults(self, target: Target) -> Tracing[Fault]:
        """Page faults of a process, or of a command: the guest stands still at each. Raises UsageError."""
        if target.who is None:
            raise UsageError("give a PID or a command: page faults are traced of one process")
        return self._guest.trace_faults(target.who, children=target.children, step=True)

    def watched(self, pid: int, pfn: Pfn | None) -> Watched:
        """A task or a frame to watch, one that is gone too. Raises CorruptGuest."""
        return readers.watched(self._guest, pid, pfn)

    def trace_allocations(self, target: Target) -> Tracing[Allocation]:
        """Pages that come and go: the guest stands still at each. Raises NoSuchFrame, UsageError."""
        return self._guest.trace_allocations(
            target.who, pfn=target.pfn, children=target.children and target.who is not None, step=True
        )

    def labs(self) -> tuple[Lab, ...]:
        """The labs that there are."""
        from inspector import labs  # many modules, and most who look around play none

        return labs.LABS

    def tell(self, name: str) -> Generator[Event, str | None, None]:
        """Play a lab on the guest. Raises UsageError, MachineError, GuestDied."""
        from inspector import labs

        return labs.run(labs.find(name), self._guest)

    def console(self, lines: int) -> str:
        """The console's last lines, made printable."""
        text = _TERMINAL_CODES.sub("", self._guest.machine.console_tail(lines))
        return "\n".join(printable(line) for line in text.splitlines())

    def run(self, command: str) -> Completed:
        """Run a command in the guest. Raises CommandTimeout, GuestDied."""
        return self._guest.run(command)

    def symbol(self, name: str) -> VirtAddr:
        """The address of a symbol. Raises NoSuchSymbol."""
        return self._guest.symbol(name)

    def complete(self, prefix: str, limit: int) -> list[str]:
        """Symbols that begin so."""
        return self._guest.kernel.symbols.complete(prefix, limit)

    def on_death(self, listener: Callable[[str], None]) -> None:
        """Call `listener(why)`, on any thread, when the guest is gone."""
        self._guest.machine.on_death(listener)

    def _read_frames(self) -> Frames:
        """Every frame's owner, at one stop."""
        with self._guest.still():
            owners = self._guest.owners()
            zones = tuple(zone for zone in self._guest.zones() if zone.populated)
        return Frames(
            counts=FrameCounts(np.ascontiguousarray(owners.rows["owner"]), len(Owner)),
            details=np.ascontiguousarray(owners.rows["detail"]),
            labels=tuple(printable(label) for label in owners.labels),
            zones=zones,
            page_size=self._page_size,
        )

    def _read_usage(self) -> NDArray[np.int64]:
        """Frames by FrameState: what struct page alone says takes a fraction of the time."""
        with self._guest.still():
            return np.bincount(frames(self._guest.kernel).state, minlength=len(FrameState))

    def _cache(self, frames: Frames, pfn: Pfn) -> SlabCache | None:
        """The slab cache that a frame is of."""
        if frames.counts.states[pfn] != Owner.SLAB:
            return None
        return next((cache for cache in self._caches.recent() if cache.name == frames.label(pfn)), None)

    def _contents(self, pfn: Pfn) -> bytes:
        """The first bytes of the frame itself; none where it is not RAM."""
        try:
            return self._guest.read_phys(PhysAddr(pfn * self._page_size), CONTENTS)
        except InspectorError:
            return b""

    def _aliases(self, pfn: Pfn) -> tuple[AliasRow, ...]:
        """Who maps the frame, from an index of all page tables that may be some moments old."""
        return tuple(
            AliasRow(
                who=printable(alias.task.name) if alias.task else alias.region,
                pid=alias.task.pid if alias.task else None,
                va=alias.va,
                rights=_rights(alias.rights),
                size=alias.size,
                cache_mode=alias.cache_mode,
                count=alias.count,
            )
            for alias in self._reverse.recent().of(pfn)[:_MOST_ALIASES]
        )

    def _row(self, task: Task) -> TaskRow:
        mm = task.mm
        return TaskRow(
            pid=task.pid,
            tgid=task.tgid,
            ppid=task.ppid,
            name=task.name,
            state=task.state,
            uid=task.uid,
            cpu=task.cpu,
            threads=task.threads,
            kernel_thread=task.kernel_thread,
            rss=mm.rss * self._page_size if mm else 0,
            vsz=mm.total_vm * self._page_size if mm else 0,
            page_tables=mm.pgtables_bytes if mm else 0,
        )

    def _at(self, address: VirtAddr) -> str:
        return self._symbol_at(address) or f"{address:#x}"

    def _symbol_at(self, address: VirtAddr) -> str | None:
        """`name+0x1a` for an address in the kernel image, `name+0x1a [module]` in a module."""
        try:
            found = self._guest.symbol_at(address)
        except InspectorError:
            return None
        if (
            found is None or found[1] >= 1 << 20
        ):  # the table knows no sizes: far behind the last one is nowhere
            return None
        symbol, offset = found
        module = f" [{symbol.module}]" if symbol.module else ""
        return printable(symbol.name) + (f"+{offset:#x}" if offset else "") + module


def _rights(rights: int) -> str:
    """Right bits as `rwx`; what is mapped can be read."""
    return "r" + ("w" if rights & Right.W else "-") + ("x" if rights & Right.X else "-")
