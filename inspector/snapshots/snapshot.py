"""What a snapshot holds. It refers to no guest: it can be kept, saved and compared when that is gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.modules import Module
from inspector.kernel.owners import Owners
from inspector.kernel.vmalloc import VmallocArea
from inspector.kernel.zones import Zone
from inspector.snapshots.diff import Diff, diff
from inspector.snapshots.files import read, write
from inspector.units import VirtAddr


@dataclass(frozen=True, slots=True)
class TaskState:
    """A process as it was. `rss_*`, `swap_entries` and `total_vm` are in pages, 0 for a kernel thread.

    `address`, `stack` and `mm` are those of struct task_struct, of the kernel stack's lowest byte and of
    struct mm_struct (0 for a kernel thread).
    """

    pid: int
    tgid: int
    ppid: int
    comm: str
    name: str
    state: str
    uid: int
    threads: int
    kernel_thread: bool
    address: VirtAddr
    stack: VirtAddr
    mm: VirtAddr
    rss_anon: int
    rss_file: int
    rss_shmem: int
    swap_entries: int
    total_vm: int
    pgtables_bytes: int

    @property
    def rss(self) -> int:
        """Resident pages, as the kernel counts them (C: get_mm_rss)."""
        return self.rss_anon + self.rss_file + self.rss_shmem

    @property
    def label(self) -> str:
        """How frames that it owns are labelled: `comm (pid)`."""
        return f"{self.comm} ({self.pid})"


@dataclass(frozen=True, slots=True)
class CacheState:
    """A slab cache as it was. `size` is an object's in bytes, `slabs` are of 2**order pages.

    `objects` and `active` are those of /proc/slabinfo; `allocated` leaves out the objects that CPUs keep in
    store. `reclaimable`: the kernel gives them back when memory is short (SLAB_RECLAIM_ACCOUNT).
    """

    name: str
    address: VirtAddr
    size: int
    order: int
    slabs: int
    objects: int
    active: int
    allocated: int
    reclaimable: bool


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A guest's memory at one moment; from guest.snapshot().

    `taken` is the host's time, in seconds since 1970. `frames` are kernel.owners.FRAME rows, a row a PFN;
    `labels` is what their `detail` indexes, `migratetypes` what their `migratetype` does. `mappings` are the
    leaf entries of all address spaces as kernel.rmap.ROW, by address and, before that, by `owner`: an index
    into `tasks`. Tasks that share an address space have it once. `areas` are all of the vmalloc region's.
    `forgotten` (u8, sorted) are the PFNs of unmarked frames that nothing in the kernel points to.
    """

    taken: float
    release: str
    build_id: str
    kaslr_offset: int
    page_size: int
    labels: tuple[str, ...]
    migratetypes: tuple[str, ...]
    tasks: tuple[TaskState, ...]
    caches: tuple[CacheState, ...]
    areas: tuple[VmallocArea, ...]
    modules: tuple[Module, ...]
    zones: tuple[Zone, ...]
    frames: NDArray[np.void]
    mappings: NDArray[np.void]
    forgotten: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    @property
    def owners(self) -> Owners:
        """The frames with their labels, as guest.owners() gives them."""
        return Owners(self.frames, self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes that its arrays take."""
        return self.frames.nbytes + self.mappings.nbytes

    def diff(self, before: Snapshot) -> Diff:
        """What changed since an earlier snapshot of this guest. Raises UsageError where it is another's."""
        return diff(before, self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file, over one that is there. Raises SetupError."""
        write(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Snapshot:
        """Read a file of save(); it is not trusted. Raises BadSnapshot."""
        return read(cls, path)
