"""The profile: a kernel's names and types, kept by build id so that the next attach need not read them again.

A file is a magic with the format's number, the length of a JSON header, the CRC-32 of that length and of all
that follows, the header (each array's place and length) and the arrays. Link-time addresses make it hold for
any KASLR base. What cannot be read or does not check is built anew; what cannot be written is left.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.symbols.table import SymbolArrays

_MAGIC = b"kmi profile 2\n"
_PREFIX = struct.Struct(f"<{len(_MAGIC)}sII")
_ALIGN = 64
_ARRAYS = {
    "addresses": "<u8",
    "kinds": "<u1",
    "bounds": "<u4",
    "names": "<u1",
    "by_name": "<u4",
    "btf": "<u1",
    "btf_starts": "<u4",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """What is kept: symbols, the BTF blob, and where in it each type begins."""

    symbols: SymbolArrays
    btf: NDArray[np.uint8]
    btf_starts: NDArray[np.uint32]


def profile_path(cache: Path, build_id: str) -> Path:
    """The file of one kernel below a cache folder."""
    return cache / "profiles" / f"{build_id}.profile"


def load(path: Path) -> Profile | None:
    """The profile in a file; None where it is missing, damaged or of another version."""
    with suppress(OSError, ValueError, KeyError, TypeError, struct.error):
        return _decode(path.read_bytes())
    return None


def save(path: Path, profile: Profile) -> bool:
    """Write it whole or not at all; False where the disk does not take it, which is no error."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".profile-")
        with os.fdopen(handle, "wb") as file:
            file.write(_encode(profile))
        Path(temporary).replace(path)
    except OSError:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()
        return False
    return True


def _encode(profile: Profile) -> bytes:
    symbols = profile.symbols
    arrays: dict[str, NDArray[Any]] = {
        "addresses": symbols.addresses,
        "kinds": symbols.kinds,
        "bounds": symbols.bounds,
        "names": symbols.names,
        "by_name": symbols.by_name,
        "btf": profile.btf,
        "btf_starts": profile.btf_starts,
    }
    parts: list[bytes] = []
    places: dict[str, tuple[int, int]] = {}
    offset = 0
    for name, dtype in _ARRAYS.items():
        raw = np.ascontiguousarray(arrays[name], dtype).tobytes()
        raw += bytes(-len(raw) % _ALIGN)
        places[name] = (offset, len(arrays[name]))
        parts.append(raw)
        offset += len(raw)
    header = json.dumps({"floor": symbols.floor, "arrays": places}).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGN)
    payload = b"".join(parts)
    return _PREFIX.pack(_MAGIC, len(header), _checksum(len(header), header + payload)) + header + payload


def _checksum(length: int, rest: bytes | memoryview) -> int:
    return zlib.crc32(rest, zlib.crc32(length.to_bytes(4, "little")))


def _decode(data: bytes) -> Profile:
    magic, length, checksum = _PREFIX.unpack_from(data)
    view = memoryview(data)
    if magic != _MAGIC or _checksum(length, view[_PREFIX.size :]) != checksum:
        raise ValueError("not a profile of this version, or damaged")
    header = json.loads(bytes(view[_PREFIX.size : _PREFIX.size + length]))
    payload = view[_PREFIX.size + length :]
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in _ARRAYS.items():
        offset, count = header["arrays"][name]
        arrays[name] = np.frombuffer(payload, dtype, count, offset)
    btf, starts = arrays.pop("btf"), arrays.pop("btf_starts")
    return Profile(SymbolArrays(**arrays, floor=int(header["floor"])), btf, starts)
