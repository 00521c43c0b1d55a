"""`kmi snapshot` and `kmi diff`: all of memory at one moment in a file, and what changed since."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from inspector.cli import output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.errors import UsageError
from inspector.snapshots import Diff, Snapshot
from inspector.snapshots.telling import text
from inspector.units import format_size

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(epilog=output.examples("kmi snapshot before.kmi --guest lab"))
@click.argument("path", type=_FILE)
@guest_options
def snapshot(path: Path, options: GuestOptions) -> None:
    """Save what all of memory is at one moment: whose each frame is, tasks, mappings, slabs, vmalloc.

    Not the bytes of memory. `kmi diff` compares such files, `kmi export` makes tables of them.
    """
    with opened(options) as opening:
        taken = opening.guest.snapshot()
    taken.save(path)
    size = format_size(path.stat().st_size)
    frames, tasks = len(taken.frames), len(taken.tasks)
    output.line(
        Text(f"{path}: {size}; {frames:,} frames, {tasks} tasks, {len(taken.mappings):,} mappings of theirs")
    )


_MOST = 12  # lines of a part
_EXAMPLES = (
    "kmi diff before.kmi --guest lab      what changed up to now",
    "kmi diff before.kmi after.kmi --json",
    "kmi diff before.kmi --leaks --guest lab",
)


@click.command(epilog=output.examples(*_EXAMPLES))
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE, required=False)
@click.option("--leaks", is_flag=True, help="Only what is in use and was not, without caches of any kind.")
@click.option("--all", "every", is_flag=True, help="Every line of each part.")
@output.json_option
@guest_options
def diff(
    before: Path, after: Path | None, leaks: bool, every: bool, as_json: bool, options: GuestOptions
) -> None:
    """Tell what changed hands between two snapshots, or since one: by owner, task, cache and caller.

    Without AFTER it is the guest as it is now (--guest, --qmp), or was when its memory was saved (--image):
    it must be the one that BEFORE was taken of, not booted again since.
    """
    found = compare(before, after, options)
    if as_json:
        output.emit_json(found.as_data())
    elif leaks:
        output.write(f"{found.leaked()}\n")
    else:
        output.write(text(found, None if every else _MOST) + "\n")


def compare(before: Path, after: Path | None, options: GuestOptions) -> Diff:
    """Read both. Raises BadSnapshot, UsageError."""
    was = Snapshot.load(before)
    if after is not None:
        if options.attaches:
            raise UsageError("give a second snapshot, or a guest with --guest, --image or --qmp: not both")
        return Snapshot.load(after).diff(was)
    if not options.attaches:
        raise UsageError(
            "a snapshot alone has nothing to differ from: "
            "give a second one, --guest NAME, --image PATH or --qmp SOCKET"
        )
    with opened(options) as opening:
        return opening.guest.snapshot().diff(was)
