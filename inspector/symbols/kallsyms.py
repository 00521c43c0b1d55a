"""The kernel's own symbol table, kallsyms, read out of guest memory.

Source: kernel/kallsyms.c, scripts/kallsyms.c. What the readers must know of its history:
- names: a length byte, then that many indices into 256 tokens; the first letter is the symbol's kind.
  A length over 127 takes two bytes since 6.1 (commit 73bbb94466fd).
- 4.6 (commit 2213e9a66bb8): 32-bit offsets from kallsyms_relative_base; with per-CPU symbols absolute,
  offsets from zero up are absolute values and negative ones count down from the base less one.
- 6.0 (commit 5fd8fea935a1): VMCOREINFO names the tables; their order, changed in 6.2 and 6.4, is no matter.
- 6.11 (commit 64e166099b69): whole addresses are gone.  6.15 (commit 01157ddc58dc): absolute per-CPU is gone.
- 7.0 (commit a081b5789255): no base; an offset counts from its own place in the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.arch import AddressSpace
from inspector.errors import BadFormat, NoSuchSymbol
from inspector.symbols.table import SymbolArrays
from inspector.symbols.vmcoreinfo import Vmcoreinfo
from inspector.units import VirtAddr

_MAX_SYMBOLS = 1 << 22  # a kernel with everything built in has about 400,000
_MAX_NAME = 512  # KSYM_NAME_LEN since 6.1 (commit b8a94bfb3395)
_MAX_IMAGE = 1 << 30  # bytes; what is further below _stext is no place in the kernel
_MAX_TEXT = 128 << 20  # bytes of all names; a stock kernel has 4 MiB
_TOKENS = 256


@dataclass(frozen=True, slots=True)
class KallsymsTables:
    """Where the tables lie; a kernel has either 32-bit `offsets` or whole `addresses`."""

    num_syms: VirtAddr
    names: VirtAddr
    token_table: VirtAddr
    token_index: VirtAddr
    offsets: VirtAddr | None = None
    relative_base: VirtAddr | None = None
    addresses: VirtAddr | None = None

    @classmethod
    def from_vmcoreinfo(cls, info: Vmcoreinfo) -> KallsymsTables:
        """From the SYMBOL(kallsyms_*) lines of 6.0 and later. Raises NoSuchSymbol."""

        def optional(name: str) -> VirtAddr | None:
            try:
                return info.symbol(name)
            except NoSuchSymbol:
                return None

        return cls(
            info.symbol("kallsyms_num_syms"),
            info.symbol("kallsyms_names"),
            info.symbol("kallsyms_token_table"),
            info.symbol("kallsyms_token_index"),
            optional("kallsyms_offsets"),
            optional("kallsyms_relative_base"),
            optional("kallsyms_addresses"),
        )


def read_kallsyms(
    space: AddressSpace, tables: KallsymsTables, known: tuple[str, VirtAddr], kaslr_offset: int
) -> SymbolArrays:
    """The whole table, with link-time addresses.

    `known` is a symbol whose running address is certain (`_stext`): the way of holding addresses that gives
    it is the right one. Raises BadFormat where none does or a table is corrupt; PageFault, OutsideRam.
    """
    count = space.u32(tables.num_syms)
    if not 0 < count <= _MAX_SYMBOLS:
        raise BadFormat(f"kallsyms is corrupt: it claims {count} symbols")
    names, kinds = _names(space, tables, count)
    for addresses in _addresses(space, tables, count):
        rows = np.flatnonzero(addresses == np.uint64(known[1])).tolist()
        if any(names[row] == known[0].encode() for row in rows):
            moved = addresses >= np.uint64(max(known[1] - _MAX_IMAGE, 0))  # the others are absolute
            floor = int(addresses[moved].min()) - kaslr_offset
            addresses[moved] -= np.uint64(kaslr_offset)
            return SymbolArrays.build(names, kinds, addresses, max(floor, 0))
    raise BadFormat(f"kallsyms: no known layout puts {known[0]} at {known[1]:#x}, where VMCOREINFO has it")


def _addresses(space: AddressSpace, tables: KallsymsTables, count: int) -> Iterator[NDArray[np.uint64]]:
    """What each way of holding addresses makes of the table, newest first."""
    size = space.format.pointer_size
    mask = np.uint64((1 << 8 * size) - 1)
    if tables.offsets is not None:
        raw = space.array(tables.offsets, count * 4).view("<i4")
        signed = raw.astype(np.int64).view(np.uint64)
        unsigned = raw.view("<u4").astype(np.uint64)
        if tables.relative_base is None:
            places = np.uint64(tables.offsets) + np.arange(count, dtype=np.uint64) * np.uint64(4)
            yield (places + signed) & mask
            yield unsigned  # 32-bit kernels that do not move
        else:
            base = np.uint64(space.pointer(tables.relative_base))
            yield (base + unsigned) & mask
            yield np.where(raw >= 0, signed, (base - np.uint64(1) - signed) & mask)
    if tables.addresses is not None:
        yield space.array(tables.addresses, count * size).view(f"<u{size}").astype(np.uint64)


def _names(space: AddressSpace, tables: KallsymsTables, count: int) -> tuple[list[bytes], NDArray[np.uint8]]:
    """All names, expanded at once: every token of every name is a slice of the token table."""
    packed, is_length, starts = _split(space, tables, count)
    token_text, token_start, token_length = _tokens(space, tables)
    tokens = packed[~is_length]
    lengths = token_length[tokens]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    if total > min(count * _MAX_NAME, _MAX_TEXT):
        raise BadFormat("kallsyms is corrupt: its names are too long")
    # A byte of the output comes from its token's start plus its distance from where the token begins.
    source = np.repeat(token_start[tokens] - (ends - lengths), lengths)
    text = token_text[source + np.arange(total)]
    first_token = starts - np.cumsum(is_length)[starts]  # bytes of lengths up to a name are not tokens
    name_start = np.concatenate(([0], ends))[first_token]
    if not (np.diff(name_start, append=total) > 0).all():
        raise BadFormat("kallsyms is corrupt: a symbol without a name")
    kinds = text[name_start].copy()
    text[name_start] = 0  # the kind's letter makes way for a separator
    names = text.tobytes().split(b"\0")[1:]
    if len(names) != count:
        raise BadFormat("kallsyms is corrupt: a name holds a NUL")
    return names, kinds


def _split(
    space: AddressSpace, tables: KallsymsTables, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]:
    """The packed names, which of their bytes are lengths, and where each name's first token is."""
    behind = [table for table in (tables.token_table, tables.offsets, tables.addresses) if table]
    limit = min((table - tables.names for table in behind if table > tables.names), default=0)
    if not 0 < limit <= count * (_MAX_NAME + 2):
        raise BadFormat("kallsyms is corrupt: its names lie apart from its other tables")
    data = space.read(tables.names, limit)
    starts: list[int] = []
    wide: list[int] = []
    position = 0
    try:
        for _ in range(count):
            length = data[position]
            position += 1
            if length & 0x80:
                wide.append(position)
                length = length & 0x7F | data[position] << 7
                position += 1
            if not length:
                raise BadFormat("kallsyms is corrupt: a symbol without a name")
            starts.append(position)
            position += length
    except IndexError:
        position = len(data) + 1
    if position > len(data):
        raise BadFormat("kallsyms is corrupt: its names run past their table")
    at = np.array(starts, np.int64)
    is_length = np.zeros(position + 1, np.bool_)
    is_length[at - 1] = True
    is_length[np.array(wide, np.int64) - 1] = True
    is_length[-1] = True
    return np.frombuffer(data, np.uint8, position), is_length[:-1], at


def _tokens(
    space: AddressSpace, tables: KallsymsTables
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The token table's bytes, and where each of the 256 tokens begins and how long it is."""
    index = space.array(tables.token_index, _TOKENS * 2).view("<u2").astype(np.int64)
    last = int(index[-1])
    if not (np.diff(index) > 0).all() or last > _TOKENS * 64:
        raise BadFormat("kallsyms is corrupt: its token index does not rise")
    final = space.read(VirtAddr(tables.token_table + last), 64).split(b"\0", 1)[0]
    text = space.array(tables.token_table, last + len(final))
    lengths = np.diff(index, append=last + len(final) + 1) - 1
    return np.array(text), index, lengths
