"""Whole page tables at once: every mapping of a range, and the translations of many addresses."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.arch.format import Level, PagingFormat, Shape
from inspector.errors import CorruptGuest
from inspector.memory import BulkMemory
from inspector.units import PhysAddr

U64 = np.dtype(np.uint64)


class Right(IntFlag):
    """What a mapping permits, and-ed over all levels (the `rights` of MAPPING)."""

    W = 1
    U = 2
    X = 4


MAPPING = np.dtype(
    [
        ("va", np.uint64),  # of the first byte, canonical
        ("pa", np.uint64),  # of the first byte
        ("size", np.uint64),  # bytes: the page size of the level
        ("entry", np.uint64),  # the raw leaf entry
        ("rights", np.uint8),  # Right
    ],
    align=True,
)

TABLE = np.dtype([("pa", np.uint64), ("va", np.uint64), ("level", np.uint8), ("root", np.uint32)])
"""A page table: where it lies, the first address that it translates, its place in PagingFormat.levels, and
which of the roots leads to it."""

LEAF = np.dtype([("va", np.uint64), ("pa", np.uint64), ("size", np.uint64), ("root", np.uint32)], align=True)
"""What survey() says of a leaf mapping: as in MAPPING, and which of the roots it is below."""

LIMIT = 32 << 20
"""Entries of one level that scan() reads by default: 128 GiB in 4 KiB pages, at worst 2.4 GB of rows."""

_TABLES_AT_ONCE = 1024  # 4 MiB of entries: what is in flight stays small and near the cache


def scan(
    memory: BulkMemory,
    format: PagingFormat,
    root: PhysAddr,
    start: int = 0,
    end: int = 1 << 64,
    *,
    nonpresent: bool = False,
    limit: int = LIMIT,
) -> NDArray[np.void]:
    """Every leaf mapping that overlaps [start, end), as MAPPING rows sorted by va.

    A large page that begins before `start` is there whole. Entries with reserved bits set and tables outside
    RAM map nothing. `nonpresent` adds the entries that are neither zero nor present, on the levels that may
    hold a leaf (swapped-out pages are kept there): pa and rights are 0, format.present() tells them apart.
    Raises CorruptGuest where a level has over `limit` entries to read: tables that lead to themselves do.
    """
    found = _Found()
    roots, origins = np.array([root], U64), np.zeros(1, np.uint32)
    for level, (vas, entries, granted, _) in _levels(memory, format, roots, origins, start, end, limit):
        for shape in level.shapes:
            if shape.leaf:
                chosen = _chosen(shape, entries)
                rights = granted[chosen] & _granted(shape, entries[chosen])
                leads_to = entries[chosen] & np.uint64(shape.address)
                found.add(vas[chosen], leads_to, level.span, entries[chosen], rights)
        if nonpresent and any(shape.leaf for shape in level.shapes):
            absent = ~format.present(entries)
            zero = np.zeros(np.count_nonzero(absent), U64)
            found.add(vas[absent], zero, level.span, entries[absent], zero.astype(np.uint8))
    return found.rows()


def survey(
    memory: BulkMemory,
    format: PagingFormat,
    roots: NDArray[np.uint64],
    origins: NDArray[np.uint32] | None = None,
    start: int = 0,
    known: NDArray[np.uint64] | None = None,
    limit: int = LIMIT,
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """All from `start` on below many roots at once: (LEAF rows in no order, TABLE rows by address).

    `origins` are what rows have for their `root`, by default the root's index. A table that many entries lead
    to is read once and has one row, for the first of its roots; those at the addresses `known`, in order, are
    left out. Raises as scan().
    """
    known = np.empty(0, U64) if known is None else known
    origins = np.arange(len(roots), dtype=np.uint32) if origins is None else origins
    leaves: list[NDArray[np.void]] = [np.empty(0, LEAF)]
    found = [np.zeros(len(roots), TABLE)]
    found[0]["pa"], found[0]["root"] = roots, origins
    depth = {id(level): place for place, level in enumerate(format.levels)}
    for level, part in _levels(memory, format, roots, origins, start, 1 << 64, limit, known):
        for shape in level.shapes:
            vas, entries, _, whose = part.at(_chosen(shape, part.entries))
            rows = np.empty(len(vas), LEAF if shape.leaf else TABLE)
            rows["va"], rows["pa"], rows["root"] = vas, entries & np.uint64(shape.address), whose
            if shape.leaf:
                rows["size"] = level.span
                leaves.append(rows)
            else:
                rows["level"] = depth[id(level)] + 1
                found.append(rows)
    tables = np.concatenate(found)
    pas, first = np.unique(tables["pa"], return_index=True)
    return np.concatenate(leaves), tables[first[~_among(pas, known)]]


class _Tables(NamedTuple):
    """Tables of one level, a place each in all arrays."""

    pas: NDArray[np.uint64]
    vas: NDArray[np.uint64]  # the first address that each translates
    rights: NDArray[np.uint8]  # that the entries above grant; nobody asks in a survey
    roots: NDArray[np.uint32]  # the index of the root that leads here

    def at(self, chosen: slice | NDArray[np.int64]) -> _Tables:
        return _Tables(self.pas[chosen], self.vas[chosen], self.rights[chosen], self.roots[chosen])


class _Entries(NamedTuple):
    """Entries of one level's tables that are not zero, a place each in all arrays."""

    vas: NDArray[np.uint64]
    entries: NDArray[np.uint64]
    rights: NDArray[np.uint8]  # of their table
    roots: NDArray[np.uint32]

    def at(self, chosen: slice | NDArray[np.bool_]) -> _Entries:
        return _Entries(self.vas[chosen], self.entries[chosen], self.rights[chosen], self.roots[chosen])

    def tables(self, shape: Shape, granted: bool) -> _Tables:
        """The tables that the entries of this shape lead to."""
        vas, entries, rights, roots = self.at(_chosen(shape, self.entries))
        rights = rights & _granted(shape, entries) if granted else rights
        return _Tables(entries & np.uint64(shape.address), vas, rights, roots)


