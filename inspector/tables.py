"""A guest's memory as Arrow tables: for Parquet files, SQL (DuckDB, Spark), pandas and polars.

Needs pyarrow: the extra `tables`. A structured array's columns lie apart from each other by a whole row, and
an Arrow column must not: each is copied once. From there to polars, DuckDB and, with `split_blocks`, pandas
columns of numbers go without a copy. Names (owners, labels, states) are dictionary-encoded: a number a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inspector.arch import Right
from inspector.errors import SetupError, UsageError
from inspector.kernel.frames import NO_MIGRATETYPE, FrameState
from inspector.kernel.owners import Owner
from inspector.linux import Linux
from inspector.snapshots import CacheState, Snapshot, TaskState, take
from inspector.units import printable

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS = ("busy", "vm_map_ram", "unpurged", "leaving")  # kernel.vmalloc's, by number
_RIGHTS = {"writable": Right.W, "user": Right.U, "executable": Right.X}


def frames(source: Linux | Snapshot) -> pa.Table:
    """A row a PFN: the columns of kernel.owners.FRAME, with names for numbers and `label` for `detail`.

    `label` and `migratetype` are null where there is none.
    """
    snapshot = _snapshot(source)
    rows = snapshot.frames
    named = {
        "owner": _names(rows["owner"], _members(Owner)),
        "label": _names(rows["detail"], snapshot.labels, rows["detail"] == 0),
        "state": _names(rows["state"], _members(FrameState)),
        "migratetype": _names(
            rows["migratetype"], snapshot.migratetypes, rows["migratetype"] == NO_MIGRATETYPE
        ),
    }
    order = (
        "pfn",
        "owner",
        "label",
        "state",
        "refcount",
        "mapcount",
        "flags",
        "index",
        "order",
        "migratetype",
    )
    return _table(snapshot, {name: named.get(name, rows) for name in order})


def mappings(source: Linux | Snapshot) -> pa.Table:
    """A row a leaf entry of each task's page tables: the columns of arch.MAPPING, `pfn`, and whose they are.

    Threads and tasks that share an address space have it once.
    """
    snapshot = _snapshot(source)
    rows = snapshot.mappings
    pids = np.array([task.pid for task in snapshot.tasks], np.int32)
    tasks_ = [task.name for task in snapshot.tasks]
    columns: dict[str, Any] = {
        "pid": pids[rows["owner"]] if len(rows) else np.empty(0, np.int32),
        "task": _names(rows["owner"], tasks_),
        "va": rows,
        "pa": rows,
        "pfn": rows["pa"] // np.uint64(snapshot.page_size),
        "size": rows,
        "entry": rows,
        "rights": rows,
    }
    columns |= {name: rows["rights"] & bit != 0 for name, bit in _RIGHTS.items()}
    return _table(snapshot, columns)


def tasks(source: Linux | Snapshot) -> pa.Table:
    """A row a process: the members of snapshots.TaskState."""
    snapshot = _snapshot(source)
    return _table(snapshot, _objects(TaskState, snapshot.tasks))


def slabs(source: Linux | Snapshot) -> pa.Table:
    """A row a slab cache: the members of snapshots.CacheState."""
    snapshot = _snapshot(source)
    return _table(snapshot, _objects(CacheState, snapshot.caches))


def vmalloc(source: Linux | Snapshot) -> pa.Table:
    """A row an area of the vmalloc region: those of kernel.vmalloc.VmallocArea but for its pages' nodes."""
    pa_ = _pyarrow()
    snapshot = _snapshot(source)
    areas = snapshot.areas
    words = {name: _unsigned([getattr(area, name) for area in areas]) for name in ("start", "end", "size")}
    kinds = np.array([area.kind for area in areas], np.uint8)
    return _table(
        snapshot,
        {
            **words,
            "kind": _names(kinds, _KINDS),
            "caller": pa_.array([area.caller or None for area in areas], pa_.string()),
            "pages": _unsigned([area.pages for area in areas]),
            "phys": _unsigned([area.phys for area in areas]),
            "flags": pa_.array([list(area.flags) for area in areas], pa_.list_(pa_.string())),
        },
    )


