"""What it takes to start a guest from its booted state, and to put one back to it, beside a boot."""

from __future__ import annotations

import statistics
import time

import inspector
from inspector import machine
from inspector.cli.bench_rows import Effort, Row, seconds
from inspector.guest import Guest
from inspector.machine import LocalMachine
from inspector.progress import Reporter

_PEER = "a boot"


def state_rows(kernel: str, memory: str, effort: Effort, reporter: Reporter) -> list[Row]:
    """A start and a restore, each beside boots that end when the guest can be asked."""
    with inspector.boot(kernel, memory, reporter=reporter) as guest:  # makes the state, where there is none
        local = guest.machine
        assert isinstance(local, LocalMachine)
        config = local.config
        restores = seconds(guest.restore, effort.repeats)
    with reporter.task("Starting and booting guests"):
        starts = statistics.median(_start(kernel, memory) for _ in range(effort.repeats))
        boots = statistics.median(_boot(config) for _ in range(max(1, effort.repeats // 5)))
    return [
        _beside("start", starts, boots, f"inspector.boot() of {memory} where there is a booted state"),
        _beside("restore", restores, boots, f"guest.restore() of {memory}, until it runs commands again"),
    ]


def _beside(name: str, ours: float, boots: float, note: str) -> Row:
    return Row(name, 1, ours, peer=_PEER, peer_count=1, peer_s=boots, ratio=boots / ours, note=note)


def _start(kernel: str, memory: str) -> float:
    started = time.perf_counter()
    with inspector.boot(kernel, memory):
        return time.perf_counter() - started


def _boot(config: machine.MachineConfig) -> float:
    """Nothing is kept of it: less than what inspector.boot(cold=True) takes."""
    started = time.perf_counter()
    with machine.start(config) as booted:
        guest = Guest(booted)
        took = time.perf_counter() - started
        guest.memory.close()
        return took
