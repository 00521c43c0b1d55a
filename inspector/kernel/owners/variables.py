"""Pages that the kernel took for itself and that a variable of its leads to: hash tables, buffers, pools.

Nothing in struct page says what they are for. What a variable points to and how large the kernel says that it
is, is certain; of what else there is nobody knows, and it stays unmarked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest, InspectorError
from inspector.kernel import dma
from inspector.kernel.bulk import spread
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners.canvas import Canvas
from inspector.kernel.owners.model import Owner
from inspector.kernel.owners.ring_buffers import ring_buffers
from inspector.kernel.recall import recall
from inspector.kernel.zones import node_id, nodes
from inspector.symbols import Kernel
from inspector.units import PhysAddr, VirtAddr

Lead = tuple[int, int, str]
"""An address, how many bytes from there on, and what they are."""

# Tables of alloc_large_system_hash(): the pointer, what an entry is or its bytes, and the mask of its index.
_HASHES: tuple[tuple[str, str | int, str], ...] = (
    ("mount_hashtable", "hlist_head", "m_hash_mask"),  # fs/namespace.c
    ("mountpoint_hashtable", "hlist_head", "mp_hash_mask"),
    ("token_hash", "token_bucket", "token_mask"),  # net/mptcp/token.c
    ("ip_idents", 4, "ip_idents_mask"),  # net/ipv4/route.c
    ("ip_tstamps", 4, "ip_idents_mask"),
)
# Those that a struct has: its variable and type, the pointer, what counts the entries, and what to add to it.
_TABLES = (
    ("udp_table", "udp_table", "hash", "mask", 1),  # net/ipv4/udp.c
    ("udp_table", "udp_table", "hash2", "mask", 1),
    ("udp_table", "udp_table", "hash4", "mask", 1),  # 6.13
    ("udplite_table", "udp_table", "hash", "mask", 1),
    ("udplite_table", "udp_table", "hash2", "mask", 1),
    ("tcp_hashinfo", "inet_hashinfo", "ehash", "ehash_mask", 1),  # net/ipv4/tcp.c
    ("tcp_hashinfo", "inet_hashinfo", "bhash", "bhash_size", 0),
    ("tcp_hashinfo", "inet_hashinfo", "bhash2", "bhash_size", 0),  # 6.1
    ("tcp_hashinfo", "inet_hashinfo", "lhash2", "lhash2_mask", 1),
)
# Pointers to whole pages, and how many: kernel/crash_core.c, kernel/power/swap.c, fs/quota/dquot.c,
# drivers/ras/cec.c, lib/vdso/datastore.c.
_PAGES = {
    "vmcoreinfo_data": 1,
    "vmcoreinfo_note": 2,
    "swsusp_header": 1,
    "dquot_hash": 1,
    "ce_arr": 1,
    "vdso_k_time_data": 1,
    "vdso_k_rng_data": 1,
    "vdso_k_arch_data": 1,
}
_COMPOUND = (
    ("kernfs_locks", "", ""),
    ("vmap_nodes", "", ""),
    ("tcp_metrics_hash", "", ""),
    ("btf_vmlinux", "btf", "types"),  # kernel/bpf/btf.c
    ("btf_vmlinux", "btf", "resolved_sizes"),
    ("btf_vmlinux", "btf", "resolved_ids"),
)
"""Pointers to a compound page, whose size the page tells: a variable, or a member of what one points to."""

_MEMPOOLS = ("integrity_buf_pool", "page_pool")  # block/bio-integrity.c, block/bounce.c
_ESPFIX_STACKS = 64  # in a page: ESPFIX_STACKS_PER_PAGE, arch/x86/kernel/espfix_64.c
_MAX_ELEMENTS = 1 << 16
_MAX_ORDER = 20


def paint(canvas: Canvas) -> None:
    """Give what variables lead to their names."""
    pfns, which, texts = recall(canvas.kernel, _frames)
    canvas.paint(pfns, Owner.MARKED, canvas.labelled(texts)[which], (Owner.UNMARKED,))
    _compound(canvas)


def _frames(kernel: Kernel) -> tuple[NDArray[np.uint64], NDArray[np.int64], list[str]]:
    """The PFNs, the number of the label of each, and the labels."""
    memmap = MemMap(kernel)
    labels: dict[str, int] = {"": 0}
    pfns, which = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    room = 2 * memmap.end  # corrupt books may tell of more than there is
    for at, size, label in reversed(
        _leads(kernel)
    ):  # of several that a frame is of, the first is painted last
        phys = at - kernel.page_offset  # pages of the direct map alone are contiguous
        if phys >= 0 and size > 0:
            first, last = phys // memmap.page_size, min(-(-(phys + size) // memmap.page_size), memmap.end)
            room -= max(last - first, 0)
            if room < 0:
                raise CorruptGuest("the kernel's tables and buffers are larger than all of memory")
            pfns.append(np.arange(first, max(first, last), dtype=np.uint64))
            which.append(np.full(len(pfns[-1]), labels.setdefault(label, len(labels))))
    return np.concatenate(pfns), np.concatenate(which), list(labels)


def _leads(kernel: Kernel) -> list[Lead]:
    found: list[Lead] = []
    for finder in _FINDERS:
        with suppress(InspectorError):  # a kernel that keeps it otherwise
            found += finder(kernel)
    return found


def _hashes(kernel: Kernel) -> Iterator[Lead]:
    for table, entry, mask in _HASHES:
        if table in kernel.symbols and mask in kernel.symbols:
            size = entry if isinstance(entry, int) else kernel.types.sizeof(entry)
            yield kernel.word(table), (kernel.space.u32(kernel.symbol(mask)) + 1) * size, table


def _tables(kernel: Kernel) -> Iterator[Lead]:
    for symbol, kind, pointer, count, more in _TABLES:
        if symbol in kernel.symbols and kernel.types.has(kind, pointer):
            entry = kernel.types.field(kind, pointer).type.target
            table = kernel.variable(kind, symbol)
            if entry is not None:
                yield table.ptr(pointer), (table.int(count) + more) * entry.size, f"{symbol}.{pointer}"


def _futexes(kernel: Kernel) -> Iterator[Lead]:
    """__futex_data has no type of its own (kernel/futex/core.c)."""
    at, bucket = kernel.symbol("__futex_data"), kernel.types.sizeof("futex_hash_bucket")
    first, second = (kernel.space.u64(VirtAddr(at + place)) for place in (0, kernel.pointer_size))
    if first >= kernel.page_offset:  # a table and the number of its buckets
        yield first, second * bucket, "futex hash"
    else:  # a mask, a shift and a table for each node, as in 7.2
        for node in nodes(kernel):
            place = VirtAddr(at + (2 + node_id(node)) * kernel.pointer_size)
            yield kernel.space.pointer(place), (first + 1) * bucket, "futex hash"


def _timers(kernel: Kernel) -> Iterator[Lead]:
    """__timer_data, neither: a table and a mask (kernel/time/posix-timers.c)."""
    if "__timer_data" in kernel.symbols:
        at, bucket = kernel.symbol("__timer_data"), kernel.types.sizeof("timer_hash_bucket")
        mask = kernel.space.u32(VirtAddr(at + kernel.pointer_size))
        yield kernel.space.pointer(at), (mask + 1) * bucket, "posix timers"


def _pages(kernel: Kernel) -> Iterator[Lead]:
    page_size = kernel.space.format.page_size
    for symbol, count in _PAGES.items():
        if symbol in kernel.symbols and (at := kernel.word(symbol)) % page_size == 0:
            yield at, count * page_size, symbol
    if "espfix_pages" in kernel.symbols:
        table, last = kernel.symbol("espfix_pages"), max(kernel.possible_cpus, default=0) // _ESPFIX_STACKS
        for place in range(last + 1):
            yield (
                kernel.space.pointer(VirtAddr(table + place * kernel.pointer_size)),
                page_size,
                "espfix stacks",
            )


def _saved_cmdlines(kernel: Kernel) -> Iterator[Lead]:
    """The names of tasks that were traced: all in one block since 6.9 (kernel/trace/trace_sched_switch.c)."""
    if "savedcmd" in kernel.symbols and (at := kernel.word("savedcmd")):
        saved = kernel.view("saved_cmdlines_buffer", VirtAddr(at))
        entry = kernel.types.field("task_struct", "comm").type.size + 4  # a name, and whose it is
        size = saved.type.size + saved.int("cmdline_num") * entry
        page_size = kernel.space.format.page_size
        if at % page_size == 0:
            yield at, max(page_size, 1 << (size - 1).bit_length()), "saved command lines"


def _atomic_pools(kernel: Kernel) -> Iterator[Lead]:
    for pool in dma.atomic_pools(kernel) or ():
        for chunk in pool.chunks:
            yield kernel.phys_to_virt(chunk.phys), chunk.size, pool.name


def _mempools(kernel: Kernel) -> Iterator[Lead]:
    """Pages that a mempool keeps for when there are no others (mm/mempool.c)."""
    kind = "mempool" if kernel.types.has("mempool", "elements") else "mempool_s"
    memmap = MemMap(kernel)
    for name in _MEMPOOLS:
        if name not in kernel.symbols:
            continue
        pool = kernel.variable(kind, name)
        count, order = pool.int("curr_nr"), pool.int("pool_data")
        if pool.ptr("alloc") != kernel.symbol("mempool_alloc_pages") or not 0 <= order <= _MAX_ORDER:
            continue
        for place in range(min(count, _MAX_ELEMENTS)):
            page = kernel.space.pointer(VirtAddr(pool.ptr("elements") + place * kernel.pointer_size))
            at = kernel.phys_to_virt(PhysAddr(memmap.pfn(page) * memmap.page_size))
            yield at, memmap.page_size << order, name


_FINDERS: tuple[Callable[[Kernel], Iterable[Lead]], ...] = (
    _hashes,
    _tables,
    _futexes,
    _timers,
    _pages,
    _saved_cmdlines,
    _atomic_pools,
    _mempools,
    ring_buffers,
)


def _compound(canvas: Canvas) -> None:
    """Where a pointer leads to the first byte of a compound page, all of that is meant."""
    frames = canvas.frames
    heads, labels = recall(canvas.kernel, _heads)
    first, last = (np.searchsorted(frames.head, heads, side) for side in ("left", "right"))
    sizes = np.maximum(last - first, 0)
    pfns = frames.used[spread(first.astype(np.uint64), sizes)].astype(np.uint64)
    canvas.paint(pfns, Owner.MARKED, np.repeat(canvas.labelled(labels), sizes), (Owner.UNMARKED,))


def _heads(kernel: Kernel) -> tuple[NDArray[np.int64], list[str]]:
    """The first PFN of each, and its label."""
    page_size = kernel.space.format.page_size
    found = [(*divmod(at - kernel.page_offset, page_size), label) for at, label in _pointers(kernel)]
    whole = [(pfn, label) for pfn, inside, label in found if not inside and 0 <= pfn < MemMap(kernel).end]
    return np.array([pfn for pfn, _ in whole], np.int64), [label for _, label in whole]


def _pointers(kernel: Kernel) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for symbol, kind, member in _COMPOUND:
        if symbol not in kernel.symbols or not (at := kernel.word(symbol)):
            continue
        with suppress(InspectorError):
            found.append(
                (kernel.view(kind, VirtAddr(at)).ptr(member), f"{symbol}.{member}") if kind else (at, symbol)
            )
    return found
