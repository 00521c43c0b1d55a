"""What the answer is: the classes of owners, and a row for each frame."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from inspector.units import Pfn


class Owner(IntEnum):
    """What a frame belongs to."""

    NO_PAGE = 0  # no struct page
    FIRMWARE = 1  # RAM that the firmware kept, or no RAM at all
    KERNEL_IMAGE = 2
    MEMMAP = 3  # struct page itself
    RESERVED = 4  # kept back at boot, and no mark says what for
    FREE = 5  # in the buddy allocator
    PER_CPU_FREE = 6  # free, on a CPU's own list
    PAGE_TABLE = 7
    KERNEL_STACK = 8
    SLAB = 9
    VMALLOC = 10
    MODULE = 11
    PERCPU = 12
    ANON = 13
    SWAP_CACHE = 14
    SHMEM = 15
    PAGE_CACHE = 16
    HUGETLB = 17
    ZERO_PAGE = 18
    HUGE_ZERO_PAGE = 19
    DRIVER = 20  # a kernel allocation that a user mapping shows
    UNMARKED = 21  # allocated, and nothing that the kernel keeps says by whom
    MARKED = 22  # the kernel's, and its page_type, what moves it or a symbol says what for

    @property
    def words(self) -> str:
        """The name as it is read: `page cache`."""
        return self.name.lower().replace("_", " ")


FRAME = np.dtype(
    [
        ("pfn", np.uint64),
        ("flags", np.uint64),
        ("index", np.uint64),
        ("mapcount", np.int32),
        ("refcount", np.int32),
        ("detail", np.uint32),
        ("owner", np.uint8),
        ("state", np.uint8),
        ("order", np.uint8),
        ("migratetype", np.uint8),
    ]
)
"""A frame: its Owner, and in `detail` the index of its label in Owners.labels, 0 where there is none.

`index` is the place of the page in its file, in pages, where the owner is one of the page cache; 0 elsewhere.
`state` (a FrameState), `order` and `migratetype` are as in kernel.frames.Frames. `mapcount` counts the user
entries that map the page, by itself or in a huge page, as /proc/kpagecount does; it is -1 where the word
holds the type of a page that none can map.
"""


_NO_LABEL = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Owners:
    """Every frame's owner at one moment. `rows` are FRAME, a row a PFN; `labels[0]` is empty."""

    rows: NDArray[np.void]
    labels: tuple[str, ...]

    def of(self, pfn: Pfn) -> tuple[Owner, str]:
        """A frame's owner, and which one; the label may hold guest text."""
        row = self.rows[pfn]
        return Owner(int(row["owner"])), self.labels[int(row["detail"])]

    def frames_of(self, owner: Owner, label: str = "") -> NDArray[np.void]:
        """The rows of a class; with a label, of that object alone: `/bin/busybox`, `dentry`, `touch (84)`."""
        chosen = self.rows["owner"] == owner
        if label:
            chosen &= self.rows["detail"] == (self.labels.index(label) if label in self.labels else _NO_LABEL)
        found: NDArray[np.void] = self.rows[chosen]
        return found

    def counts(self) -> dict[Owner, int]:
        """How many frames each class has."""
        found = np.bincount(self.rows["owner"], minlength=len(Owner))
        return {owner: int(found[owner]) for owner in Owner}

    def by_label(self, owner: Owner) -> dict[str, int]:
        """How many frames each object of a class has, most first."""
        details = self.rows["detail"][self.rows["owner"] == owner]
        found, count = np.unique(details, return_counts=True)
        order = np.argsort(-count, kind="stable")
        return {self.labels[int(found[i])]: int(count[i]) for i in order}
