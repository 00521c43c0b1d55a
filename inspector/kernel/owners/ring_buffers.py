"""The pages of tracing's ring buffers (kernel/trace/ring_buffer.c)."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.errors import CorruptGuest
from inspector.kernel import lists
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_FLAGS = 3  # RB_PAGE_HEAD and RB_PAGE_UPDATE, in the links of a buffer's pages
_BUFFERS = {
    "array_buffer": "trace buffer",
    "max_buffer": "trace snapshot",
    "snapshot_buffer": "trace snapshot",  # as it is called in 7.2
}
_MAX_INSTANCES = 1 << 10
_MAX_PAGES = 1 << 18  # 1 GiB of one CPU's
_MAX_ORDER = 10


def ring_buffers(kernel: Kernel) -> list[tuple[int, int, str]]:
    """Every page of every instance's buffers: its address, bytes, what it is. Raises CorruptGuest."""
    if "ftrace_trace_arrays" not in kernel.symbols or not kernel.types.has("trace_array", "array_buffer"):
        return []
    head = kernel.symbol("ftrace_trace_arrays")
    found: list[tuple[int, int, str]] = []
    for instance in lists.entries(kernel, head, "trace_array", "list", _MAX_INSTANCES):
        for name, label in _BUFFERS.items():
            buffer = instance.deref(f"{name}.buffer") if instance.has(f"{name}.buffer") else None
            if buffer is not None:
                found += _pages_of(buffer, label)
    if "temp_buffer" in kernel.symbols and (at := kernel.word("temp_buffer")):
        found += _pages_of(kernel.view("trace_buffer", VirtAddr(at)), "trace spare buffer")
    return found


def _pages_of(buffer: StructView, label: str) -> Iterator[tuple[int, int, str]]:
    kernel = buffer.kernel
    order = buffer.int("subbuf_order") if buffer.has("subbuf_order") else 0  # between 6.1 and 6.12
    if not 0 <= order <= _MAX_ORDER:
        raise CorruptGuest(f"a ring buffer has pages of order {order}")
    size = kernel.space.format.page_size << order
    link = kernel.types.offsetof("buffer_page", "list")
    for cpu in kernel.possible_cpus:
        at = kernel.space.pointer(VirtAddr(buffer.ptr("buffers") + cpu * kernel.pointer_size))
        if not at:
            continue
        view = kernel.view("ring_buffer_per_cpu", at)
        for node in (view.ptr("reader_page"), *_ring(kernel, view.ptr("pages"), link)):
            if node:
                page = kernel.view("buffer_page", VirtAddr(node)).ptr("page")
                yield page, size, f"{label}, CPU {cpu}"


def _ring(kernel: Kernel, first: int, link: int) -> Iterator[int]:
    """The struct buffer_pages in a ring without a head; a link's low bits are flags."""
    at, seen = first, set[int]()
    while at and at not in seen:
        if len(seen) >= _MAX_PAGES:
            raise CorruptGuest("the pages of a ring buffer do not end")
        seen.add(at)
        yield at - link
        at = kernel.space.pointer(VirtAddr(at)) & ~_FLAGS
