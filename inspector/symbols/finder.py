"""Kallsyms' tables by their shape, for kernels whose VMCOREINFO does not name them (before 6.0).

Source: write_src() of scripts/kallsyms.c. From 4.20 to 6.1 the tables lie in .rodata in this order, each
aligned to a long: offsets and relative_base (or addresses), num_syms, names, markers (where each 256th name
begins), token_table, token_index. The index has the plainest shape; from it the others are found backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace
from inspector.errors import CorruptGuest, OutsideRam
from inspector.symbols.kallsyms import KallsymsTables
from inspector.units import PhysAddr, VirtAddr

_TOKENS = 256
_MAX_TOKEN = 64  # bytes; a token is a piece of a symbol's name
_NAMES_A_MARKER = 256
_MAX_MARKERS = 1 << 14
_MAX_SEARCHED = 256 << 20  # bytes of the image; a stock kernel has 40 to 60 MiB


def find_tables(space: AddressSpace, start: VirtAddr, end: VirtAddr) -> Iterator[KallsymsTables]:
    """Every set of tables that fits together in the kernel image [start, end). Raises CorruptGuest."""
    align = space.format.pointer_size
    for base, data in _runs(space, start, end):
        for index in _token_indices(data, align):
            for tables in _before(data, index, align):
                yield _at(base, tables)


def _runs(
    space: AddressSpace, start: VirtAddr, end: VirtAddr
) -> Iterator[tuple[VirtAddr, NDArray[np.uint8]]]:
    """What of the image lies together in virtual and in physical memory."""
    rows = space.scan(start, end)
    left = _MAX_SEARCHED
    va, pa, size = (rows[name].astype(np.uint64) for name in ("va", "pa", "size"))
    apart = (va[1:] != va[:-1] + size[:-1]) | (pa[1:] != pa[:-1] + size[:-1])
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(rows)]
    for first, last in pairwise(edges):
        length = min(int(size[first:last].sum()), left)
        left -= length
        if length:
            try:
                yield VirtAddr(int(va[first])), space.memory.array(PhysAddr(int(pa[first])), length)
            except OutsideRam as error:
                raise CorruptGuest(f"the kernel image is not in RAM: {error}") from error


def _token_indices(data: NDArray[np.uint8], align: int) -> list[int]:
    """Where 256 rising 16-bit numbers begin with 0, no step wider than a token."""
    step = align // 2
    words = data[: len(data) // align * align].view("<u2")
    columns = words.reshape(-1, step)
    # Two columns of all the image; the whole pattern only where these fit.
    likely = (columns[:, 0] == 0) & (columns[:, 1] > 1) & (columns[:, 1] <= _MAX_TOKEN)
    found = []
    for place in (np.flatnonzero(likely) * step).tolist():
        steps = np.diff(words[place : place + _TOKENS].astype(np.int64))
        if len(steps) == _TOKENS - 1 and steps.min() > 1 and steps.max() <= _MAX_TOKEN:
            found.append(place * 2)
    return found


def _before(data: NDArray[np.uint8], index: int, align: int) -> Iterator[dict[str, int]]:
    """The tables that lie before a token index, as offsets into `data`."""
    token_table = _token_table(data, index, align)
    if token_table is None:
        return
    markers = _markers(data, token_table, align)
    if not len(markers):
        return
    markers_at = token_table - _aligned(4 * len(markers), align)
    names = _names(data, markers, markers_at, align)
    if names is None:
        return
    num_syms = names - align
    count = _u32(data, num_syms)
    base = num_syms - align
    yield {
        "num_syms": num_syms,
        "names": names,
        "token_table": token_table,
        "token_index": index,
        # Either these two or the third is there (CONFIG_KALLSYMS_BASE_RELATIVE): the reader tries both.
        "relative_base": base,
        "offsets": base - _aligned(4 * count, align),
        "addresses": num_syms - count * align,
    }


def _token_table(data: NDArray[np.uint8], index: int, align: int) -> int | None:
    """The table that ends, but for padding, where the index begins, and begins with its first token."""
    ends = data[index : index + 2 * _TOKENS].view("<u2").astype(np.int64)
    head = data[max(index - 2 * _MAX_TOKEN, 0) : index].tobytes()
    text = head.rstrip(b"\0")
    last = len(text) - (text.rfind(b"\0") + 1)
    start = index - len(head) + len(text) - last - int(ends[-1])
    padding = len(head) - len(text) - 1  # one NUL ends the last token
    if start < 0 or start % align or not 0 <= padding < align:
        return None
    return start if not data[start + ends[1:] - 1].any() else None


def _markers(data: NDArray[np.uint8], end: int, align: int) -> NDArray[np.uint32]:
    """The rising numbers, 0 the first, that end at `end`; empty where there are none."""
    before = data[max(end - 4 * _MAX_MARKERS, end % 4) : end].view("<u4")
    # As many as fill their alignment, or one fewer and a zero.
    for padded in range(align // 4):
        numbers = before[: len(before) - padded]
        zeros = np.flatnonzero(numbers == 0)
        if before[len(numbers) :].any() or not len(zeros):
            continue
        found = numbers[zeros[-1] :]
        whole = _aligned(4 * len(found), align) == 4 * (len(found) + padded)
        if whole and (np.diff(found.astype(np.int64)) > 0).all():
            return found
    return before[:0]


def _names(data: NDArray[np.uint8], markers: NDArray[np.uint32], end: int, align: int) -> int | None:
    """Where names begin that end, but for padding, at `end`, have these markers and their number before."""
    last = int(markers[-1])
    widest = last + _NAMES_A_MARKER * 256 + align
    latest = (end - last - 1) // align * align
    for start in range(latest, max(end - widest, align), -align):
        count = _u32(data, start - align)
        if -(-count // _NAMES_A_MARKER) != len(markers) or data[start - align + 4 : start].any():
            continue
        rest = count - (len(markers) - 1) * _NAMES_A_MARKER
        stop = _skip(data, start + last, rest, end)
        if _aligned(stop - start, align) != end - start:
            continue
        if len(markers) == 1 or _skip(data, start, _NAMES_A_MARKER, end) == start + int(markers[1]):
            return start
    return None


def _skip(data: NDArray[np.uint8], position: int, count: int, end: int) -> int:
    """The position behind `count` names, or one past `end` where they do not end before."""
    for _ in range(count):
        if position >= end:
            return end + 1
        position += int(data[position]) + 1
    return position


def _aligned(size: int, align: int) -> int:
    return -(-size // align) * align


def _u32(data: NDArray[np.uint8], at: int) -> int:
    return int.from_bytes(data[at : at + 4].tobytes(), "little")


def _at(base: VirtAddr, offsets: dict[str, int]) -> KallsymsTables:
    return KallsymsTables(**{name: VirtAddr(base + at) for name, at in offsets.items() if at >= 0})
