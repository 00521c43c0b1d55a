"""The kernel's stack, unwound as the kernel unwinds it: by its ORC tables (arch/x86/kernel/unwind_orc.c)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.errors import InspectorError, NoSuchSymbol
from inspector.kernel import ksyms, modules
from inspector.symbols import Kernel
from inspector.units import VirtAddr, printable

_DEPTH = 64
_MAX_ENTRIES = 1 << 24
# arch/x86/include/asm/orc_types.h: what the outer stack pointer, and base pointer, are relative to.
_OLD_BASES = {1: "outer sp", 4: "bp", 5: "sp", 8: "bp indirect", 9: "sp indirect"}
_BASES = {3: "sp", 4: "bp", 8: "outer sp", 9: "sp indirect", 10: "bp indirect"}
_CALL, _REGS, _REGS_PARTIAL = "call", "regs", "partial regs"


@dataclass(frozen=True, slots=True)
class StackFrame:
    """Where a function that is on the stack goes on; `place` is `symbol+0xoffset`, of the guest's wording."""

    address: VirtAddr
    place: str


@dataclass(frozen=True, slots=True)
class _Table:
    """One object's rows: code addresses, rising, and what holds from each on."""

    ips: NDArray[np.uint64]
    rows: NDArray[np.void]
    bases: Mapping[int, str]


class Unwinder:
    """Unwinds stacks of a kernel with ORC tables (CONFIG_UNWINDER_ORC); others give the first frame only."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._modules: dict[VirtAddr, _Table | None] = {}
        self._places: dict[int, str] = {}
        # fb799447ae29 (6.4): UNDEFINED and END_OF_STACK became types, and the `end` bit went.
        old = kernel.types.has("orc_entry", "end")
        self._types = (
            {0: _CALL, 1: _REGS, 2: _REGS_PARTIAL} if old else {2: _CALL, 3: _REGS, 4: _REGS_PARTIAL}
        )

    def stack(self, rip: VirtAddr, rsp: VirtAddr, rbp: VirtAddr) -> tuple[StackFrame, ...]:
        """From the function that executes outwards, as far as can be told."""
        found = [rip]
        exact = True  # an address that is returned to belongs to the call before it
        ip, sp, bp = int(rip), int(rsp), int(rbp)
        try:
            while len(found) < _DEPTH:
                step = self._step(ip if exact else ip - 1, sp, bp)
                if step is None or (step[0], step[1]) == (ip, sp):
                    break
                ip, sp, bp, exact = step
                if not ip >> 63:
                    break
                found.append(VirtAddr(ip))
        except InspectorError:  # the stack ends where memory does
            pass
        return tuple(StackFrame(address, self._place(address)) for address in found)

    def _step(self, ip: int, sp: int, bp: int) -> tuple[int, int, int, bool] | None:
        """The frame around: its ip, sp, bp, and whether ip is where it executes (an exception's)."""
        found = self._row(ip)
        if found is None:
            return None
        table, row = found
        kernel, word = self._kernel, self._kernel.space.u64
        kind = self._types.get(int(row["type"]) & self._mask)
        base, bp_base = (table.bases.get(int(row["registers"]) >> shift & 0xF) for shift in (0, 4))
        at = {"sp": sp, "sp indirect": sp, "bp": bp, "bp indirect": bp}.get(base or "")
        if at is None:  # relative to a register that only the CPU has
            return None
        if base == "sp indirect":
            at = word(VirtAddr(at))
        at += int(row["sp_offset"])
        if base == "bp indirect":
            at = word(VirtAddr(at))
        if kind == _CALL:
            outer_ip, outer_sp = word(VirtAddr(at - 8)), at
        elif kind in (_REGS, _REGS_PARTIAL):
            ip_at = kernel.types.offsetof("pt_regs", "ip")
            regs = at if kind == _REGS else at - ip_at
            outer_ip = word(VirtAddr(regs + ip_at))
            outer_sp = word(VirtAddr(regs + kernel.types.offsetof("pt_regs", "sp")))
            if kind == _REGS:
                bp = word(VirtAddr(regs + kernel.types.offsetof("pt_regs", "bp")))
        else:
            return None
        if bp_base == "outer sp":
            bp = word(VirtAddr(at + int(row["bp_offset"])))
        elif bp_base == "bp":
            bp = word(VirtAddr(bp + int(row["bp_offset"])))
        return outer_ip, outer_sp, bp, kind != _CALL

    @cached_property
    def _mask(self) -> int:
        """The bits of an orc_entry's second byte that are its type."""
        return (1 << self._kernel.types.field("orc_entry", "type").bit_size) - 1

    def _row(self, ip: int) -> tuple[_Table, np.void] | None:
        table = self._core if self._in_image(ip) else self._of_module(ip)
        if table is None:
            return None
        after = int(np.searchsorted(table.ips, np.uint64(ip), "right"))
        return (table, table.rows[after - 1]) if after else None

    def _in_image(self, ip: int) -> bool:
        return self._kernel.symbol("_stext") <= ip < self._kernel.symbol("_end")

    @cached_property
    def _core(self) -> _Table | None:
        kernel = self._kernel
        try:
            ips = kernel.symbol("__start_orc_unwind_ip")
            count = (kernel.symbol("__stop_orc_unwind_ip") - ips) // 4
            return self._table(ips, kernel.symbol("__start_orc_unwind"), count)
        except NoSuchSymbol:
            return None

    def _of_module(self, ip: int) -> _Table | None:
        for module in modules.modules(self._kernel):
            if module.holds(VirtAddr(ip)):
                if module.address not in self._modules:
                    arch = self._kernel.view("module", module.address).at("arch")
                    count = arch.int("num_orcs")
                    self._modules[module.address] = self._table(
                        arch.ptr("orc_unwind_ip"), arch.ptr("orc_unwind"), count
                    )
                return self._modules[module.address]
        return None

    def _table(self, ips: VirtAddr, rows: VirtAddr, count: int) -> _Table | None:
        """`count` relative addresses, and as many struct orc_entry."""
        if not 0 < count <= _MAX_ENTRIES:
            return None
        kernel = self._kernel
        layout = np.dtype(
            {
                "names": ["sp_offset", "bp_offset", "registers", "type"],
                "formats": ["<i2", "<i2", "u1", "u1"],
                "offsets": [0, 2, 4, 5],
                "itemsize": kernel.types.sizeof("orc_entry"),
            }
        )
        relative = kernel.space.array(ips, count * 4).view("<i4").astype(np.int64)
        places = np.uint64(ips) + np.arange(count, dtype=np.uint64) * np.uint64(4)
        raw = kernel.space.array(rows, count * layout.itemsize)
        table = np.frombuffer(raw.tobytes(), layout)
        # Renumbered between 6.12 and 7.2: the stack pointer is what most rows are relative to.
        base = np.bincount(table["registers"] & 0xF, minlength=16)
        bases = _OLD_BASES if base[5] >= base[3] else _BASES
        return _Table(places + relative.view(np.uint64), table, bases)

    def _place(self, address: VirtAddr) -> str:
        if address not in self._places:
            found = ksyms.in_kernel(self._kernel, address)
            if found is None:
                try:
                    found = ksyms.symbolise(self._kernel, [address], modules.modules(self._kernel))[address]
                except InspectorError:
                    found = f"{address:#x}"
            name, _, rest = found.partition("/")
            owner = rest.partition(" ")[2]
            self._places[address] = printable(f"{name} {owner}".strip())
        return self._places[address]
