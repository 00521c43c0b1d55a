"""Page faults between their begin and their end, put together from what is seen at the stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace, Walk
from inspector.kernel.vmas import Vma
from inspector.machine.stoploop import Hit
from inspector.symbols import StructView
from inspector.trace.follow import Followed
from inspector.trace.kinds import SIGBUS, SIGSEGV, Evidence, classify, reason
from inspector.trace.reading import VSYSCALL, Reader, safe_place
from inspector.trace.records import ErrorCode, Fault
from inspector.trace.stops import FaultPoints
from inspector.units import Pfn, VirtAddr, printable

_FLAG_WRITE = 1 << 0  # FAULT_FLAG_WRITE, include/linux/mm_types.h
_VM_GROWSDOWN = 1 << 8
_PF_BITS = 0x7F  # of an error code on the stack: what is above is not the MMU's


@dataclass(slots=True, kw_only=True)
class _Open:
    """A fault that is being handled."""

    task: StructView
    mm: StructView
    cpu: int
    address: VirtAddr
    error: ErrorCode
    regs: StructView | None
    """The struct pt_regs of the exception; None where there is none."""
    user: bool
    ip: VirtAddr
    place: str
    space: AddressSpace
    before: Walk
    pages: list[tuple[Pfn, NDArray[np.uint8]]] | None
    counts: tuple[int, int]
    signals: int
    total_vm: int
    vma: Vma | None = None
    file: bool = False
    device: bool = False
    grew: bool = False
    results: list[frozenset[str]] = field(default_factory=list)


class Handling:
    """Faults of the followed tasks; `chosen(address)` says which are looked at.

    A fault's begin and end are matched by its struct pt_regs, and handle_mm_fault()'s by its stack: other
    tasks may fault in between, and a handler may sleep and go on on another CPU.
    """

    def __init__(
        self, reader: Reader, points: FaultPoints, followed: Followed, chosen: Callable[[VirtAddr], bool]
    ) -> None:
        self._reader = reader
        self._points = points
        self._returns = set(points.returns)
        self._followed = followed
        self._chosen = chosen
        self._user_bits = reader.kernel.space.format.va_bits - 1
        self._page_mask = -reader.kernel.space.format.page_size
        self._reasons = {
            bit: name.removeprefix("VM_FAULT_")
            for name, bit in reader.kernel.types.enum("vm_fault_reason").items()
            if not name.endswith("MASK")
        }
        self._open: dict[int, _Open] = {}
        self._calls: dict[int, _Open] = {}
        self.skip_mm = 0
        """Faults in this struct mm_struct are not looked at, until the first in another."""
        self.finished = 0
        self.passed = 0
        self.lost = 0
        self.others = 0

    @property
    def unfinished(self) -> int:
        """Faults that have begun and not ended."""
        return len(self._open)

    def at_stop(self, hit: Hit) -> tuple[Fault | None, VirtAddr | None]:
        """Take in what a stop tells: a fault whose handling ends there, and where to stop from now on too."""
        if hit.address == self._points.call:
            return None, self._call(hit)
        return self._begin_or_end(hit), None

    def _begin_or_end(self, hit: Hit) -> Fault | None:
        points, registers = self._points, hit.registers
        if hit.address == points.entry:
            self._entry(hit)
        elif hit.address == points.exit:
            opened = self._open.pop(registers["rdi"], None)
            if opened and not self._followed.runs(hit.cpu, opened.task):
                self.lost += 1  # its stack is another task's by now
                return None
            return self._finish(opened) if opened else None
        elif hit.address in self._returns:
            called = self._calls.pop(registers["rsp"], None)
            if called:
                called.results.append(self._names(registers["rax"]))
                if called.regs is None and "RETRY" not in called.results[-1]:
                    return self._finish(called)
        return None

    def _wanted(self, hit: Hit, address: VirtAddr) -> StructView | None:
        task = self._followed.running(hit.cpu)
        if task is None:
            self.others += 1
            return None
        mm = task.ptr("mm")
        if not mm or mm == self.skip_mm:
            return None
        self.skip_mm = 0
        if not self._chosen(address):
            self.passed += 1
            return None
        return task

    def _entry(self, hit: Hit) -> None:
        """exc_page_fault(regs, error_code)."""
        at, address = hit.registers["rdi"], VirtAddr(hit.registers["cr2"])
        task = self._wanted(hit, address)
        mm = task.deref("mm") if task else None
        if task is None or mm is None:
            return
        if at in self._open:
            self.lost += 1
        regs = self._reader.kernel.view("pt_regs", VirtAddr(at))
        error = ErrorCode(hit.registers["rsi"] & _PF_BITS)
        self._open[at] = self._begin(hit.cpu, task, mm, address, error, VirtAddr(regs.int("ip")), regs)

    def _begin(
        self,
        cpu: int,
        task: StructView,
        mm: StructView,
        address: VirtAddr,
        error: ErrorCode,
        ip: VirtAddr,
        regs: StructView | None,
    ) -> _Open:
        reader = self._reader
        space = reader.kernel.space if address >> self._user_bits else reader.space(mm)
        return _Open(
            task=task,
            mm=mm,
            cpu=cpu,
            address=address,
            error=error,
            regs=regs,
            user=regs is not None and bool(regs.int("cs") & 3),
            ip=ip,
            place=safe_place(reader, ip, mm),
            space=space,
            before=space.walk(address),
            pages=reader.struct_pages(),
            counts=(task.int("min_flt"), task.int("maj_flt")),
            signals=reader.signals(task),
            total_vm=mm.int("total_vm"),
        )

    def _call(self, hit: Hit) -> VirtAddr | None:
        """handle_mm_fault(vma, address, flags, regs); `regs` is NULL without an exception: who asked."""
        registers, asker = hit.registers, None
        view = self._reader.kernel.view("vm_area_struct", VirtAddr(registers["rdi"]))
        opened = self._open.get(registers["rcx"]) if registers["rcx"] else self._asked(hit, view)
        if opened is None:
            return None
        if opened.regs is None:
            asker = opened.ip
            self._returns.add(asker)
        if opened.vma is None:
            vma = opened.vma = self._reader.vma(view)
            opened.file, opened.device = self._reader.backing(view)
            reached = bool(vma.flags & _VM_GROWSDOWN) and vma.start == opened.address & self._page_mask
            opened.grew = reached and opened.mm.int("total_vm") > opened.total_vm
        self._calls[registers["rsp"] + 8] = opened
        return asker

    def _asked(self, hit: Hit, vma: StructView) -> _Open | None:
        """The kernel wants a page of a task in hand: get_user_pages(), mlock(), MAP_POPULATE."""
        address = VirtAddr(hit.registers["rsi"])
        task = self._wanted(hit, address)
        mm = vma.deref("vm_mm")
        if task is None or mm is None:
            return None
        caller = VirtAddr(self._reader.word(VirtAddr(hit.registers["rsp"])))
        error = ErrorCode.W if hit.registers["rdx"] & _FLAG_WRITE else ErrorCode(0)
        return self._begin(hit.cpu, task, mm, address, error, caller, None)

    def _finish(self, opened: _Open) -> Fault:
        reader, task = self._reader, opened.task
        opened.space.flush()
        after = opened.space.walk(opened.address)
        seen = self._evidence(opened, after)
        self.finished += 1
        put_in = after.pfn if after.pfn != opened.before.pfn else None
        return Fault(
            number=self.finished,
            pid=task.int("pid"),
            tgid=task.int("tgid"),
            comm=printable(task.text("comm")),
            cpu=opened.cpu,
            address=opened.address,
            error=opened.error if opened.regs else None,
            user=opened.user,
            ip=opened.ip,
            place=opened.place,
            vma=opened.vma,
            before=opened.before,
            after=after,
            returned=tuple(opened.results),
            frame=put_in,
            frame_before=None if put_in is None else reader.frame_before(opened.pages, put_in),
            frame_after=None if put_in is None else reader.frame(put_in),
            kind=classify(seen),
            reason=reason(seen),
            minor=task.int("min_flt") - opened.counts[0],
            major=task.int("maj_flt") - opened.counts[1],
            evidence=seen,
        )

    def _evidence(self, opened: _Open, after: Walk) -> Evidence:
        reader, task, before = self._reader, opened.task, opened.before
        kernel_address = bool(opened.address >> self._user_bits)
        came = reader.signals(task) & ~opened.signals
        signal = next((number for number in (SIGSEGV, SIGBUS) if came >> number - 1 & 1), None)
        moved = opened.regs is not None and opened.regs.int("ip") != opened.ip
        if opened.vma is None and not kernel_address:
            opened.vma = reader.vma_at(opened.mm, opened.address)
        vma = frozenset(opened.vma.flag_names) if opened.vma else None
        writes = ErrorCode.W in opened.error
        granted = before.user and (before.writable or not writes)
        return Evidence(
            write=writes,
            kernel_address=kernel_address,
            vsyscall=opened.user and moved and opened.address & self._page_mask == VSYSCALL,
            allowed=granted and (before.executable or ErrorCode.I not in opened.error),
            vma=vma,
            file=opened.file,
            device=opened.device,
            hugetlb="HUGETLB" in (vma or ()),
            before=reader.entry(before),
            after=reader.entry(after),
            results=tuple(opened.results),
            major=task.int("maj_flt") > opened.counts[1],
            grew=opened.grew,
            fixed_up=moved and not opened.user and signal is None,
            signal=signal,
            signal_code=reader.signal_code(task, signal) if signal else None,
        )

    def _names(self, result: int) -> frozenset[str]:
        return frozenset(name for bit, name in self._reasons.items() if result & bit)
