"""Answers that are kept with all that they were read from: asked again, what was read is compared.

Structures that seldom change (the resource tree, the list of slab caches, modules, page tables) take a walk
from pointer to pointer. Whether one is still as it was takes a single bulk read, and then the answer is too.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace, Pieces, StillSpace, Stretches, Walk, survey
from inspector.memory import BulkMemory
from inspector.symbols import Kernel
from inspector.units import PhysAddr, VirtAddr

_U64 = np.dtype(np.uint64)
_IN_WORD = np.uint64(7)
_REMEMBERED = {name for name, value in vars(Kernel).items() if isinstance(value, cached_property)}
_MAX_BYTES = 1 << 19  # that one answer read: from there on comparing is no longer cheap
_MAX_MAPPED = 64  # questions of one answer to the page tables
_MAX_TABLES = 2048  # page tables of one answer: 8 MiB

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Mapped:
    """What an address space said of where something is mapped."""

    method: str
    arguments: tuple[Any, ...]
    answer: Any

    def holds(self, space: AddressSpace) -> bool:
        now = getattr(space, self.method)(*self.arguments)
        if not isinstance(now, tuple):
            return bool(now == self.answer)
        return all(np.array_equal(one, other) for one, other in zip(now, self.answer, strict=True))


@dataclass(slots=True)
class _Known:
    arguments: tuple[Any, ...]
    words: NDArray[np.uint64]  # where all was read, in words
    values: NDArray[np.uint64]  # what was there
    mapped: tuple[_Mapped, ...]
    answer: Any
    places: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, _U64))  # physically
    stretches: Stretches | None = None  # by which they lie there, where page tables were read once for all

    def holds(self, space: AddressSpace) -> bool:
        if not isinstance(space, StillSpace):
            return self._are(*space.gather(self.words, _U64)) and self._maps(space)
        if space.stretches is not self.stretches:
            places, room = space.locate(self.words)
            if not (room.all() and self._maps(space)):
                return False
            self.places, self.stretches = places, space.stretches
        return self._are(*space.memory.gather(self.places, _U64))

    def _are(self, values: NDArray[np.uint64], ok: NDArray[np.bool_]) -> bool:
        return bool(ok.all()) and np.array_equal(values, self.values)

    def _maps(self, space: AddressSpace) -> bool:
        return all(each.holds(space) for each in self.mapped)


def recall(kernel: Kernel, question: Callable[..., Answer], *arguments: Any) -> Answer:
    """question(kernel, *arguments), or the last answer to it where every byte that it read is as it was.

    The question must read through `kernel.space` alone, and nobody may change its answer. The arguments are
    compared with ==.
    """
    known: _Known | None = kernel.recalled.get(question)
    if (
        known is not None
        and known.arguments == arguments
        and (kernel.confirmed.get(question) is known or known.holds(kernel.space))
    ):
        answer: Answer = known.answer
        return answer
    if isinstance(kernel.space, _ListeningSpace):  # part of another question, which is kept whole
        return question(kernel, *arguments)
    listening = copy(kernel)
    for name in _REMEMBERED & vars(listening).keys():  # what that was read from counts too
        del vars(listening)[name]
    listening.confirmed = {}
    listening.space = space = _ListeningSpace(kernel.space)
    answer = question(listening, *arguments)
    heard = space.heard()
    if heard is None:
        kernel.recalled.pop(question, None)
    else:
        kernel.recalled[question] = _Known(arguments, *heard, answer)
    return answer


def confirm(kernel: Kernel, space: StillSpace) -> None:
    """Compare all that is kept at once, for a Kernel that is asked about one moment."""
    kernel.space = space
    kept = {
        question: known
        for question, known in list(kernel.recalled.items())  # others may ask at the same time
        if isinstance(known, _Known) and known.stretches is space.stretches
    }
    if not kept:
        return
    values, ok = kernel.memory.gather(np.concatenate([known.places for known in kept.values()]), _U64)
    wrong = ~ok | (values != np.concatenate([known.values for known in kept.values()]))
    firsts = np.cumsum([0, *(len(known.places) for known in kept.values())])[:-1]
    changed = np.logical_or.reduceat(wrong, firsts)
    kernel.confirmed = {
        question: known
        for (question, known), other in zip(kept.items(), changed.tolist(), strict=True)
        if not other
    }


class _ListeningSpace(AddressSpace):
    """Reads through another space, and notes where and what."""

    def __init__(self, space: AddressSpace) -> None:
        super().__init__(space.memory, space.format, space.root)
        self._space = space
        # By the number of bytes read at each address: the addresses, and all bytes.
        self._notes: dict[int, list[tuple[NDArray[np.uint64], bytes]]] = {}
        self._mapped: list[_Mapped] = []
        self._total = 0
        self._whole = True

    def heard(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], tuple[_Mapped, ...]] | None:
        """Every aligned word that a byte was read of, and its value; None where that is not all there was.

        Nor where a byte is another one by now: a guest that runs may write while it is read.
        """
        if not self._whole or not self._notes:
            return None
        notes = [
            (
                np.concatenate([vas for vas, _ in read]),
                size,
                np.frombuffer(b"".join(data for _, data in read), np.uint8),
            )
            for size, read in self._notes.items()
        ]
        words = np.unique(np.concatenate([_words(vas, size) for vas, size, _ in notes]))
        values, ok = self._space.gather(words, _U64)
        raw = values.view(np.uint8)
        for vas, size, data in notes:
            # All words of what was read at one address follow one another.
            first = np.searchsorted(words, vas & ~_IN_WORD) * 8 + (vas & _IN_WORD).astype(np.int64)
            if not np.array_equal(raw[np.add.outer(first, np.arange(size)).reshape(-1)], data):
                return None
        return (words, values, tuple(self._mapped)) if ok.all() else None

    def read(self, va: VirtAddr, size: int) -> bytes:
        data = self._space.read(va, size)
        self._note(np.array([va], _U64), size, data)
        return data

    def array(self, va: VirtAddr, size: int) -> NDArray[np.uint8]:
        data = self._space.array(va, size)
        self._note(np.array([va], _U64), size, data)
        return data

    def gather(
        self, vas: NDArray[np.uint64], dtype: np.dtype[Any], count: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values, ok = self._space.gather(vas, dtype, count)
        self._note(np.array(vas, _U64), np.dtype(dtype).itemsize * count, values)
        self._whole &= bool(ok.all())
        return values, ok

    def _note(self, vas: NDArray[np.uint64], size: int, data: bytes | NDArray[Any]) -> None:
        self._total += len(vas) * size
        self._whole &= self._total <= _MAX_BYTES
        if self._whole and len(vas) and size:
            found = data if isinstance(data, bytes) else data.tobytes()
            self._notes.setdefault(size, []).append((vas, found))

    # Where something lies may change without a byte of it.

    def translate(self, va: VirtAddr) -> PhysAddr | None:
        return self._note_mapped(self._space.translate(va), "translate", va)

    def locate(self, vas: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return self._note_mapped(self._space.locate(vas), "locate", vas.copy())

    def overlaps(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Pieces:
        return self._note_mapped(self._space.overlaps(starts, ends), "overlaps", starts.copy(), ends.copy())

    def _note_mapped(self, answer: Answer, method: str, *arguments: Any) -> Answer:
        self._whole &= len(self._mapped) < _MAX_MAPPED
        if self._whole:
            self._mapped.append(_Mapped(method, arguments, answer))
        return answer

    def walk(self, va: VirtAddr) -> Walk:
        self._whole = False
        return self._space.walk(va)

    def scan(self, *args: Any, **kwargs: Any) -> NDArray[np.void]:
        self._whole = False
        return self._space.scan(*args, **kwargs)


def _words(vas: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """The aligned words that hold `size` bytes at each address."""
    first, last = vas & ~_IN_WORD, vas + np.uint64(size - 1) & ~_IN_WORD
    every = np.add.outer(first, np.arange(0, size + 7, 8, dtype=np.uint64))
    found: NDArray[np.uint64] = every[every <= last[:, None]]
    return found


class Surveyed:
    """What arch.survey() found, with all the entries that it read."""

    def __init__(self, kernel: Kernel, arguments: tuple[Any, ...]) -> None:
        self._arguments = arguments
        memory = _ListeningMemory(kernel.memory)
        self.leaves, self.tables = survey(memory, kernel.space.format, *arguments)
        self._read = memory.heard() if len(self.tables) <= _MAX_TABLES else None

    @cached_property
    def stretches(self) -> Stretches:
        """All leaves, joined."""
        return Stretches(self.leaves)

    def holds(self, kernel: Kernel, arguments: tuple[Any, ...]) -> bool:
        """Whether another survey with these arguments would find the same."""
        return (
            self._read is not None
            and all(np.array_equal(one, other) for one, other in zip(arguments, self._arguments, strict=True))
            and all(np.array_equal(kernel.memory.gather(*where)[0], entries) for where, entries in self._read)
        )


class _ListeningMemory:
    """Reads through another memory, and notes where and what."""

    def __init__(self, memory: BulkMemory) -> None:
        self._memory = memory
        # By what was asked for: where, and what was there.
        self._notes: dict[tuple[Any, int], list[tuple[NDArray[np.uint64], NDArray[Any]]]] = {}

    def gather(
        self, addresses: NDArray[np.uint64], dtype: np.dtype[Any], count: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As PhysicalMemory's."""
        found = self._memory.gather(addresses, dtype, count)
        self._notes.setdefault((dtype, count), []).append((addresses, found[0]))
        return found

    def heard(self) -> list[tuple[tuple[NDArray[np.uint64], np.dtype[Any], int], NDArray[Any]]]:
        """The arguments of a few gathers that would read all this again, and what they would find."""
        return [
            (
                (np.concatenate([at for at, _ in notes]), *kind),
                np.concatenate([values for _, values in notes]),
            )
            for kind, notes in self._notes.items()
        ]


def recall_survey(
    kernel: Kernel,
    name: str,
    roots: NDArray[np.uint64],
    origins: NDArray[np.uint32],
    start: int = 0,
    known: NDArray[np.uint64] | None = None,
) -> Surveyed:
    """arch.survey() below many roots, or the last one of this `name` where every page table is as it was."""
    arguments = (roots, origins, start, known)
    last: Surveyed | None = kernel.recalled.get(name)
    if last is None or not last.holds(kernel, arguments):
        last = kernel.recalled[name] = Surveyed(kernel, arguments)
    return last
