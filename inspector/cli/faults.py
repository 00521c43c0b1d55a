"""`kmi faults`: page faults of a process, told as they happen."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import click

from inspector.cli import faults_view, output
from inspector.cli.options import GuestOptions, Opened, guest_options, opened
from inspector.errors import UsageError
from inspector.trace import Fault, FaultKind, FaultTrace
from inspector.trace.telling import fault_data
from inspector.units import VirtAddr, parse_address, parse_int, printable

_KINDS = [kind.name.lower() for kind in FaultKind]
_WORDS = """\
PID      a process; or `spawned`, what --spawn started
COMMAND  a program of the guest with its arguments, started for it; behind --
KIND     {}"""
_EXAMPLES = (
    "kmi faults -- /labs/touch 64K --no-thp",
    "kmi faults --kind cow_copy --children -v -- /labs/fork 64K --no-thp",
    "kmi faults 1 --count 3 --json --guest lab",
)


def _kinds() -> str:
    """All kinds, on lines that fit."""
    lines = [""]
    for name in _KINDS:
        if len(lines[-1]) + len(name) > 66:
            lines.append("")
        lines[-1] += f"{name} "
    return "\n         ".join(line.rstrip() for line in lines)


@click.command(epilog=output.examples(*_EXAMPLES, before=_WORDS.format(_kinds())))
@click.argument("target", nargs=-1, metavar="PID | -- COMMAND...")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only this kind; may be repeated.")
@click.option("--range", "span", metavar="START-END", help="Only addresses from START up to END.")
@click.option("--count", type=int, metavar="N", help="End after so many faults.")
@click.option("--children", is_flag=True, help="Trace what the process forks too.")
@click.option("-v", "--verbose", is_flag=True, help="Draw the walk before and after each fault.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Save all that as a picture.")
@output.json_option
@guest_options
def faults(
    target: tuple[str, ...],
    kinds: tuple[str, ...],
    span: str | None,
    count: int | None,
    children: bool,
    verbose: bool,
    svg: Path | None,
    as_json: bool,
    options: GuestOptions,
) -> None:
    """Trace the page faults of a process: what was touched, what the kernel did, which frame came in.

    It ends with the process, after --count faults, or with Ctrl-C; the guest runs on.
    """
    if not target:
        raise click.UsageError("give a PID, or a command behind --")
    chosen = [_kind(name) for name in kinds] or None
    start, end = _range(span) if span is not None else (None, None)
    told: _Teller = _JsonTeller() if as_json else _TextTeller(verbose)
    picture = faults_view.Picture(svg) if svg else None
    with opened(options) as opening:
        what = target_of(opening, target)
        trace = opening.guest.trace_faults(
            what, kinds=chosen, start=start, end=end, limit=count, children=children
        )
        with trace:
            name = f"PID {trace.pid}" + (f", {printable(what)}" if isinstance(what, str) else "")
            print(f"kmi: tracing the page faults of {name}; Ctrl-C ends it", file=sys.stderr, flush=True)
            _tell(trace, told, picture)
    if picture:
        picture.save(name, trace)


def target_of(opening: Opened, words: tuple[str, ...]) -> int | str:
    """A PID, or a command line."""
    if words == ("spawned",):
        if opening.spawned is None:
            raise UsageError("nothing was spawned: add --spawn COMMAND, or give a PID")
        return opening.spawned
    if words[0].isdecimal():
        if len(words) > 1:
            raise UsageError(f"a PID stands alone: leave out {' '.join(words[1:])}")
        return parse_int(words[0], "PID")
    return words[0] if len(words) == 1 else shlex.join(words)


def _kind(name: str) -> FaultKind:
    try:
        return FaultKind[name.upper().replace("-", "_")]
    except KeyError:
        raise UsageError(f"no kind of page fault is {name!r}; there are {', '.join(_KINDS)}") from None


def _range(text: str) -> tuple[VirtAddr, VirtAddr]:
    start, dash, end = text.partition("-")
    if not dash:
        raise UsageError(f"not a range: {text!r}; write it like 7f0000000000-7f0000400000")
    low, high = VirtAddr(parse_address(start)), VirtAddr(parse_address(end))
    if low >= high:
        raise UsageError(f"the range {text} is empty: its end comes first")
    return low, high


class _Teller(Protocol):
    """How the trace is told on stdout."""

    def begin(self, trace: FaultTrace) -> None:
        """Before the first fault."""

    def tell(self, fault: Fault) -> None:
        """A fault."""

    def end(self, trace: FaultTrace) -> None:
        """The trace is over."""


def _tell(trace: FaultTrace, told: _Teller, picture: faults_view.Picture | None) -> None:
    """Tell faults as they come; Ctrl-C is a way to end that here, not an accident."""
    told.begin(trace)
    try:
        with suppress(KeyboardInterrupt):
            for fault in trace:
                told.tell(fault)
                if picture:
                    picture.add(fault)
    finally:
        trace.close()
        told.end(trace)


class _TextTeller:
    """Lines, and a table at the end."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._long = not sys.stdout.isatty() or output.width() >= faults_view.LONG

    def begin(self, trace: FaultTrace) -> None:
        """The columns' titles."""
        output.line(faults_view.titles(self._long))

    def tell(self, fault: Fault) -> None:
        """A line, or two where the terminal is narrow; and the walks."""
        for line in faults_view.lines(fault, self._long):
            output.line(line)
        if self._verbose:
            output.show(*faults_view.walks(fault, output.width()))

    def end(self, trace: FaultTrace) -> None:
        """How many of each kind."""
        output.show(*faults_view.summary(trace))


class _JsonTeller:
    """One JSON value, written a fault a line as they come."""

    def __init__(self) -> None:
        self._first = True

    def begin(self, trace: FaultTrace) -> None:
        """The list opens."""
        output.write(f'{{"pid": {trace.pid}, "faults": [')

    def tell(self, fault: Fault) -> None:
        """A line."""
        output.write(("\n" if self._first else ",\n") + json.dumps(fault_data(fault)))
        self._first = False

    def end(self, trace: FaultTrace) -> None:
        """The list closes, counts follow."""
        output.write(f'\n], "summary": {json.dumps(_summary(trace))}}}\n')


def _summary(trace: FaultTrace) -> dict[str, Any]:
    return {
        "kinds": {kind.name.lower(): count for kind, count in trace.counts.most_common()},
        "minor": trace.minor,
        "major": trace.major,
        "filtered": trace.passed,
        "other_tasks": trace.others,
        "lost": trace.lost,
        "stops": trace.stops,
    }
