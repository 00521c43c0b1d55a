"""Loaded modules and the memory that they take (struct module, include/linux/module.h; /proc/modules)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel import lists
from inspector.kernel.bulk import mapped_frames
from inspector.kernel.recall import recall
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr, printable

_MAX_MODULES = 1 << 14
_REF_BASE = 1  # MODULE_REF_BASE, kernel/module/main.c
_STATES = {
    "MODULE_STATE_LIVE": "Live",
    "MODULE_STATE_COMING": "Loading",
    "MODULE_STATE_GOING": "Unloading",
    "MODULE_STATE_UNFORMED": "Unformed",
}


@dataclass(frozen=True, slots=True)
class ModulePart:
    """A run of a module's memory, `size` bytes; `symbols_end` is what bounds the last symbol in it.

    `kind` is `text`, `data`, `rodata`, `ro_after_init` or `init_*`; before ac3b43283923 (6.4) there were
    only `core` and `init`.
    """

    kind: str
    start: VirtAddr
    size: int
    symbols_end: int

    def holds(self, address: VirtAddr) -> bool:
        """Whether the address lies in it."""
        return self.start <= address < self.start + self.size


@dataclass(frozen=True, slots=True)
class Module:
    """A module as /proc/modules shows it. `size` is in bytes, all its parts together.

    `refcount` is None where the kernel cannot unload modules; `used_by` names the modules that use it, and
    `permanent` says that it cannot be unloaded; `taints` are the letters of its taint flags.
    """

    name: str
    state: str
    size: int
    refcount: int | None
    used_by: tuple[str, ...]
    permanent: bool
    taints: str
    parts: tuple[ModulePart, ...]
    address: VirtAddr

    @property
    def base(self) -> VirtAddr:
        """Where its code begins."""
        return self.parts[0].start if self.parts else VirtAddr(0)

    def holds(self, address: VirtAddr) -> bool:
        """Whether the address lies in its memory."""
        return any(part.holds(address) for part in self.parts)


def modules(kernel: Kernel) -> list[Module]:
    """Every module, in the order of /proc/modules; none for a kernel without modules. Raises CorruptGuest."""
    return list(recall(kernel, _modules)) if "modules" in kernel.symbols else []


def _modules(kernel: Kernel) -> list[Module]:
    views = lists.entries(kernel, kernel.symbol("modules"), "module", "list", _MAX_MODULES)
    return [_module(view) for view in views if _state(view) != "Unformed"]


def module_frames(kernel: Kernel, loaded: list[Module]) -> NDArray[np.void]:
    """The frames of modules' memory, as bulk.RANGE_FRAME rows; `index` is the module's place in `loaded`."""
    page = np.uint64(kernel.space.format.page_size - 1)
    owners = np.array([i for i, module in enumerate(loaded) for part in module.parts], np.uint32)
    parts = [part for module in loaded for part in module.parts]
    starts = np.array([part.start for part in parts], np.uint64) & ~page
    ends = np.array([part.start for part in parts], np.uint64) + np.array(
        [part.size for part in parts], np.uint64
    )
    rows = mapped_frames(kernel, starts, ends)
    rows["index"] = owners[rows["index"]]
    return rows


def _module(view: StructView) -> Module:
    kernel = view.kernel
    parts = _parts(view)
    unload = view.has("source_list")
    return Module(
        name=printable(view.text("name")),
        state=_state(view),
        size=sum(part.size for part in parts),
        refcount=view.int("refcnt.counter") - _REF_BASE if unload else None,
        used_by=_users(view) if unload else (),
        permanent=unload and bool(view.ptr("init")) and not view.ptr("exit"),
        taints=_taints(kernel, view.int("taints")),
        parts=tuple(part for part in parts if part.size),
        address=view.address,
    )


def _state(view: StructView) -> str:
    state = view.int("state")
    for name, value in view.kernel.types.enum("module_state").items():
        if value == state:
            return _STATES.get(name, name)
    raise CorruptGuest(f"the module at {view.address:#x} has state {state}")


def _parts(view: StructView) -> list[ModulePart]:
    if view.has("mem"):  # ac3b43283923 (6.4): an array by enum mod_mem_type
        kinds = {value: name for name, value in view.kernel.types.enum("mod_mem_type").items()}
        count = view.kernel.types.field("module", "mem").type.count
        names = [kinds.get(i, f"part {i}").removeprefix("MOD_").lower() for i in range(count)]
        return [_part(name, view.at(f"mem[{i}]"), "size") for i, name in enumerate(names)]
    names = [name for name in ("core", "data", "init") if view.has(f"{name}_layout")]
    return [_part(name, view.at(f"{name}_layout"), "text_size") for name in names]


def _part(kind: str, memory: StructView, last: str) -> ModulePart:
    base = memory.ptr("base")
    return ModulePart(kind, base, memory.int("size"), base + memory.int(last))


def _users(view: StructView) -> tuple[str, ...]:
    uses = lists.entries(
        view.kernel, view.addr("source_list"), "module_use", "source_list", limit=_MAX_MODULES
    )
    sources = [use.deref("source") for use in uses]
    return tuple(printable(source.text("name")) for source in sources if source)


def _taints(kernel: Kernel, bits: int) -> str:
    if not bits:
        return ""
    flags = kernel.symbol("taint_flags")
    size = kernel.types.sizeof("taint_flag")
    views = [kernel.view("taint_flag", VirtAddr(flags + bit * size)) for bit in range(64) if bits >> bit & 1]
    return printable("".join(chr(view.int("c_true") & 0xFF) for view in views))