TABLES: Mapping[str, Callable[[Linux | Snapshot], pa.Table]] = {
    "frames": frames,
    "mappings": mappings,
    "tasks": tasks,
    "slabs": slabs,
    "vmalloc": vmalloc,
}
"""Every table by its name."""


def export(source: Linux | Snapshot, path: Path, names: Iterable[str] = ()) -> list[Path]:
    """Write tables: into a folder a Parquet file each, or one into a .parquet or .arrow (Arrow IPC) file.

    Without names a folder gets all, a file `frames`. Gives the files. Raises UsageError, SetupError.
    """
    check()
    wanted = list(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in TABLES]:
        raise UsageError(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    single = path.suffix in _WRITERS
    if not single and (path.suffix or path.is_file()):
        raise UsageError(f"{path} says no format: end it in .parquet or .arrow, or name a folder")
    if single and len(wanted) > 1:
        raise UsageError(f"{path} takes one table; name a folder for {len(wanted)}")
    snapshot = _snapshot(source)
    try:
        if single:
            _WRITERS[path.suffix](TABLES[(wanted or ["frames"])[0]](snapshot), path)
            return [path]
        path.mkdir(parents=True, exist_ok=True)
        files = {name: path / f"{name}.parquet" for name in wanted or TABLES}
        for name, file in files.items():
            _to_parquet(TABLES[name](snapshot), file)
        return list(files.values())
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from error


def _to_parquet(table: pa.Table, path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path, compression="zstd")


def _to_arrow(table: pa.Table, path: Path) -> None:
    with _pyarrow().ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


_WRITERS = {".parquet": _to_parquet, ".arrow": _to_arrow}


def check() -> None:
    """Raises SetupError where pyarrow is not installed: worth knowing before a guest is booted."""
    _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise SetupError(
            "tables need pyarrow, which is not installed: pip install 'kernel-memory-inspector[tables]'"
        ) from error
    return pyarrow


def _snapshot(source: Linux | Snapshot) -> Snapshot:
    return source if isinstance(source, Snapshot) else take(source)


def _table(snapshot: Snapshot, columns: Mapping[str, Any]) -> pa.Table:
    """The columns, of which a structured array stands for its member of that name; with where from."""
    pa_ = _pyarrow()
    arrays = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            column = pa_.array(np.ascontiguousarray(column[name] if column.dtype.names else column))
        arrays[name] = column
    about = {name: getattr(snapshot, name) for name in ("taken", "release", "build_id", "page_size")}
    return pa_.table(arrays).replace_schema_metadata({"kmi": json.dumps(about)})


def _names(
    numbers: NDArray[Any], names: Sequence[str], missing: NDArray[np.bool_] | None = None
) -> pa.DictionaryArray:
    """Numbers that index names, as a dictionary-encoded column; null where `missing`."""
    pa_ = _pyarrow()
    # A dictionary's words are to be unique, and guests may give two tasks one name.
    words = list(dict.fromkeys(map(printable, names)))
    places = {word: place for place, word in enumerate(words)}
    of_name = np.array([places[printable(name)] for name in names], np.int32)
    inside = numbers if missing is None else np.where(missing, 0, numbers)
    indices = pa_.array(of_name[inside] if len(of_name) else np.zeros(len(numbers), np.int32), mask=missing)
    return pa_.DictionaryArray.from_arrays(indices, pa_.array(words, pa_.string()))


def _members(kind: type[IntEnum]) -> list[str]:
    """An enum's names in lower case, by number."""
    return [member.name.lower() for member in sorted(kind)]


def _objects(kind: type[Any], things: Sequence[Any]) -> dict[str, Any]:
    """A column a member, typed by what the dataclass says: empty tables have the same types."""
    pa_ = _pyarrow()
    made = {"str": pa_.string(), "bool": pa_.bool_(), "int": pa_.int64(), "VirtAddr": pa_.uint64()}
    return {
        each.name: pa_.array([getattr(thing, each.name) for thing in things], made[str(each.type)])
        for each in fields(kind)
    }


def _unsigned(values: Sequence[int | None]) -> pa.Array:
    pa_ = _pyarrow()
    return pa_.array(values, pa_.uint64())
