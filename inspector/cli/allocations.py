"""`kmi allocations`: pages that the kernel hands out and takes back, told as it happens."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import click
from rich.console import RenderableType
from rich.text import Text

from inspector.cli import output
from inspector.cli.faults import target_of
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.trace import Allocation, AllocationTrace
from inspector.trace import telling as tell
from inspector.units import Pfn, format_size, parse_int, printable

_WORDS = """\
PID      a process; or `spawned`, what --spawn started; all tasks where none is given
COMMAND  a program of the guest with its arguments, started for it; behind --"""
_EXAMPLES = (
    "kmi allocations --count 20",
    "kmi allocations -v -- /labs/touch 64K --no-thp",
    "kmi allocations --pfn 0x1000 --json --guest lab",
)
_CALLERS = 12  # in the summary
_DEPTH = 4  # calls on a line: from the page allocator outwards


@click.command(epilog=output.examples(*_EXAMPLES, before=_WORDS))
@click.argument("target", nargs=-1, metavar="[PID | -- COMMAND...]")
@click.option("--pfn", metavar="PFN", help="Only what this frame is part of.")
@click.option("--count", type=int, metavar="N", help="End after so many.")
@click.option("--children", is_flag=True, help="Trace what the process forks too.")
@click.option("-v", "--verbose", is_flag=True, help="The whole stack of each.")
@output.json_option
@guest_options
def allocations(
    target: tuple[str, ...],
    pfn: str | None,
    count: int | None,
    children: bool,
    verbose: bool,
    as_json: bool,
    options: GuestOptions,
) -> None:
    """Trace page allocations and frees: which frames, of what order, with which GFP flags, called by whom.

    It ends with the process, after --count of them, or with Ctrl-C; the guest runs on.
    """
    frame = Pfn(parse_int(pfn, "PFN")) if pfn is not None else None
    with opened(options) as opening:
        what = target_of(opening, target) if target else None
        with opening.guest.trace_allocations(what, pfn=frame, limit=count, children=children) as trace:
            name = f"PID {trace.pid}" if target else "all tasks"
            if isinstance(what, str):
                name += f", {printable(what)}"
            print(f"kmi: tracing the page allocations of {name}; Ctrl-C ends it", file=sys.stderr, flush=True)
            (_json if as_json else _text)(trace, verbose)


def _text(trace: AllocationTrace, verbose: bool) -> None:
    output.line(
        Text(
            f"{'#':>5}  {'':<5}  {'Frames':<15}  {'Size':>7}  {'Task':<20}  GFP flags, and who called", "dim"
        )
    )
    callers: Counter[str] = Counter()
    try:
        with suppress(KeyboardInterrupt):
            for record in trace:
                callers[tell.caller(record)] += (1 << record.order) * (not record.freed)
                for line in _lines(record, verbose):
                    output.line(line)
    finally:
        trace.close()
    output.show(*_summary(trace, callers))


def _lines(record: Allocation, verbose: bool) -> Iterator[Text]:
    end = record.pfn + (1 << record.order) - 1
    frames = f"{record.pfn:#x}" + (f"-{end:#x}" if record.order else "")
    yield Text.assemble(
        (f"{record.number:>5}", "dim"),
        ("  free " if record.freed else "  alloc", "cyan" if record.freed else "bold yellow"),
        f"  {frames:<15}  {format_size(4096 << record.order):>7}",
        f"  {f'{printable(record.comm)} ({record.pid})':<20}",
        (f"  {' '.join(record.gfp_names)}", "dim"),
    )
    places = [printable(frame.place) for frame in record.stack]
    if verbose:
        for place in places:
            yield Text(f"{'':>14}{place}", "dim")
    elif places:
        yield Text(f"{'':>14}{' < '.join(tell.callers(record, _DEPTH))}", "dim")


def _summary(trace: AllocationTrace, callers: Counter[str]) -> Iterator[RenderableType]:
    kept = trace.allocated - trace.freed
    pages = f"{trace.allocated:,} pages allocated, {trace.freed:,} freed ({kept:+,})"
    yield Text(f"\n{pages}; {trace.stops:,} stops of the guest")
    table = output.plain_table("Pages", "Allocated by", right=("Pages",))
    for caller, count in callers.most_common(_CALLERS):
        if count:
            table.add_row(f"{count:,}", Text(caller))
    yield table
    yield Text(f"Ran through of other tasks or frames {trace.others:,}, lost {trace.lost:,}", "dim")


def _json(trace: AllocationTrace, verbose: bool) -> None:
    output.write(f'{{"pid": {trace.pid or "null"}, "allocations": [')
    first = True
    try:
        with suppress(KeyboardInterrupt):
            for record in trace:
                output.write(("\n" if first else ",\n") + json.dumps(tell.allocation_data(record)))
                first = False
    finally:
        trace.close()
    summary = {
        "pages_allocated": trace.allocated,
        "pages_freed": trace.freed,
        "other": trace.others,
        "lost": trace.lost,
        "stops": trace.stops,
    }
    output.write(f'\n], "summary": {json.dumps(summary)}}}\n')
