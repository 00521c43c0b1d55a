"""`kmi bench`: how fast it is, measured here and now."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click
from rich.text import Text

import inspector
from inspector import images
from inspector.cli import bench_rows, output
from inspector.cli.bench_drgn import NAME, Drgn, installed
from inspector.cli.bench_memory import memory_rows
from inspector.cli.bench_rows import FULL, QUICK, Effort, Row
from inspector.cli.bench_screen import screen_row
from inspector.cli.bench_states import state_rows
from inspector.cli.bench_trace import trace_rows
from inspector.cli.progress import reporter
from inspector.guest import Guest
from inspector.machine import LocalMachine
from inspector.opening import DEFAULT_KERNEL
from inspector.progress import Reporter
from inspector.units import format_size

_SMALL, _LARGE, _BUSY = "512M", "8G", "2G"
_SIZES = ("4G", "16G")  # beside the small one, to see how questions about all of memory grow
_TOUCHED = "1G"


@click.command(epilog=output.examples("kmi bench --json", "kmi bench --quick --no-peer"))
@click.option("--kernel", metavar="NAME", default=DEFAULT_KERNEL, help="A kernel of `kmi kernels`.")
@click.option("--quick", is_flag=True, help="Fewer repetitions.")
@click.option("--no-peer", is_flag=True, help=f"Do not measure {NAME} beside us.")
@output.json_option
def bench(kernel: str, quick: bool, no_peer: bool, as_json: bool) -> None:
    """Measure how fast it is: guests of 512 MiB to 16 GiB are booted.

    Every number is measured in this run. drgn is the peer where it is installed (`make bench` does it); it
    needs the kernel's vmlinux with debug information, which is fetched once (850 MB).
    """
    missing = (
        "" if no_peer or installed() else f"; no peer, {NAME} is not installed: `make bench` installs it"
    )
    rows = measure(
        kernel,
        QUICK if quick else FULL,
        peer=not no_peer and not missing,
        reporter=reporter(),
        missing=missing,
    )
    if as_json:
        output.emit_json([asdict(row) for row in rows])
        return
    draw(rows)


def measure(kernel: str, effort: Effort, peer: bool, reporter: Reporter, missing: str = "") -> list[Row]:
    """Boot the guests and ask them everything; `missing` is said where a peer would be."""
    vmlinux = images.fetch_debug_vmlinux(images.fetch_kernel(kernel, reporter), reporter) if peer else None
    with ExitStack() as stack:
        small, large = (stack.enter_context(_boot(kernel, size, reporter)) for size in (_SMALL, _LARGE))
        with reporter.task("Measuring attach"):
            rows = bench_rows.attach_rows([_machine(small), _machine(large)], effort)
            rows.append(bench_rows.run_row(small, effort))
            rows += _whole_memory(small, vmlinux, effort, reporter)
    with _boot(kernel, _SMALL, reporter) as guest, reporter.task("Tracing page faults"):
        rows += trace_rows(guest, effort)
    rows += state_rows(kernel, _SMALL, effort, reporter)
    with reporter.task("Starting kmi, up to its first screen"):
        rows.append(screen_row(kernel, _SMALL, effort))
    for size in _SIZES:
        with _boot(kernel, size, reporter) as guest:
            rows += _whole_memory(guest, vmlinux, effort, reporter)
    with _boot(kernel, _BUSY, reporter) as guest:
        with reporter.task(f"Touching {_TOUCHED} in the guest"):
            task = bench_rows.touched_task(guest, _TOUCHED)
        drgn = _peer(guest, vmlinux, reporter)
        questions = (
            ("one task's page tables", partial(bench_rows.mappings_row, guest, task, drgn, effort)),
            ("single addresses", partial(bench_rows.walk_row, guest, task, drgn, effort)),
            ("zones and free lists", partial(bench_rows.free_row, guest, drgn, effort)),
        )
        for what, question in questions:
            with reporter.task(f"Measuring {what}"):
                row = question()
            rows.append(replace(row, note=row.note + missing))
    return rows


def _whole_memory(guest: Guest, vmlinux: Path | None, effort: Effort, reporter: Reporter) -> list[Row]:
    drgn = _peer(guest, vmlinux, reporter)
    with reporter.task(f"Measuring all of {format_size(guest.machine.memory_size)}"):
        return memory_rows(guest, drgn, effort)


def _peer(guest: Guest, vmlinux: Path | None, reporter: Reporter) -> Drgn | None:
    if vmlinux is None:
        return None
    with reporter.task(f"Starting {NAME}"), guest.paused():
        return Drgn(_machine(guest).folder / "qmp", vmlinux)


def _boot(kernel: str, memory: str, reporter: Reporter) -> Guest:
    return inspector.boot(kernel, memory, reporter=reporter)


def _machine(guest: Guest) -> LocalMachine:
    assert isinstance(guest.machine, LocalMachine)
    return guest.machine


def draw(rows: list[Row]) -> None:
    """Print the rows for a person."""
    right = ("Items", "Ours", "Floor", "An item", "Peer's item", "Faster")
    table = output.plain_table("What", *right, right=right)
    for row in rows:
        peer = row.peer_s / row.peer_count if row.peer_s is not None and row.peer_count else None
        table.add_row(
            row.name,
            str(row.count),
            duration(row.ours_s),
            duration(row.floor_s),
            duration(row.ours_s / row.count) if row.count > 1 else "-",
            duration(peer),
            times(row.ratio),
        )
    notes = output.plain_table("", "")
    notes.show_header = False
    notes.columns[1].no_wrap = False
    for row in rows:
        peers = f" (peer: {row.peer}, {row.peer_count} items)" if row.peer else ""
        notes.add_row(Text(row.name, "dim"), Text(row.note + peers, "dim"))
    output.show(table, Text(""), notes)


def times(ratio: float | None) -> str:
    """How many times faster; below 1 it is slower."""
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def duration(seconds: float | None) -> str:
    """A time as a person reads it, three digits."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
