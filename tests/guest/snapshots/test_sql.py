"""The how-to's queries, asked of a guest: their answers are those of /proc."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inspector import Guest, tables

pytestmark = pytest.mark.guest

_PAGE = Path(__file__).parents[3] / "docs/how-to/sql.md"


def query(words: str) -> str:
    """The one query of the page that has these words."""
    (found,) = (text for text in re.findall(r"```sql\n(.*?)```", _PAGE.read_text(), re.S) if words in text)
    return str(found)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """A query of the page's, over what was exported into `memory/`."""
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    return lambda words: duckdb.sql(query(words)).fetchall()


def test_free_blocks_are_pagetypeinfos(guest: Guest, witness: Any, ask: Callable[[str], list[Any]]) -> None:
    path = "/proc/pagetypeinfo"
    for _ in range(20):
        seen, _ = witness(guest, [path], lambda: tables.export(guest, Path("memory/dump=after"), ["frames"]))
        if seen.same(path):
            break
    else:
        raise AssertionError("the guest never stood still between two readings")
    stated: dict[tuple[str, int], int] = {}
    for kind, counts in re.findall(r"^Node.*type +(\w+) ([\d ]+)$", seen.text(path), re.MULTILINE):
        for order, count in enumerate(map(int, counts.split())):
            stated[kind, order] = stated.get((kind, order), 0) + count
    found = {(kind, order): count for kind, order, count in ask("AS blocks")}
    assert found == {place: count for place, count in stated.items() if count}


def test_rss_and_pss_are_those_of_smaps(
    guest: Guest, start: Callable[[Guest, str], int], ask: Callable[[str], list[Any]]
) -> None:
    pid = start(guest, "/labs/fork 4M")
    try:
        tables.export(guest, Path("memory/dump=after"), ["frames", "mappings"])
        smaps = guest.run(f"cat /proc/{pid}/smaps").check().stdout
        whole = {
            name: sum(map(int, re.findall(rf"^{name}: +(\d+) kB", smaps, re.MULTILINE)))
            for name in ("Rss", "Pss", "AnonHugePages")
        }
        assert not whole["AnonHugePages"]
        found = {task: (rss, pss) for task, _, rss, pss in ask("AS pss_kib")}
        rss, pss = found[pid]
        assert rss == whole["Rss"]
        # The kernel rounds each mapping's share down to a KiB.
        mappings = smaps.count("\nPss:")
        assert whole["Pss"] <= pss + 0.1 <= whole["Pss"] + mappings + 0.2
    finally:
        guest.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done")
