"""Colours and glyphs with a meaning: the same thing looks the same on every screen.

The hues are Okabe and Ito's, which people tell apart whose eyes do not see red, green or blue; each also has
a glyph of its own where colour alone would carry the meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.theme import Theme

from inspector.kernel.frames import FrameState
from inspector.kernel.owners import Owner
from inspector.kernel.slab_objects import ObjectState

BACKGROUND = "#0f1318"
SURFACE = "#161c24"
PANEL = "#1f2733"
FOREGROUND = "#d5dbe3"
DIM = "#8290a3"
FAINT = "#465162"
ACCENT = "#56b4e9"
GOOD = "#2fbf8f"
WARN = "#e6a817"
BAD = "#f0655b"
CURSOR = "#ffffff"
CURSOR_ROW = "#263445"

THEME = Theme(
    name="kmi",
    primary=ACCENT,
    secondary="#cc79a7",
    accent=WARN,
    warning=WARN,
    error=BAD,
    success=GOOD,
    foreground=FOREGROUND,
    background=BACKGROUND,
    surface=SURFACE,
    panel=PANEL,
    dark=True,
    variables={
        "footer-background": PANEL,
        "footer-key-foreground": WARN,
        "footer-key-background": PANEL,
        "footer-description-foreground": FOREGROUND,
        "footer-description-background": PANEL,
        "scrollbar": "#2c3746",
        "scrollbar-background": BACKGROUND,
        "scrollbar-background-hover": BACKGROUND,
        "scrollbar-background-active": BACKGROUND,
        "scrollbar-corner-color": BACKGROUND,
        "block-cursor-background": CURSOR_ROW,
        "block-cursor-foreground": FOREGROUND,
        "input-selection-background": "#56b4e9 35%",
    },
)


@dataclass(frozen=True, slots=True)
class Look:
    """How a thing of one kind is drawn, and what it is called."""

    name: str
    color: str
    glyph: str
    meaning: str


_STATES = {
    "HOLE": Look("hole", "#1b212a", " ", "no struct page: no memory, or not Linux's"),
    "RESERVED": Look(
        "reserved", "#5d6878", "R", "never given to the allocator: firmware, kernel image, mem_map"
    ),
    "FREE": Look("free", "#146b55", "·", "in a block on a buddy free list"),
    "PER_CPU": Look("per-CPU free", "#2fbf8f", ":", "free, on a CPU's own list"),
    "SLAB": Look("slab", "#e69f00", "s", "kernel objects"),
    "PAGE_TABLE": Look("page table", "#f0e442", "T", "translations of user and kernel addresses"),
    "ANON": Look("anonymous", "#56b4e9", "a", "user memory without a file"),
    "FILE": Look("page cache", "#cc79a7", "f", "contents of files, shared memory included"),
    "KERNEL": Look("kernel", "#d55e00", "k", "allocated, and not marked as any of these"),
}
_SPARE = ("#8da0cb", "#66c2a5", "#fc8d62", "#e78ac3", "#a6d854", "#ffd92f", "#b3b3b3", "#8f7fd1")


def state_look(state: int) -> Look:
    """How frames in a state are drawn; a state that this module does not know gets a colour of its own."""
    name = FrameState(state).name
    if name in _STATES:
        return _STATES[name]
    plain = name.lower().replace("_", " ")
    return Look(plain, _SPARE[state % len(_SPARE)], plain[0].upper(), plain)


STATES: dict[int, Look] = {int(state): state_look(state) for state in FrameState}

_OWNERS = {
    "NO_PAGE": Look("hole", "#1b212a", " ", "no struct page: no memory, or not Linux's"),
    "FIRMWARE": Look("firmware", "#3d4552", "F", "kept by the firmware, or no RAM at all"),
    "KERNEL_IMAGE": Look("kernel image", "#d55e00", "K", "the kernel's own text and data"),
    "MEMMAP": Look("mem_map", "#5d6878", "M", "the array of struct page itself"),
    "RESERVED": Look("reserved", "#7f8a99", "R", "kept back at boot, and no mark says what for"),
    "FREE": Look("free", "#146b55", "·", "in a block on a buddy free list"),
    "PER_CPU_FREE": Look("per-CPU free", "#2fbf8f", ":", "free, on a CPU's own list"),
    "PAGE_TABLE": Look("page table", "#f0e442", "T", "translations of user and kernel addresses"),
    "KERNEL_STACK": Look("kernel stack", "#b18cf0", "S", "where a thread runs in the kernel"),
    "SLAB": Look("slab", "#e69f00", "s", "kernel objects of one cache"),
    "VMALLOC": Look("vmalloc", "#b06a35", "v", "a vmalloc area's, contiguous in virtual addresses only"),
    "MODULE": Look("module", "#ff9d76", "m", "a loaded module's code and data"),
    "PERCPU": Look("percpu", "#a08c4c", "P", "variables that each CPU has for itself"),
    "ANON": Look("anonymous", "#56b4e9", "a", "user memory without a file"),
    "SWAP_CACHE": Look("swap cache", "#3f6fd8", "w", "user memory that a swap slot holds too"),
    "SHMEM": Look("shared mem", "#7fd6d0", "h", "shared memory and tmpfs"),
    "PAGE_CACHE": Look("page cache", "#cc79a7", "f", "contents of files"),
    "HUGETLB": Look("hugetlb", "#2e86c1", "H", "huge pages of hugetlbfs"),
    "ZERO_PAGE": Look("zero page", "#b8c4d0", "0", "the page of zeros that all share"),
    "HUGE_ZERO_PAGE": Look("huge zero", "#98a8bb", "O", "the huge page of zeros that all share"),
    "DRIVER": Look("driver", "#a6d854", "d", "a kernel allocation that a user mapping shows"),
    "MARKED": Look(
        "marked", "#c2b280", "k", "the kernel's, and it is known what for: zsmalloc, large kmalloc"
    ),
    "UNMARKED": Look("unmarked", "#f0655b", "?", "allocated, and nothing that the kernel keeps says by whom"),
}


def owner_look(owner: Owner) -> Look:
    """How an owner's frames are drawn; an owner that this module does not know gets a colour of its own."""
    if owner.name in _OWNERS:
        return _OWNERS[owner.name]
    plain = owner.name.lower().replace("_", " ")
    return Look(plain, _SPARE[owner % len(_SPARE)], plain[0].upper(), plain)


