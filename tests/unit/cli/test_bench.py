"""The bench's arithmetic and how it prints; what it measures is tested where guests are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inspector.arch import MAPPING
from inspector.cli import bench, bench_rows
from inspector.cli.bench_rows import Row

Kmi = Callable[..., Any]


def test_ratio_is_per_item() -> None:
    row = Row("mappings", 1000, 0.001).beside(10, 0.005)
    assert row.ratio == pytest.approx(500)  # 500 us an item against 1 us
    assert (row.peer, row.peer_count, row.peer_s) == ("drgn", 10, 0.005)


def test_median_of_the_askings(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, 1, 0, 9, 0, 3])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert bench_rows.seconds(lambda: None, 3) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (12.34, "12.3 s"),
        (0.0456, "45.6 ms"),
        (7.89e-6, "7.89 us"),
        (24.6e-9, "24.6 ns"),
        (0.0, "0 ns"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert bench.duration(seconds) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(None, "-"), (0.58, "0.6x"), (9.96, "10.0x"), (1034.4, "1,034x")]
)
def test_times(ratio: float | None, text: str) -> None:
    assert bench.times(ratio) == text


def test_sample_is_of_the_rows_in_order() -> None:
    rows = np.zeros(100, MAPPING)
    rows["va"] = np.arange(100) * 4096
    some = bench_rows._sample(rows, 10)["va"].tolist()
    assert len(set(some)) == 10
    assert some == sorted(some)
    assert len(bench_rows._sample(rows, 1000)) == 100


def test_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bench.draw(
        [Row("mappings", 1000, 0.001, floor_s=0.0005, note="a note").beside(10, 0.005), Row("run", 1, 0.25)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["mappings", "1000", "1", "ms", "500", "us", "1", "us", "500", "us", "500x"]
    assert lines[2].split() == ["run", "1", "250", "ms", "-", "-", "-", "-"]
    assert "a note (peer: drgn, 10 items)" in lines[4]
    assert max(map(len, lines)) <= 80


def test_without_drgn_it_says_how_to_get_it(kmi: Kmi, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def measure(kernel: str, effort: Any, **more: Any) -> list[Row]:
        given.update(more)
        return [Row("mappings", 1, 1.0, note="what" + more["missing"])]

    monkeypatch.setattr(bench, "installed", lambda: False)
    monkeypatch.setattr(bench, "measure", measure)
    assert "make bench" in kmi("bench", "--json").out
    assert given["peer"] is False
    assert "make bench" not in kmi("bench", "--json", "--no-peer").out
