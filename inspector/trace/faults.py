"""The tracer of page faults: stops, what they tell, and the finished records."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from queue import Empty, Queue
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace, Walk
from inspector.errors import InspectorError, NoSuchTask, UsageError
from inspector.kernel import cpus, tasks
from inspector.kernel.vmas import Vma
from inspector.machine.stoploop import Hit, StopLoop
from inspector.symbols import Kernel, StructView
from inspector.trace import stops
from inspector.trace.kinds import SIGBUS, SIGSEGV, Evidence, FaultKind, classify, reason
from inspector.trace.reading import Reader, safe_place
from inspector.trace.records import ErrorCode, Fault
from inspector.units import Pfn, VirtAddr, printable

_WAIT = 0.2  # seconds between looks whether the task lives and the trace goes on
_FLAG_WRITE, _FLAG_INSTRUCTION = 1 << 0, 1 << 8  # enum fault_flag, include/linux/mm_types.h
_VSYSCALL = 0xFFFF_FFFF_FF60_0000
_VM_GROWSDOWN = 1 << 8


@dataclass(slots=True)
class _Open:
    """A fault that is being handled."""

    task: StructView
    mm: StructView
    cpu: int
    address: VirtAddr
    error: ErrorCode
    exception: bool
    user: bool
    ip: VirtAddr
    place: str
    space: AddressSpace
    before: Walk
    pages: list[tuple[Pfn, NDArray[np.uint8]]] | None
    counts: tuple[int, int]
    signals: int
    total_vm: int
    regs: StructView | None = None
    vma: Vma | None = None
    file: bool = False
    device: bool = False
    grew: bool = False
    results: list[frozenset[str]] = field(default_factory=list)


class FaultTrace:
    """The page faults of a process, as they happen: a context manager, and an iterator while it is on.

    `kinds`, and `start` and `end` (exclusive) of the faulting address, choose what is recorded; `limit` ends
    the trace after so many. With `children` what it forks is traced too; with `step` the guest stands still
    at the end of each recorded fault until the next is asked for. All faults of all tasks stop the guest for
    a moment; those of others leave no trace.
    """

    def __init__(
        self,
        kernel: Kernel,
        start_loop: Callable[[], StopLoop],
        pid: int,
        *,
        kinds: Iterable[FaultKind] | None = None,
        start: VirtAddr | None = None,
        end: VirtAddr | None = None,
        limit: int | None = None,
        children: bool = False,
        step: bool = False,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """`begin` is called once the stops are in; with it, what the task does before its exec is not told.

        Raises NoSuchTask, NoSuchSymbol and SymbolsError (a kernel that cannot be traced), UsageError.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"no trace of {limit} faults: give a limit of 1 or more")
        self._reader = Reader(kernel)
        self._points = stops.fault_points(kernel)
        self._start_loop = start_loop
        self._pid = pid
        self._kinds = frozenset(kinds) if kinds is not None else None
        self._start, self._end = start or 0, end if end is not None else 1 << 64
        self._limit, self._children, self._step = limit, children, step
        self._begin = begin
        self._code: dict[int, bytes] = {}
        self._reasons = {
            bit: name.removeprefix("VM_FAULT_")
            for name, bit in kernel.types.enum("vm_fault_reason").items()
            if not name.endswith("MASK")
        }
        self._tgids: set[int] = set()
        self._open: dict[int, _Open] = {}
        self._calls: dict[int, _Open] = {}
        self._returns = set(self._points.returns)
        self._before_exec = 0
        self._queue: Queue[Fault | BaseException | None] = Queue()
        self._asked = threading.Event()
        self._ending = threading.Event()
        self._loop: StopLoop | None = None
        self._thread: threading.Thread | None = None
        self.counts: Counter[FaultKind] = Counter()
        """How many of each kind were recorded."""
        self.minor = self.major = 0
        """What the traced tasks' min_flt and maj_flt went up by in all recorded faults."""
        self.passed = 0
        """Faults of the traced tasks that the filters left out."""
        self.lost = 0
        """Faults whose end never came: the kernel gave the task up (an oops), or its stack was used anew."""
        self.others = 0
        """Faults of other tasks that ran through."""
        self.stops = 0
        """Stops of the guest, for all of them."""

    # on and off

    def __enter__(self) -> FaultTrace:
        self._loop = self._start_loop()
        try:
            self._reader.fresh()
            leader = self._find(self._pid)
            self._tgids.add(leader.int("tgid"))
            self._leader = leader
            self._before_exec = leader.ptr("mm") if self._begin else 0
            points = self._points
            for address in (points.entry, points.call, points.exit, *points.returns):
                self._loop.insert(address)
            self._thread = threading.Thread(target=self._run, name="kmi-faults", daemon=True)
            self._loop.go()
            self._thread.start()
            if self._begin:
                self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the trace: no breakpoint stays. Idempotent; recorded faults can still be iterated over."""
        self._ending.set()
        self._asked.set()
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.wake()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        loop.close()
        self._queue.put(None)

    def __iter__(self) -> Iterator[Fault]:
        """The faults, as they are done; ends with the task, the limit or the trace. Raises GuestDied."""
        while (fault := self.next()) is not None:
            yield fault

    def next(self, timeout: float | None = None) -> Fault | None:
        """The next fault; None at the trace's end, or after `timeout` seconds. Raises GuestDied."""
        self._asked.set()
        try:
            item = self._queue.get(timeout=timeout)
        except Empty:
            return None
        if item is None or isinstance(item, BaseException):
            self._queue.put(item)  # the end stays the end
        if isinstance(item, BaseException):
            raise item
        return item

    # the loop

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        try:
            seen = time.monotonic()
            while not self._ending.is_set():
                hit = loop.wait(_WAIT)
                if hit is not None:
                    self.stops += 1
                    self._reader.fresh()
                    self._at_stop(loop, hit)
                    self._pass_over(loop, hit)
                    loop.go()
                elif time.monotonic() - seen > _WAIT and not self._alive():
                    break
                if hit is None:
                    seen = time.monotonic()
        except InspectorError as error:
            if not self._ending.is_set():
                self._queue.put(error)
        finally:
            self._queue.put(None)

    def _pass_over(self, loop: StopLoop, hit: Hit) -> None:
        if hit.address not in self._code:
            self._code[hit.address] = self._reader.kernel.space.read(hit.address, 16)
        stops.pass_over(loop, hit, self._code[hit.address], self._reader.kernel.space.read)

    def _at_stop(self, loop: StopLoop, hit: Hit) -> None:
        points, registers = self._points, hit.registers
        if hit.address == points.entry:
            self._entry(hit)
        elif hit.address == points.call:
            self._call(loop, hit)
        elif hit.address == points.exit:
            found = self._open.pop(registers["rdi"], None)
            if found:
                self._finish(found)
        elif hit.address in self._returns:
            called = self._calls.pop(registers["rsp"], None)
            if called:
                called.results.append(self._names(registers["rax"]))
                if not called.exception and "RETRY" not in called.results[-1]:
                    self._finish(called)

    def _entry(self, hit: Hit) -> None:
        """exc_page_fault(regs, error_code)."""
        task = self._wanted(hit.cpu)
        if task is None:
            self.others += 1
            return
        address = VirtAddr(hit.registers["cr2"])
        mm = task.deref("mm")
        if mm is None or mm.address == self._before_exec:
            return
        self._before_exec = 0
        if not self._start <= address < self._end:
            self.passed += 1
            return
        at = hit.registers["rdi"]
        if at in self._open:
            self.lost += 1
        regs = self._reader.kernel.view("pt_regs", VirtAddr(at))
        user, ip = bool(regs.int("cs") & 3), VirtAddr(regs.int("ip"))
        opened = self._opened(task, mm, hit, address, ErrorCode(hit.registers["rsi"] & 0xFF), user, ip)
        opened.regs = regs
        self._open[at] = opened

    def _opened(
        self,
        task: StructView,
        mm: StructView,
        hit: Hit,
        address: VirtAddr,
        error: ErrorCode,
        user: bool,
        ip: VirtAddr,
        exception: bool = True,
    ) -> _Open:
        reader = self._reader
        kernel_half = address >> reader.kernel.space.format.va_bits - 1
        space = reader.kernel.space if kernel_half else reader.space(mm)
        return _Open(
            task=task,
            mm=mm,
            cpu=hit.cpu,
            address=address,
            error=error,
            exception=exception,
            user=user,
            ip=ip,
            place=safe_place(reader, ip, mm),
            space=space,
            before=space.walk(address),
            pages=reader.struct_pages(),
            counts=(task.int("min_flt"), task.int("maj_flt")),
            signals=reader.signals(task),
            total_vm=mm.int("total_vm"),
        )

    def _call(self, loop: StopLoop, hit: Hit) -> None:
        """handle_mm_fault(vma, address, flags, regs)."""
        registers, reader = hit.registers, self._reader
        opened = self._open.get(registers["rcx"]) if registers["rcx"] else None
        view = reader.kernel.view("vm_area_struct", VirtAddr(registers["rdi"]))
        if opened is None:
            if registers["rcx"]:
                return
            opened = self._without_exception(loop, hit, view)
            if opened is None:
                return
        if opened.vma is None:
            opened.vma = reader.vma(view)
            opened.file, opened.device = reader.backing(view)
            page = opened.address & -reader.kernel.space.format.page_size
            down = bool(opened.vma.flags & _VM_GROWSDOWN) and opened.vma.start == page
            opened.grew = down and opened.mm.int("total_vm") > opened.total_vm
        self._calls[registers["rsp"] + 8] = opened

    def _without_exception(self, loop: StopLoop, hit: Hit, vma: StructView) -> _Open | None:
        """The kernel wants a page of a task in hand: get_user_pages(), mlock(), MAP_POPULATE."""
        task = self._wanted(hit.cpu)
        mm = vma.deref("vm_mm")
        address = VirtAddr(hit.registers["rsi"])
        if task is None or mm is None or task.ptr("mm") == self._before_exec:
            return None
        if not self._start <= address < self._end:
            self.passed += 1
            return None
        flags = hit.registers["rdx"]
        caller = VirtAddr(self._reader.word(VirtAddr(hit.registers["rsp"])))
        if caller not in self._returns:
            loop.insert(caller)
            self._returns.add(caller)
        error = ErrorCode.W if flags & _FLAG_WRITE else ErrorCode(0)
        return self._opened(task, mm, hit, address, error, False, caller, exception=False)

    # records

    def _finish(self, opened: _Open) -> None:
        reader, task = self._reader, opened.task
        opened.space.flush()
        after = opened.space.walk(opened.address)
        seen = self._evidence(opened, after)
        kind = classify(seen)
        minor, major = task.int("min_flt") - opened.counts[0], task.int("maj_flt") - opened.counts[1]
        self.minor += minor
        self.major += major
        if self._kinds is not None and kind not in self._kinds:
            self.passed += 1
            return
        self.counts[kind] += 1
        put_in = after.pfn is not None and after.pfn != opened.before.pfn
        fault = Fault(
            number=self.counts.total(),
            pid=task.int("pid"),
            tgid=task.int("tgid"),
            comm=printable(task.text("comm")),
            cpu=opened.cpu,
            address=opened.address,
            error=opened.error if opened.exception else None,
            user=opened.user,
            ip=opened.ip,
            place=opened.place,
            vma=opened.vma,
            before=opened.before,
            after=after,
            returned=tuple(opened.results),
            frame=after.pfn if put_in else None,
            frame_before=reader.frame_before(opened.pages, after.pfn) if put_in and after.pfn else None,
            frame_after=reader.frame(after.pfn) if put_in and after.pfn else None,
            kind=kind,
            reason=reason(seen),
            minor=minor,
            major=major,
            evidence=seen,
        )
        self._asked.clear()
        self._queue.put(fault)
        if self._limit is not None and fault.number >= self._limit:
            self._ending.set()
        elif self._step:
            self._asked.wait()

    def _evidence(self, opened: _Open, after: Walk) -> Evidence:
        reader, task = self._reader, opened.task
        kernel_half = bool(opened.address >> reader.kernel.space.format.va_bits - 1)
        new = reader.signals(task) & ~opened.signals
        signal = next((number for number in (SIGSEGV, SIGBUS) if new >> number - 1 & 1), None)
        moved = opened.regs is not None and opened.regs.int("ip") != opened.ip
        page = opened.address & -reader.kernel.space.format.page_size
        vma = opened.vma
        if vma is None and not kernel_half:
            vma = opened.vma = reader.vma_at(opened.mm, opened.address)
        writes = ErrorCode.W in opened.error
        before = opened.before
        runs = ErrorCode.I not in opened.error or before.executable
        return Evidence(
            write=writes,
            kernel_address=kernel_half,
            vsyscall=page == _VSYSCALL and moved and opened.user,
            allowed=before.pfn is not None and (before.writable or not writes) and before.user and runs,
            vma=frozenset(vma.flag_names) if vma else None,
            file=opened.file,
            device=opened.device,
            hugetlb=bool(vma and "HUGETLB" in vma.flag_names),
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

    # tasks

    def _find(self, pid: int) -> StructView:
        found = tasks.task(self._reader.kernel, pid)
        if found.mm is None:
            raise UsageError(f"{found.name} (PID {pid}) is a kernel thread: it has no page faults of its own")
        return self._reader.kernel.view("task_struct", found.address)

    def _wanted(self, cpu: int) -> StructView | None:
        """The CPU's task, where it is traced."""
        task = cpus.current_task(self._reader.kernel, cpu)
        tgid = task.int("tgid")
        if tgid not in self._tgids:
            parent = task.deref("real_parent") if self._children else None
            if parent is None or parent.int("tgid") not in self._tgids:
                return None
            self._tgids.add(tgid)
        return task

    def _alive(self) -> bool:
        """Whether a traced task is left. The guest runs: what looks torn counts as alive."""
        try:
            self._reader.fresh()
            return any(task.tgid in self._tgids for task in tasks.tasks(self._reader.kernel))
        except NoSuchTask:
            return False
        except InspectorError:
            return True
