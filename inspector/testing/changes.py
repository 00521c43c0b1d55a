"""Expectations of what happens while a block runs: how much a task grows, which faults it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.errors import UsageError
from inspector.guest import Guest
from inspector.testing import drawing
from inspector.testing.claims import Claims, block
from inspector.trace import Fault, FaultKind
from inspector.units import VirtAddr, printable

_KINDS = ("anon", "file", "shmem")


@block
def rss_growth(guest: Guest, pid: int, pages: int, *, kind: str = "") -> Iterator[None]:
    """Inside, a task's resident set grows by exactly so many pages; `kind`: `anon`, `file` or `shmem` alone.

    The counters are those of its mm, with what CPUs and threads have not handed in yet. Raises Unexpected,
    NoSuchTask, UsageError.
    """
    __tracebackhide__ = True
    if kind and kind not in _KINDS:
        raise UsageError(f"no kind of resident pages {kind!r}: give {', '.join(_KINDS)}, or none for all")
    before = _rss(guest, pid)
    yield
    after = _rss(guest, pid)
    grown = {name: after[name] - before[name] for name in after}
    claims = Claims(f"the RSS of task {pid}")
    found = grown[kind] if kind else sum(grown.values())
    claims.equal(f"{kind or 'all'} pages", f"{pages:+d}", f"{found:+d}")
    claims.check(lambda: ", ".join(f"{name} {before[name]} to {after[name]}" for name in _KINDS) + " pages")


def _rss(guest: Guest, pid: int) -> dict[str, int]:
    mm = guest.task(pid).mm
    if mm is None:
        raise UsageError(f"task {pid} has no address space: it is a kernel thread, or has ended")
    return {"anon": mm.rss_anon, "file": mm.rss_file, "shmem": mm.rss_shmem}


@dataclass(slots=True)
class Faults:
    """What expect.fault() saw; filled when the block ends."""

    seen: tuple[Fault, ...] = ()


@block
def fault(
    guest: Guest, pid: int, *, at: VirtAddr, kind: FaultKind | None = None, times: int = 1
) -> Iterator[Faults]:
    """Inside, a task takes page faults in the page at an address: so many, of this kind. `times=0`: none.

    Raises Unexpected, and as Guest.trace_faults().
    """
    __tracebackhide__ = True
    step = guest.kernel.space.format.page_size
    page = VirtAddr(at & -step)
    faults = Faults()
    with guest.trace_faults(pid, start=page, end=VirtAddr(page + step)) as trace:
        yield faults
    faults.seen = tuple(trace)
    claims = Claims(f"the page at {page:#x} of task {pid}")
    claims.equal("page faults", times, len(faults.seen))
    wrong = [found for found in faults.seen if kind is not None and found.kind is not kind]
    if kind is not None:
        claims.holds("kind", not wrong, kind.value, ", ".join(found.kind.value for found in wrong))
    claims.check(lambda: "\n".join(map(_fault_text, faults.seen)) or "no fault was seen there")


def _fault_text(found: Fault) -> str:
    error = "asked for by the kernel" if found.error is None else f"error code {found.error}"
    return f"{found.kind.value} at {found.address:#x}, {error}, by {printable(found.place)}\nafter it:\n" + (
        drawing.walk_text(found.after)
    )
