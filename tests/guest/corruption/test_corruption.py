"""Corrupted guest memory ends in an answer or a named error: never a hang, a crash, or a read outside RAM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inspector import Guest

pytestmark = pytest.mark.guest

CASES = 2000
WORKERS = 2
_ROOT = Path(__file__).parents[3]
_PROGRAM = ["-m", "tests.guest.corruption.cases"]
_REGISTERS = ("cr0", "cr3", "cr4", "efer", "idt_base")
_STUCK = 1200  # seconds for all cases of one worker; each case has its own, far tighter bound


def _copy_data(source: int, target: int, size: int) -> None:
    """What of a sparse file has been written, to the same places of another."""
    os.truncate(target, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # ENXIO: no more data
            return
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        for at in range(start, end, 1 << 24):
            os.pwrite(target, os.pread(source, min(1 << 24, end - at), at), at)


@pytest.fixture(scope="session")
def recording(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of the default guest, and the registers that lead to its kernel."""
    folder = tmp_path_factory.mktemp("recording")
    with guest.paused(), (folder / "ram").open("wb") as file:
        blocks = guest.machine.blocks
        assert guest.machine.ram_fd is not None
        _copy_data(guest.machine.ram_fd, file.fileno(), max(offset + size for _, size, offset in blocks))
        registers = [{name: getattr(cpu, name) for name in _REGISTERS} for cpu in guest.machine.registers()]
    (folder / "machine.json").write_text(json.dumps({"blocks": blocks, "cpus": registers}))
    return folder


@dataclass
class _Worker:
    """A process that runs some of the cases, and what it said."""

    process: subprocess.Popen[str]
    failures: list[dict[str, Any]] = field(default_factory=list)
    begun: int = -1
    ended: Counter[str] = field(default_factory=Counter)

    def finish(self) -> None:
        try:
            output, errors = self.process.communicate(timeout=_STUCK)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, errors = self.process.communicate()
        for line in (json.loads(line) for line in output.splitlines() if line.endswith("}")):
            self.begun = line.get("begins", self.begun)
            self.ended.update(line.get("ended", {}))
            if "case" in line:
                self.failures.append(line)
        if self.process.returncode:
            error = f"the process ended with {self.process.returncode}: {errors[-2000:]}"
            self.failures.append({"case": self.begun, "error": error})


def test_every_corruption_ends_in_an_answer_or_a_named_error(recording: Path) -> None:
    """Cases run in processes of their own: a crash, or a loop that no signal ends, takes only those along."""
    workers = []
    for first in range(WORKERS):
        command = [sys.executable, *_PROGRAM, str(recording), "--first", str(first)]
        command += ["--step", str(WORKERS), "--count", str(CASES // WORKERS)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, sys.path)])}
        workers.append(
            _Worker(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
                )
            )
        )
    try:
        for worker in workers:
            worker.finish()
    finally:
        for worker in workers:
            worker.process.kill()
    failures = [failure for worker in workers for failure in worker.failures]
    told = "\n\n".join(
        f"case {failure['case']}, reader {failure.get('reader', 'unknown')}: {failure['error']}\n"
        f"changed {failure.get('changes')}, RAM {failure.get('blocks')}\n{failure.get('trace', '')}"
        for failure in failures[:10]
    )
    again = f"python {' '.join(_PROGRAM)} {recording} --first CASE"
    assert not failures, f"{len(failures)} of {CASES} cases failed; once more: {again}\n{told}"
    ended = sum((worker.ended for worker in workers), Counter[str]())
    assert ended.total() == CASES
    # The corruption is aimed: where it hit nothing, this test would hold for any code.
    answers = sum(count for how, count in ended.items() if how.endswith(": answer"))
    assert CASES * 0.2 < answers < CASES * 0.8, ended
    (recording / "ram").unlink()  # kept only where there is something to look into