def _levels(
    memory: BulkMemory,
    format: PagingFormat,
    roots: NDArray[np.uint64],
    origins: NDArray[np.uint32],
    start: int,
    end: int,
    limit: int,
    known: NDArray[np.uint64] | None = None,
) -> Iterator[tuple[Level, _Entries]]:
    """Every entry in [start, end) that is not zero, level by level; with `known` (survey) no table twice."""
    start, last = max(start, 0), min(end, 1 << 64) - 1
    if start > last:
        return
    whole = start == 0 and last == (1 << 64) - 1
    every = np.full(len(roots), Right.W | Right.U | Right.X, np.uint8)
    tables = _Tables(roots, np.zeros(len(roots), U64), every, origins)
    for level in format.levels:
        if len(tables.pas) * level.entries > limit:
            raise CorruptGuest(
                f"{len(tables.pas)} {level.name} tables below root {int(roots[0]):#x}, more than the limit "
                f"of {limit >> level.bits}: tables that lead to themselves, or not page tables at all"
            )
        below: list[_Tables] = []
        for first in range(0, len(tables.pas), _TABLES_AT_ONCE):
            part = _entries(memory, format, level, tables.at(slice(first, first + _TABLES_AT_ONCE)))
            if not whole:
                ends = part.vas + np.uint64(level.span - 1)
                part = part.at((part.vas <= np.uint64(last)) & (ends >= np.uint64(start)))
            yield level, part
            below += [part.tables(shape, known is None) for shape in level.shapes if not shape.leaf]
        if not below:
            return
        tables = _Tables(*(np.concatenate(column) for column in zip(*below, strict=True)))
        if known is not None:
            pas, places = np.unique(tables.pas, return_index=True)
            tables = tables.at(places[~_among(pas, known)])


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the values are among those known, which are in order."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[places] == values)


