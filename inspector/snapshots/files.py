"""A snapshot in a file: a zip of numpy columns (what np.load() reads) beside one JSON text for all else.

    version            u4: 2
    meta               u1: JSON; a Snapshot's members, its objects as lists of their members
    frames.NAME        the columns of kernel.owners.FRAME, but for `pfn`: a row's number
    mappings.NAME      the columns of kernel.rmap.ROW
    forgotten          u8: PFNs

Nothing in it is run or trusted: columns have the types that they must have and as many bytes as the file
has, texts are made printable, indices lie inside.
"""

from __future__ import annotations

import json
import types
import zipfile
import zlib
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadSnapshot, SetupError
from inspector.kernel.frames import NO_MIGRATETYPE, FrameState
from inspector.kernel.owners import FRAME, Owner
from inspector.kernel.rmap import ROW
from inspector.units import printable

if TYPE_CHECKING:
    from inspector.snapshots.snapshot import Snapshot

VERSION = 2
_TABLES = {"frames": FRAME, "mappings": ROW}
_LISTS = {"forgotten": np.dtype(np.uint64)}
_LEFT_OUT = {"frames": ("pfn",)}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal snapshots are equal files
_LIMIT = 1 << 64
_BROKEN = (
    zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, EOFError, RuntimeError,
    NotImplementedError, MemoryError, OverflowError,
)  # fmt: skip


def write(snapshot: Snapshot, path: str | PathLike[str]) -> None:
    """Write a snapshot. Raises SetupError."""
    meta = {name: _plain(getattr(snapshot, name)) for name in _members(type(snapshot))}
    columns = {
        "version": np.array([VERSION], "<u4"),
        "meta": np.frombuffer(json.dumps(meta, separators=(",", ":")).encode(), np.uint8),
    }
    for table in _TABLES:
        rows = getattr(snapshot, table)
        columns |= {f"{table}.{name}": rows[name] for name in _names(table)}
    columns |= {name: getattr(snapshot, name) for name in _LISTS}
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
            for name, column in columns.items():
                entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(column), (1, 0), False)
    except OSError as error:
        raise SetupError(f"cannot write {fspath(path)}: {error.strerror}") from error


def read(cls: type[Snapshot], path: str | PathLike[str]) -> Snapshot:
    """Read a snapshot. Raises BadSnapshot, in one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            (version,) = _column(archive, "version", np.dtype("<u4")).tolist()
            if version != VERSION:
                raise BadSnapshot(f"{fspath(path)} is of version {version}; this kmi reads version {VERSION}")
            meta = json.loads(_column(archive, "meta", np.dtype(np.uint8)).tobytes())
            parts: dict[str, Any] = {name: _table(archive, name) for name in _TABLES}
            parts |= {name: _column(archive, name, dtype) for name, dtype in _LISTS.items()}
        values = {name: _made(kind, meta[name]) for name, kind in _members(cls).items()}
        found = cls(**values, **parts)
        _check(found)
    except OSError as error:
        raise BadSnapshot(f"cannot read {fspath(path)}: {error.strerror or error}") from error
    except RecursionError as error:
        raise BadSnapshot(f"{fspath(path)} is no snapshot: it is nested too deep") from error
    except _BROKEN as error:
        why = printable(" ".join(str(error).split()))[:200] or type(error).__name__
        raise BadSnapshot(f"{fspath(path)} is no snapshot, or is damaged: {why}") from error
    return found


def _names(table: str) -> list[str]:
    return [name for name in _TABLES[table].names or () if name not in _LEFT_OUT.get(table, ())]


def _members(cls: type[Any]) -> dict[str, Any]:
    """A snapshot's members that are not arrays, and their types."""
    hints = get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls) if each.name not in {*_TABLES, *_LISTS}}


def _table(archive: zipfile.ZipFile, table: str) -> NDArray[np.void]:
    dtype = _TABLES[table]
    columns = {name: _column(archive, f"{table}.{name}", dtype[name]) for name in _names(table)}
    count = len(next(iter(columns.values())))
    if any(len(column) != count for column in columns.values()):
        raise ValueError(f"the columns of {table} differ in length")
    rows = np.empty(count, dtype)
    for name, column in columns.items():
        rows[name] = column
    if "pfn" in _LEFT_OUT.get(table, ()):
        rows["pfn"] = np.arange(count)
    return rows


def _column(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """One array: of this type, and with as many bytes as it says that it has."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} is of another version of the npy format")
        shape, _, found = np.lib.format.read_array_header_1_0(member)
        size = info.file_size - member.tell()
        if found != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != size:
            raise ValueError(f"{name} is not an array of {size // dtype.itemsize} {dtype}")
        return np.frombuffer(member.read(), dtype)


def _check(snapshot: Snapshot) -> None:
    """What indexes something must lie inside it."""
    frames, mappings = snapshot.frames, snapshot.mappings
    owners, kinds = mappings["owner"], frames["migratetype"]
    problems = {
        "the page size is no power of two": snapshot.page_size <= 0
        or snapshot.page_size & (snapshot.page_size - 1),
        "a frame has an owner that there is not": (frames["owner"] >= len(Owner)).any(),
        "a frame has a label that there is not": (frames["detail"] >= len(snapshot.labels)).any(),
        "a frame has a state that there is not": (frames["state"] >= len(FrameState)).any(),
        "a frame has a migratetype that there is not": (
            (kinds >= len(snapshot.migratetypes)) & (kinds != NO_MIGRATETYPE)
        ).any(),
        "a mapping is of a task that there is not": (owners >= len(snapshot.tasks)).any(),
        "the mappings are in disorder": (owners[1:] < owners[:-1]).any(),
        "a frame is forgotten that there is not": (snapshot.forgotten >= len(frames)).any(),
    }
    for what, wrong in problems.items():
        if wrong:
            raise ValueError(what)


def _plain(value: Any) -> Any:
    """What JSON can have."""
    if is_dataclass(value):
        return [_plain(getattr(value, each.name)) for each in fields(value)]
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return [[_plain(key), _plain(each)] for key, each in value.items()]
    return value.item() if isinstance(value, np.generic) else value


def _made(kind: Any, value: Any) -> Any:
    """The value of a type out of JSON. Raises ValueError where it is of another."""
    named, kind = kind, getattr(kind, "__supertype__", kind)  # an address is a NewType
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (given,) = (each for each in inside if each is not type(None))
        return None if value is None else _made(given, value)
    if origin in (tuple, dict) or is_dataclass(kind):
        if not isinstance(value, list):
            raise ValueError("a list is missing")
        if origin is tuple:
            return tuple(_made(inside[0], each) for each in value)
        if origin is dict:
            return {_made(inside[0], key): _made(inside[1], each) for key, each in value}
        hints = get_type_hints(kind)
        pairs = zip(fields(kind), value, strict=True)
        return kind(**{each.name: _made(hints[each.name], given) for each, given in pairs})
    if kind is float and type(value) is int:
        return float(value)
    low = 0 if named is not kind else -_LIMIT
    if type(value) is not kind or (kind is int and not low <= value < _LIMIT):
        raise ValueError(f"{value!r:.40} is not of type {named.__name__}")
    return printable(value) if kind is str else value
