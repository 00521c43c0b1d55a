"""Symbols by name and by address, kept as a few flat arrays that a profile can map from a file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.errors import NoSuchSymbol
from inspector.units import VirtAddr

_PAST_THE_LAST = 4096  # bytes that the last symbol may have: it is _end, or what the linker puts near it


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol. `kind` is nm's letter for it: T text, D data, B bss, R read-only, A absolute, W weak.

    `module` is the loaded module that it belongs to; empty for the kernel's own.
    """

    name: str
    address: VirtAddr
    kind: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class SymbolArrays:
    """The table's substance. Rows are sorted by link-time address; the order of equal addresses is kept.

    A row's name is `names[bounds[i]:bounds[i + 1] - 1]`; a NUL ends each. `by_name` is the rows in the order
    of their names (as bytes). Addresses below `floor` are absolute: constants, and before 6.15 (commit
    01157ddc58dc) per-CPU offsets; KASLR does not move them.
    """

    addresses: NDArray[np.uint64]
    kinds: NDArray[np.uint8]
    bounds: NDArray[np.uint32]
    names: NDArray[np.uint8]
    by_name: NDArray[np.uint32]
    floor: int

    @classmethod
    def build(
        cls, names: Sequence[bytes], kinds: NDArray[np.uint8], addresses: NDArray[np.uint64], floor: int
    ) -> SymbolArrays:
        """Sort and index symbols as any source lists them."""
        if (addresses[1:] < addresses[:-1]).any():
            order = np.argsort(addresses, kind="stable")
            addresses, kinds = addresses[order], kinds[order]
            names = [names[row] for row in order.tolist()]
        blob = b"\0".join(names) + b"\0" if names else b""
        lengths = np.fromiter(map(len, names), np.int64, len(names)) + 1
        bounds = np.zeros(len(names) + 1, np.uint32)
        np.cumsum(lengths, out=bounds[1:])
        by_name = np.array(sorted(range(len(names)), key=names.__getitem__), np.uint32)
        return cls(addresses, kinds, bounds, np.frombuffer(blob, np.uint8), by_name, floor)


class SymbolTable:
    """All symbols of a kernel that runs `offset` bytes above where it was linked."""

    def __init__(self, arrays: SymbolArrays, offset: int = 0) -> None:
        self.arrays = arrays
        self.offset = offset
        self._names = arrays.names.data
        self._asked: dict[bytes, list[int]] = {}  # the readers ask for the same few names over and over

    @classmethod
    def of(cls, symbols: Iterable[Symbol], floor: int = 0, offset: int = 0) -> SymbolTable:
        """A table of a few symbols with link-time addresses."""
        rows = list(symbols)
        arrays = SymbolArrays.build(
            [row.name.encode() for row in rows],
            np.array([ord(row.kind) for row in rows], np.uint8),
            np.array([row.address for row in rows], np.uint64),
            floor,
        )
        return cls(arrays, offset)

    def __len__(self) -> int:
        return len(self.arrays.addresses)

    def __iter__(self) -> Iterator[Symbol]:
        """Every symbol, by rising link-time address."""
        return (self._symbol(row) for row in range(len(self)))

    def __contains__(self, name: str) -> bool:
        return self.has(name)

    def has(self, name: str) -> bool:
        """Whether there is a symbol of that name."""
        return bool(self._rows(name.encode()))

    def address(self, name: str) -> VirtAddr:
        """Its address, KASLR included; of several with that name, the lowest. Raises NoSuchSymbol."""
        rows = self._rows(name.encode())
        if not rows:
            raise NoSuchSymbol(self._missing(name))
        return self._address(rows[0])

    def all(self, name: str) -> list[Symbol]:
        """Every symbol of that name (static functions share names), by rising address; may be empty."""
        return [self._symbol(row) for row in self._rows(name.encode())]

    def lookup(self, address: VirtAddr) -> tuple[Symbol, int] | None:
        """The symbol that an address lies in or behind, and the bytes past it; None outside the kernel image.

        Of several at one place a global one (upper-case kind) wins, as it does for a reader of the source.
        """
        link = address - self.offset
        addresses = self.arrays.addresses
        if not len(self) or not self.arrays.floor <= link < int(addresses[-1]) + _PAST_THE_LAST:
            return None
        last = int(np.searchsorted(addresses, np.uint64(link), "right")) - 1
        if last < 0 or int(addresses[last]) < self.arrays.floor:
            return None
        first = int(np.searchsorted(addresses, addresses[last], "left"))
        kinds = self.arrays.kinds[first : last + 1]
        upper = np.flatnonzero(kinds < ord("a"))
        symbol = self._symbol(first + (int(upper[0]) if len(upper) else 0))
        return symbol, address - symbol.address

    def complete(self, prefix: str, limit: int = 20) -> list[str]:
        """Up to `limit` distinct names that begin with `prefix`, sorted."""
        wanted = prefix.encode()
        found: dict[str, None] = {}
        for position in range(self._bisect(wanted), len(self)):
            name = self._name(int(self.arrays.by_name[position]))
            if len(found) >= limit or not name.startswith(wanted):
                break
            found[name.decode(errors="replace")] = None
        return list(found)

    def _symbol(self, row: int) -> Symbol:
        name = self._name(row).decode(errors="replace")
        return Symbol(name, self._address(row), chr(self.arrays.kinds[row]))

    def _name(self, row: int) -> bytes:
        bounds = self.arrays.bounds
        return bytes(self._names[int(bounds[row]) : int(bounds[row + 1]) - 1])

    def _address(self, row: int) -> VirtAddr:
        link = int(self.arrays.addresses[row])
        return VirtAddr(link + self.offset if link >= self.arrays.floor else link)

    def _bisect(self, name: bytes) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._name(int(self.arrays.by_name[middle])) < name:
                low = middle + 1
            else:
                high = middle
        return low

    def _rows(self, name: bytes) -> list[int]:
        if (known := self._asked.get(name)) is not None:
            return known
        rows: list[int] = []
        for position in range(self._bisect(name), len(self)):
            row = int(self.arrays.by_name[position])
            if self._name(row) != name:
                break
            rows.append(row)
        return self._asked.setdefault(name, sorted(rows))

    def _missing(self, name: str) -> str:
        near = self.complete(name, 3)
        stem = max(len(name) * 2 // 3, 1)
        near = near or difflib.get_close_matches(name, self.complete(name[:stem], 500), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"the kernel has no symbol {name!r}{hint}"
