"""The tracer of page allocations: what the page allocator hands out and takes back, to whom, and for whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from inspector.errors import NoSuchType, SymbolsError, UsageError
from inspector.kernel import cpus
from inspector.kernel.memmap import MemMap
from inspector.machine.stoploop import Hit
from inspector.symbols import Kernel, StructView
from inspector.symbols.modules import KernelTypes
from inspector.trace.follow import Followed
from inspector.trace.session import Trace, Traceable
from inspector.trace.unwind import StackFrame, Unwinder
from inspector.units import Pfn, VirtAddr, printable

_ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")  # System V ABI, AMD64 supplement, 3.2.3
_MAX_NAMES, _MAX_NAME = 64, 64
_GFP_MOVABLE_SHIFT = 3
_MAX_ORDER = 20
_MAX_BULK = 1 << 16
_STACK = 1 << 14  # THREAD_SIZE
# What every allocation goes through, and what many order-0 pages at once do: 387ba26fb1cb (5.13).
_ONE = "get_page_from_freelist"
_BULK = ("alloc_pages_bulk_noprof", "__alloc_pages_bulk")
# What every page passes on its way back, once; the first line whose functions the kernel has.
_FREES = (
    ("free_pcp_prepare", "__free_pages_ok"),
    ("__free_frozen_pages", "free_unref_folios"),
    ("free_unref_page", "free_unref_folios"),
)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Pages handed out or taken back: 2**`order` from `pfn` on. `gfp` and its names only where handed out.

    `pid` and `comm` are of the task that the CPU runs: in an interrupt that is whoever was interrupted, which
    `stack` shows. It goes from the page allocator outwards.
    """

    number: int
    freed: bool
    pfn: Pfn
    order: int
    gfp: int | None
    gfp_names: tuple[str, ...]
    pid: int
    tgid: int
    comm: str
    cpu: int
    stack: tuple[StackFrame, ...]

    @property
    def migratetype(self) -> int | None:
        """What it was asked for: 0 unmovable, 1 movable, 2 reclaimable memory (C: gfp_migratetype())."""
        return None if self.gfp is None else self.gfp >> _GFP_MOVABLE_SHIFT & 3


@dataclass(slots=True)
class _Call:
    """An allocation that has been asked for; of a bulk also where its pages go, and what is there before."""

    order: int
    gfp: int
    array: VirtAddr | None = None
    held: tuple[int, ...] = ()