_USES = {"anonymous": "ANON", "shared memory": "SHMEM", "KSM": "ANON"}


def use_look(use: str) -> Look:
    """How a frame is drawn by what a trace's FrameState says that it is used for."""
    name = _USES.get(use, use.upper().replace(" ", "_"))
    return _OWNERS.get(name, _OWNERS["MARKED"])


OWNERS: dict[int, Look] = {int(owner): owner_look(owner) for owner in Owner}

OBJECTS: dict[int, Look] = {
    ObjectState.ALLOCATED: Look("allocated", "#e69f00", "o", "allocated"),
    ObjectState.FREE: Look("free", "#146b55", "·", "free on the slab's list"),
    ObjectState.CPU: Look("CPU", "#2fbf8f", ":", "free on a CPU's list"),
    ObjectState.SHEAF: Look("sheaf", "#56b4e9", "=", "free in a sheaf"),
    ObjectState.RCU: Look("RCU", "#cc79a7", "r", "freed, after a grace period"),
}
"""Slab objects by ObjectState."""

MIGRATETYPES = (
    Look("unmovable", "#e69f00", "u", "the kernel's own: it cannot be moved"),
    Look("movable", "#56b4e9", "m", "users' memory and page cache: it can be moved"),
    Look("reclaimable", "#2fbf8f", "r", "the kernel's caches: it can be given back"),
    Look("no type", "#cc79a7", "x", "asked for with both flags"),
)
"""What pages are asked for, by gfp_migratetype()."""
GONE = "#6d4152"
"""Pages that were handed out, and taken back."""

# Tasks by the letter that ps shows.
TASK_STATES = {
    "R": ("running", GOOD),
    "S": ("sleeping", FOREGROUND),
    "D": ("uninterruptible", WARN),
    "I": ("idle", DIM),
    "T": ("stopped", WARN),
    "t": ("traced", WARN),
    "Z": ("zombie", BAD),
    "X": ("dead", BAD),
    "P": ("parked", DIM),
}

# One colour for each field of a virtual address, top level first, then the offset into the page.
LEVELS = {"PGD": "#cc79a7", "P4D": "#e69f00", "PUD": "#56b4e9", "PMD": "#2fbf8f", "PTE": "#f0e442"}
OFFSET = "#d5dbe3"
UNUSED = FAINT

SHADES = " ░▒▓█"
"""How full a cell is, from empty to full."""


def blend(over: str, under: str, share: float) -> str:
    """The colour `over` at an opacity of `share` on `under`; both as #rrggbb."""
    pairs = zip(bytes.fromhex(over[1:]), bytes.fromhex(under[1:]), strict=True)
    return "#" + bytes(round(a * share + b * (1 - share)) for a, b in pairs).hex()


VMA_KINDS = {
    "code": Look("code", "#e69f00", "x", "executable"),
    "constants": Look("constants", "#9db0c9", "r", "a file, read only"),
    "data": Look("data", "#cc79a7", "w", "a file, writable"),
    "heap": Look("heap", "#2fbf8f", "h", "grown by brk()"),
    "stack": Look("stack", "#f0e442", "s", "the first thread's stack"),
    "anonymous": Look("anonymous", "#56b4e9", "a", "memory without a file"),
    "special": Look("special", "#8290a3", "v", "mapped by the kernel: vdso and its kin"),
    "guard": Look("no access", "#5d6878", "-", "reserved addresses: any use faults"),
}
"""What an address range is for, by the name that vma_kind() gives."""


def vma_kind(permissions: str, name: str) -> str:
    """The kind of a VMA from its permissions and name as in /proc/PID/maps."""
    if name == "[heap]" or name == "[stack]":
        return name.strip("[]")
    if name.startswith("[v"):
        return "special"
    if permissions[:3] == "---":
        return "guard"
    if "x" in permissions:
        return "code"
    if not name or name.startswith("["):
        return "anonymous"
    return "data" if "w" in permissions else "constants"
