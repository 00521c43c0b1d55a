"""Tables of a hand-made snapshot: the API's values, and SQL that agrees with numpy."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from inspector import tables
from inspector.errors import SetupError, UsageError
from inspector.kernel.frames import FrameState
from inspector.kernel.owners import FRAME, Owner
from inspector.kernel.rmap import ROW
from inspector.kernel.vmalloc import VmallocArea
from inspector.snapshots import CacheState, Snapshot, TaskState
from inspector.units import PhysAddr, VirtAddr

LABELS = ("", "worker (7)", "dentry", "odd\x1b name")
TOP = 0xFFFF_FFFF_FFFF_F000


@pytest.fixture
def snapshot() -> Snapshot:
    """A thousand frames and three hundred mappings by lot, always the same."""
    lot = np.random.default_rng(5)
    rows = np.zeros(1000, FRAME)
    rows["pfn"] = np.arange(1000)
    rows["owner"] = lot.choice([Owner.FREE, Owner.ANON, Owner.SLAB, Owner.PAGE_CACHE], 1000)
    rows["state"] = np.where(rows["owner"] == Owner.FREE, FrameState.FREE, FrameState.KERNEL)
    rows["detail"] = np.where(rows["owner"] == Owner.FREE, 0, lot.integers(0, len(LABELS), 1000))
    rows["migratetype"] = np.where(rows["owner"] == Owner.FREE, lot.integers(0, 2, 1000), 255)
    rows["flags"] = lot.integers(0, 1 << 64, 1000, np.uint64)
    rows["refcount"], rows["mapcount"] = lot.integers(-1, 9, 1000), lot.integers(-1, 9, 1000)
    leaves = np.zeros(300, ROW)
    leaves["owner"] = np.sort(lot.integers(0, 2, 300))
    leaves["va"], leaves["pa"] = np.arange(300) * 4096, lot.permutation(1000)[:300] * 4096
    leaves["size"], leaves["entry"], leaves["rights"] = 4096, leaves["pa"] | 7, lot.integers(0, 8, 300)
    return Snapshot(
        taken=12.5, release="6.1.0-test", build_id="ab" * 20, kaslr_offset=0, page_size=4096, labels=LABELS,
        migratetypes=("Unmovable", "Movable"), tasks=(_task(1), _task(7)), caches=(
            CacheState("dentry", VirtAddr(TOP), 192, 0, 4, 84, 80, 77, True),
        ), areas=(_area("fork+0x1/0x2", None), _area("", PhysAddr(0xFED0_0000))), modules=(), zones=(),
        frames=rows, mappings=leaves,
    )  # fmt: skip


def _task(pid: int) -> TaskState:
    return TaskState(
        pid=pid, tgid=pid, ppid=0, comm="same", name="same", state="S", uid=0, threads=1, kernel_thread=False,
        address=VirtAddr(TOP), stack=VirtAddr(TOP), mm=VirtAddr(TOP - pid), rss_anon=pid, rss_file=2,
        rss_shmem=0, swap_entries=0, total_vm=9, pgtables_bytes=4096,
    )  # fmt: skip


def _area(caller: str, phys: PhysAddr | None) -> VmallocArea:
    return VmallocArea(VirtAddr(TOP), VirtAddr(TOP + 8), 8, 0, caller, 1, phys, ("vmalloc",), False, {0: 1})


def test_frames(snapshot: Snapshot) -> None:
    table, rows = tables.frames(snapshot), snapshot.frames
    for name in ("pfn", "flags", "index", "refcount", "mapcount", "order"):
        column = table[name].to_numpy()
        assert column.dtype == FRAME[name]
        assert np.array_equal(column, rows[name])
    assert table["owner"].to_pylist() == [Owner(each).name.lower() for each in rows["owner"]]
    assert table["state"].to_pylist() == [FrameState(each).name.lower() for each in rows["state"]]
    words = [None, "worker (7)", "dentry", "odd\\x1b name"]
    assert table["label"].to_pylist() == [words[each] for each in rows["detail"]]
    kinds = {0: "Unmovable", 1: "Movable", 255: None}
    assert table["migratetype"].to_pylist() == [kinds[each] for each in rows["migratetype"].tolist()]
    assert json.loads(table.schema.metadata[b"kmi"])["taken"] == 12.5


def test_mappings(snapshot: Snapshot) -> None:
    table, rows = tables.mappings(snapshot), snapshot.mappings
    for name in ("va", "pa", "size", "entry", "rights"):
        assert np.array_equal(table[name].to_numpy(), rows[name])
    assert table["pid"].to_pylist() == [(1, 7)[each] for each in rows["owner"]]
    assert set(table["task"].to_pylist()) == {"same"}  # two tasks, one word
    assert table["pfn"].to_pylist() == [each // 4096 for each in rows["pa"].tolist()]
    assert table["writable"].to_pylist() == [bool(each & 1) for each in rows["rights"].tolist()]
    assert table["executable"].to_pylist() == [bool(each & 4) for each in rows["rights"].tolist()]


def test_tasks_slabs_and_vmalloc(snapshot: Snapshot) -> None:
    assert tables.tasks(snapshot).to_pylist()[1]["rss_anon"] == 7
    assert tables.tasks(snapshot)["mm"].to_pylist() == [TOP - 1, TOP - 7]
    (cache,) = tables.slabs(snapshot).to_pylist()
    assert (cache["name"], cache["address"], cache["allocated"], cache["reclaimable"]) == (
        "dentry",
        TOP,
        77,
        True,
    )
    first, second = tables.vmalloc(snapshot).to_pylist()
    assert (first["caller"], first["phys"], first["flags"], first["kind"]) == (
        "fork+0x1/0x2", None, ["vmalloc"], "busy",
    )  # fmt: skip
    assert (second["caller"], second["phys"], second["end"]) == (None, 0xFED0_0000, TOP + 8)


def test_numbers_are_not_copied_again(snapshot: Snapshot) -> None:
    column = tables.frames(snapshot)["flags"].chunk(0)
    assert column.to_numpy(zero_copy_only=True).base is not None
    assert column.null_count == 0


def test_an_empty_guest_has_the_same_types(snapshot: Snapshot) -> None:
    from dataclasses import replace

    empty = replace(
        snapshot, tasks=(), caches=(), areas=(), frames=snapshot.frames[:0], mappings=snapshot.mappings[:0]
    )
    for name, make in tables.TABLES.items():
        assert make(empty).schema.equals(make(snapshot).schema), name
        assert make(empty).num_rows == 0


def test_sql_and_numpy_agree(snapshot: Snapshot, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    tables.export(snapshot, tmp_path)
    sql = duckdb.connect()
    sql.execute(f"SET file_search_path = '{tmp_path}'")
    found = sql.sql("SELECT owner, label, count(*) FROM 'frames.parquet' GROUP BY ALL").fetchall()
    rows, words = snapshot.frames, (None, "worker (7)", "dentry", "odd\\x1b name")
    pairs = zip(rows["owner"].tolist(), rows["detail"].tolist(), strict=True)
    ours = Counter((Owner(owner).name.lower(), words[detail]) for owner, detail in pairs)
    assert {(owner, label): count for owner, label, count in found} == ours
    shown = sql.sql(
        "SELECT count(*) FROM 'mappings.parquet' m JOIN 'frames.parquet' f USING (pfn) "
        "WHERE m.pid = 7 AND m.writable AND f.owner = 'anon'"
    ).fetchall()
    leaves = snapshot.mappings
    mine = leaves[(leaves["owner"] == 1) & (leaves["rights"] & 1 == 1)]
    anon = rows["owner"][(mine["pa"] // 4096).astype(np.int64)] == Owner.ANON
    assert shown == [(int(anon.sum()),)]
    assert 0 < anon.sum() < 150


def test_files(snapshot: Snapshot, tmp_path: Path) -> None:
    import pyarrow.ipc
    import pyarrow.parquet

    for name in ("one.parquet", "one.arrow"):
        assert tables.export(snapshot, tmp_path / name) == [tmp_path / name]
    assert pyarrow.parquet.read_table(tmp_path / "one.parquet").equals(tables.frames(snapshot))
    with pyarrow.ipc.open_file(tmp_path / "one.arrow") as file:
        assert file.read_all().equals(tables.frames(snapshot))
    assert [path.name for path in tables.export(snapshot, tmp_path / "all")] == [
        f"{name}.parquet" for name in ("frames", "mappings", "tasks", "slabs", "vmalloc")
    ]
    assert tables.export(snapshot, tmp_path / "all", ["slabs"]) == [tmp_path / "all" / "slabs.parquet"]


@pytest.mark.parametrize(
    ("path", "names", "why"),
    [
        ("one.csv", (), "says no format: end it in .parquet or .arrow"),
        ("one.parquet", ("frames", "tasks"), "takes one table"),
        ("one.parquet", ("pages",), "no table 'pages'; there are frames, mappings"),
    ],
)
def test_what_makes_no_sense(
    snapshot: Snapshot, tmp_path: Path, path: str, names: tuple[str, ...], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        tables.export(snapshot, tmp_path / path, names)


def test_unwritable(snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot write"):
        tables.export(snapshot, tmp_path / "no" / "one.parquet")


def test_without_pyarrow(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for ask in (lambda: tables.frames(snapshot), lambda: tables.export(snapshot, tmp_path), tables.check):
        with pytest.raises(SetupError, match=r"pip install 'kernel-memory-inspector\[tables\]'"):
            ask()


def test_the_how_tos_queries_run(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it stands in the page, where the page says that one is."""
    duckdb = pytest.importorskip("duckdb")
    page = (Path(__file__).parents[2] / "docs/how-to/sql.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    for name in ("before", "after"):
        tables.export(snapshot, Path("memory") / f"dump={name}")
    found = [duckdb.sql(query).fetchall() for query in queries]
    assert len(found) == 8
    # The two are one: nothing changed hands, and each dump has the same.
    changed, dumps = found[6], found[7]
    assert changed == []
    assert {(name, owner): count for name, owner, count in dumps} == {
        (name, owner): int((snapshot.frames["owner"] == Owner[owner.upper()]).sum())
        for name in ("before", "after")
        for owner in ("anon", "slab", "free")
    }
