"""Expectations of physical frames: what a page is, where a buffer lies, and whether it stays there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from inspector.errors import UsageError
from inspector.guest import Guest
from inspector.kernel.owners import Owner
from inspector.kernel.pageflags import flag_bits
from inspector.kernel.pages import Page
from inspector.snapshots.leaks import runs
from inspector.symbols import Kernel
from inspector.testing import drawing
from inspector.testing.claims import Claims, block
from inspector.testing.places import Where, frames, name_of, size_of
from inspector.units import Pfn, VirtAddr, format_size

_STATES = ("clear", "set")
_MEANT = ("swapcache", "anon_exclusive")  # of bits that bear another name on other pages


def page(
    guest: Guest,
    pfn: Pfn,
    *,
    owner: Owner | str | None = None,
    label: str | None = None,
    flags: str | None = None,
    refcount: int | None = None,
    mapcount: int | None = None,
    order: int | None = None,
    migratetype: str | None = None,
    zone: str | None = None,
    charge: str | None = None,
) -> Page:
    """A frame is what is said of it; what is not said is not looked at. Gives the Page.

    `owner` is a class of owners (`anon`, `page cache`), `label` which one, as a pattern: `touch (*)`. `flags`
    are names of PG_* flags, `!` before those that are clear: `lru uptodate !dirty`. `charge` is the path of
    the memory cgroup that pays; an empty one says that none does. Raises Unexpected, NoSuchFrame, UsageError.
    """
    __tracebackhide__ = True
    wanted = None if owner is None else _owner(owner)
    named = _flags(guest.kernel, flags or "")
    with guest.still():
        found = guest.page(pfn)
        claims = Claims(f"PFN {pfn:#x}")
        if wanted is not None:
            claims.equal("owner", wanted.words, found.owner.words)
        if label is not None:
            claims.holds("label", fnmatchcase(found.owner_label, label), label, found.owner_label or "none")
        for name, expected_set in named.items():
            there = name in found.flag_names
            claims.equal(f"flag {name}", _STATES[expected_set], _STATES[there])
        numbers = {"refcount": refcount, "mapcount": mapcount, "order": order}
        for name, expected in (numbers | {"migratetype": migratetype, "zone": zone}).items():
            if expected is not None:
                claims.equal(name, expected, getattr(found, name))
        if charge is not None:
            claims.equal("charged to", charge or "nobody", found.memory_group or "nobody")
        claims.check(lambda: f"{drawing.page_text(found)}\n{drawing.aliases_text(guest.mapped_by(pfn))}")
    return found


def _owner(name: Owner | str) -> Owner:
    if isinstance(name, Owner):
        return name
    known = {owner.words: owner for owner in Owner}
    wanted = name.lower().replace("_", " ")
    _check("owner", wanted, known)
    return known[wanted]


def _flags(kernel: Kernel, said: str) -> dict[str, bool]:
    """Names of flags, and whether they are to be set: a name that no flag has would always be clear."""
    named = {flag.removeprefix("!"): not flag.startswith("!") for flag in said.split()}
    known = {*flag_bits(kernel), *_MEANT} if named else ()
    for name in named:
        _check("page flag", name, known)
    return named


def _check(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        rest = f"did you mean {near[0]!r}" if near else ", ".join(sorted(known))
        raise UsageError(f"no {what} {name!r}; {rest}")


def contiguous(
    where: Where, va: VirtAddr, size: int | str, *, below: int | str | None = None
) -> NDArray[np.uint64]:
    """The range is one run of physical memory; with `below` it ends there or before. Gives its PFNs.

    `where` is a task, or the guest for an address of the kernel. Raises Unexpected.
    """
    __tracebackhide__ = True
    found = frames(where, va, size)
    claims = Claims(f"{format_size(size_of(size))} at {va:#x} in {name_of(where)}")
    claims.equal("runs of frames", 1, 1 + np.count_nonzero(np.diff(found.astype(np.int64)) != 1))
    if below is not None:
        page_size = where.kernel.space.format.page_size
        last, limit = (int(found.max()) + 1) * page_size, size_of(below)
        claims.holds("highest address", last <= limit, f"below {limit:#x}", f"{last - 1:#x}")
    claims.check(lambda: f"its frames: {runs(found)}")
    return found


@block
def stays(where: Where, va: VirtAddr, size: int | str) -> Iterator[NDArray[np.uint64]]:
    """Inside, the range keeps its frames: the same PFNs before and after. Raises Unexpected."""
    __tracebackhide__ = True
    before = frames(where, va, size)
    yield before
    after = frames(where, va, size)
    moved = before != after
    claims = Claims(f"{format_size(size_of(size))} at {va:#x} in {name_of(where)}")
    claims.equal("pages that moved", 0, int(np.count_nonzero(moved)))
    claims.check(lambda: f"were in frames {runs(before[moved])}\nare in frames {runs(after[moved])}")
