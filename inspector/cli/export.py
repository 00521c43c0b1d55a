"""`kmi export`: all of memory as tables in files, to be asked in SQL."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from inspector import tables
from inspector.cli import output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.errors import UsageError
from inspector.snapshots import Snapshot
from inspector.units import format_size

_PATH = click.Path(path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_EXAMPLES = (
    "kmi export memory/ --guest lab                      every table, a Parquet file each",
    "kmi export frames.parquet --from before.kmi",
    "kmi export maps.arrow --table mappings --guest lab",
)


@click.command(epilog=output.examples(*_EXAMPLES))
@click.argument("path", type=_PATH)
@click.option(
    "--table",
    "names",
    multiple=True,
    type=click.Choice(list(tables.TABLES)),
    help="Only this one; may be repeated.  [frames for a file, all for a folder]",
)
@click.option("--from", "source", type=_FILE, metavar="SNAPSHOT", help="A file of `kmi snapshot`; no guest.")
@guest_options
def export(path: Path, names: tuple[str, ...], source: Path | None, options: GuestOptions) -> None:
    """Save memory as tables: PATH is a .parquet or .arrow file for one, or a folder for all.

    frames has a row a PFN with its owner, mappings one a leaf entry of each task's page tables; tasks, slabs
    and vmalloc are what they say. Needs pyarrow.
    """
    if source is not None and options.attaches:
        raise UsageError("give --from, or a guest with --guest, --image or --qmp: not both")
    files = tables.export(_taken(source, options), path, names)
    for file in files:
        output.line(Text(f"{file}: {format_size(file.stat().st_size)}"))


def _taken(source: Path | None, options: GuestOptions) -> Snapshot:
    tables.check()
    if source is not None:
        return Snapshot.load(source)
    with opened(options) as opening:
        return opening.guest.snapshot()