class AllocationTrace(Trace[Allocation]):
    """Pages that tasks allocate and free, as they do it: see Trace.

    Each page that any task allocates or frees stops the guest. `pfn` records only what that frame is part of;
    without a target all tasks are traced.
    """

    def __init__(
        self,
        kernel: Kernel,
        machine: Traceable,
        target: int | str | None = None,
        *,
        pfn: Pfn | None = None,
        limit: int | None = None,
        children: bool = False,
        step: bool = False,
    ) -> None:
        """Raises SymbolsError for a kernel that cannot be traced, NoSuchFrame, UsageError."""
        super().__init__(kernel, machine, target, limit=limit, children=children, step=step)
        if target is None and children:
            raise UsageError("no children without a task to trace: all tasks are traced")
        self._memmap = MemMap(self._reader.kernel)
        if pfn is not None:
            self._memmap.address(pfn)
        self._pfn = pfn
        self._names = _points(kernel)
        self._registers = {name: _registers(kernel, name) for name in self._names.values()}
        self._gfp = _gfp_names(kernel)
        self._unwinder = Unwinder(self._reader.kernel)
        self._calls: dict[tuple[int, int], _Call] = {}
        self._recent: dict[int, set[int]] = {}
        self._skip_mm = 0
        self._made = 0
        self.allocated = self.freed = 0
        """Pages (not blocks) of all records."""
        self.others = 0
        """Stops for other tasks, or other frames."""

    @property
    def lost(self) -> int:
        """Stops that memory was too corrupt to read at."""
        return self._unreadable

    def _points(self) -> Iterable[VirtAddr]:
        return self._names

    def _prepare(self, followed: Followed | None, command: bool) -> None:
        if followed and command:  # what the shell does before its exec is not told
            self._skip_mm = followed.mm

    def _at_hit(self, hit: Hit) -> tuple[Sequence[Allocation], VirtAddr | None]:
        task = self._task(hit.cpu)
        if task is None:
            self.others += 1
            return (), None
        name = self._names.get(hit.address)
        if name is None:
            return self._returned(hit, task), None
        values = {parameter: hit.registers[at] for parameter, at in self._registers[name].items()}
        if name == _ONE or name in _BULK:
            return (), self._called(hit, name, values)
        if name == "free_unref_folios":
            blocks = self._folios(VirtAddr(values["folios"]))
        else:
            blocks = [(self._memmap.pfn(VirtAddr(values["page"])), values.get("order", 0) & 0xFFFFFFFF)]
        return self._records(hit, task, blocks, None), None

    def _task(self, cpu: int) -> StructView | None:
        """Whose the stop is, where that task is traced."""
        kernel = self._reader.kernel
        task = self._followed.running(cpu) if self._followed else cpus.current_task(kernel, cpu)
        if task is None or not self._skip_mm:
            return task
        if task.ptr("mm") in (0, self._skip_mm):
            return None
        self._skip_mm = 0
        return task

    def _called(self, hit: Hit, name: str, values: dict[str, int]) -> VirtAddr:
        """An allocation begins: its outcome is to be seen where it returns to."""
        rsp = hit.registers["rsp"]
        caller = VirtAddr(self._reader.word(VirtAddr(rsp)))
        if name == _ONE:
            call = _Call(values["order"] & 0xFFFFFFFF, values["gfp_mask"] & 0xFFFFFFFF)
        else:
            count = min(values["nr_pages"] & 0xFFFFFFFF, _MAX_BULK)
            array = VirtAddr(values["page_array"])
            held = tuple(self._words(array, count)) if array else ()
            call = _Call(0, values["gfp"] & 0xFFFFFFFF, array, held)
            self._recent[rsp + 8] = set()
        self._calls[rsp + 8, caller] = call
        return caller

    def _returned(self, hit: Hit, task: StructView) -> list[Allocation]:
        rsp = hit.registers["rsp"]
        call = self._calls.pop((rsp, hit.address), None)
        if call is None:
            return []
        if call.array is None:
            page = hit.registers["rax"]
            if not page:
                return []
            blocks = [(self._memmap.pfn(VirtAddr(page)), call.order)]
            for inner, seen in self._recent.items():  # of a bulk around it, on the same stack
                if rsp < inner < rsp + _STACK:
                    seen.add(blocks[0][0])
        else:
            told = self._recent.pop(rsp, set())
            now = self._words(call.array, len(call.held))
            came = [page for page, was in zip(now, call.held, strict=True) if page and page != was]
            blocks = [(self._memmap.pfn(VirtAddr(page)), 0) for page in came]
            blocks = [block for block in blocks if block[0] not in told]
        return self._records(hit, task, blocks, call.gfp)

    def _words(self, at: VirtAddr, count: int) -> list[int]:
        raw = self._reader.kernel.space.read(at, count * 8)
        return [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]

    def _folios(self, batch: VirtAddr) -> list[tuple[Pfn, int]]:
        """What a struct folio_batch holds."""
        kernel = self._reader.kernel
        view = kernel.view("folio_batch", batch)
        first = kernel.types.offsetof("folio_batch", "folios")
        count = min(view.int("nr"), (kernel.types.sizeof("folio_batch") - first) // kernel.pointer_size)
        found = []
        for folio in self._words(VirtAddr(batch + first), count):
            pfn = self._memmap.pfn(VirtAddr(folio))
            found.append((pfn, self._reader.order(pfn)))
        return found

    def _records(
        self, hit: Hit, task: StructView, blocks: list[tuple[Pfn, int]], gfp: int | None
    ) -> list[Allocation]:
        if self._pfn is not None:
            blocks = [(pfn, order) for pfn, order in blocks if self._holds(pfn, order)]
        if not blocks:
            return []
        registers = hit.registers
        stack = self._unwinder.stack(hit.address, VirtAddr(registers["rsp"]), VirtAddr(registers["rbp"]))
        pages = sum(1 << min(order, _MAX_ORDER) for _, order in blocks)
        if gfp is None:
            self.freed += pages
        else:
            self.allocated += pages
        first, self._made = self._made + 1, self._made + len(blocks)
        return [
            Allocation(
                number=number,
                freed=gfp is None,
                pfn=pfn,
                order=order,
                gfp=gfp,
                gfp_names=() if gfp is None else self._flags(gfp),
                pid=task.int("pid"),
                tgid=task.int("tgid"),
                comm=printable(task.text("comm")),
                cpu=hit.cpu,
                stack=stack,
            )
            for number, (pfn, order) in enumerate(blocks, first)
        ]

    def _holds(self, pfn: Pfn, order: int) -> bool:
        return self._pfn is not None and order <= _MAX_ORDER and pfn <= self._pfn < pfn + (1 << order)

    def _flags(self, gfp: int) -> tuple[str, ...]:
        """As %pGg prints them: the first masks that fit, and the rest (lib/vsprintf.c, format_flags())."""
        found = []
        for mask, name in self._gfp:
            if mask and gfp & mask == mask:
                found.append(name)
                gfp &= ~mask
        return (*found, f"{gfp:#x}") if gfp else tuple(found)


def _points(kernel: Kernel) -> dict[VirtAddr, str]:
    """Where to stop, and which function begins there."""
    frees = next((names for names in _FREES if all(name in kernel.symbols for name in names)), None)
    if _ONE not in kernel.symbols or frees is None:
        raise SymbolsError("the kernel allocates pages in a way that is not known: no trace of it")
    bulk = tuple(name for name in _BULK if name in kernel.symbols)[:1]
    return {kernel.symbol(name): name for name in (_ONE, *bulk, *frees)}


def _registers(kernel: Kernel, name: str) -> dict[str, str]:
    """Which register holds which parameter: `order` came to some of these functions late, for one."""
    given = ["gfp_mask", "order"] if name == _ONE else ["page", "order"]
    if isinstance(kernel.types, KernelTypes):
        with suppress(NoSuchType):
            given = [parameter for parameter, _ in kernel.types.base.function(name).parameters]
    return dict(zip(given, _ARGUMENTS, strict=False))


def _gfp_names(kernel: Kernel) -> list[tuple[int, str]]:
    """The kernel's own table of masks and names (mm/debug.c, gfpflag_names; struct trace_print_flags)."""
    if "gfpflag_names" not in kernel.symbols:
        return []
    found = []
    at, size = kernel.symbol("gfpflag_names"), kernel.pointer_size
    for index in range(_MAX_NAMES):
        mask, name = (kernel.space.pointer(VirtAddr(at + (2 * index + part) * size)) for part in (0, 1))
        if not name:
            break
        found.append((int(mask), printable(kernel.space.cstring(VirtAddr(name), _MAX_NAME))))
    return found