def translate(
    memory: BulkMemory, format: PagingFormat, root: PhysAddr, vas: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The physical address of each virtual one (0 where it does not translate), and which do."""
    pas, sizes = resolve(memory, format, root, vas)
    return pas, sizes != 0


def resolve(
    memory: BulkMemory, format: PagingFormat, root: PhysAddr, vas: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """As translate(), with the page size of each address in bytes: 0 where it does not translate."""
    pas, sizes = np.zeros(len(vas), U64), np.zeros(len(vas), U64)
    todo = np.flatnonzero(format.canonical_array(vas) == vas)
    tables = np.full(len(todo), root, U64)
    for level in format.levels:
        here = vas[todo]
        index = (here >> np.uint64(level.shift)) & np.uint64(level.entries - 1)
        # What is outside RAM reads as zero, which is not present in any format.
        entries = memory.gather(tables + index * np.uint64(format.entry_size), format.entry_type)[0].astype(
            U64
        )
        onward = np.zeros(len(todo), np.bool_)
        tables = np.zeros(len(todo), U64)
        for shape in level.shapes:
            chosen = _chosen(shape, entries)
            target = entries[chosen] & np.uint64(shape.address)
            if shape.leaf:
                pas[todo[chosen]] = target | here[chosen] & np.uint64(level.span - 1)
                sizes[todo[chosen]] = level.span
            else:
                onward[chosen], tables[chosen] = True, target
        if not onward.all():
            todo, tables = todo[onward], tables[onward]
    return pas, sizes


def _entries(memory: BulkMemory, format: PagingFormat, level: Level, tables: _Tables) -> _Entries:
    """The entries of these tables that are not zero."""
    entries = memory.gather(tables.pas, format.entry_type, level.entries)[0].reshape(-1)
    used = np.flatnonzero(entries)
    table = used >> level.bits
    index = (used & level.entries - 1).astype(U64)
    vas = tables.vas[table] + (index << np.uint64(level.shift))
    if level is format.levels[0]:
        vas = format.canonical_array(vas)
    return _Entries(vas, entries[used].astype(U64, copy=False), tables.rights[table], tables.roots[table])


def _chosen(shape: Shape, entries: NDArray[np.uint64]) -> NDArray[np.bool_] | slice:
    """The entries of this shape without reserved bits; where all are, a slice, which indexes for free."""
    mask, value = shape.test
    chosen: NDArray[np.bool_] = (entries & np.uint64(mask | shape.reserved)) == np.uint64(value)
    return slice(None) if chosen.all() else chosen


def _granted(shape: Shape, entries: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The Right bits that each entry grants."""
    granted = np.zeros(len(entries), np.uint8)
    for (mask, value), right in (
        (shape.writable, Right.W),
        (shape.user, Right.U),
        (shape.executable, Right.X),
    ):
        granted |= ((entries & np.uint64(mask)) == np.uint64(value)).view(np.uint8) * np.uint8(right)
    return granted


class _Found:
    """The leaf mappings found so far, as columns."""

    def __init__(self) -> None:
        self._parts: list[
            tuple[NDArray[np.uint64], NDArray[np.uint64], int, NDArray[np.uint64], NDArray[np.uint8]]
        ] = []

    def add(
        self,
        vas: NDArray[np.uint64],
        pas: NDArray[np.uint64],
        size: int,
        entries: NDArray[np.uint64],
        rights: NDArray[np.uint8],
    ) -> None:
        """Take in some mappings of one size."""
        if len(vas):
            self._parts.append((vas, pas, size, entries, rights))

    def rows(self) -> NDArray[np.void]:
        """All of them, sorted by va."""
        rows = np.zeros(sum(len(part[0]) for part in self._parts), MAPPING)
        first = 0
        for vas, pas, size, entries, rights in self._parts:
            part = rows[first : first + len(vas)]
            part["va"], part["pa"], part["size"], part["entry"], part["rights"] = (
                vas,
                pas,
                size,
                entries,
                rights,
            )
            first += len(vas)
        vas = rows["va"]
        if (vas[1:] < vas[:-1]).any():  # levels, or shapes of a level, interleave
            rows = rows[np.argsort(vas, kind="stable")]
        return rows
