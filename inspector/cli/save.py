"""`kmi save`: all of a guest's memory into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from inspector import saving
from inspector.cli import output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.cli.progress import reporter
from inspector.units import format_size

_LEVEL = 1


@click.command(epilog=output.examples("kmi save --guest lab lab.vmcore", "kmi report --image lab.vmcore"))
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format",
    type=click.Choice(get_args(saving.Format)),
    default="elf",
    help="A sparse ELF vmcore, or one packed as makedumpfile does it (kdump, zlib).  [elf]",
)
@click.option("--level", type=click.IntRange(1, 9), default=_LEVEL, help="How hard zlib tries.  [1]")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@guest_options
def save(path: Path, format: saving.Format, level: int, overwrite: bool, options: GuestOptions) -> None:
    """Save all memory and the registers of a guest to PATH: for --image, drgn and crash.

    The guest stands still meanwhile. The file holds all that the guest has in memory, its secrets too, so
    that only you may read it. However this ends, there is a whole file or none.
    """
    how: dict[str, Any] = {"format": format, "level": level, "overwrite": overwrite}
    saving.check(path, **how)  # before a boot, and not after it
    with opened(options) as opening:
        opening.guest.save(path, **how, reporter=reporter())
    status = path.stat()
    sizes = dict.fromkeys((format_size(status.st_size), f"{format_size(status.st_blocks * 512)}"))
    print(f"{path}: {', '.join(sizes)}{' on disk' if len(sizes) > 1 else ''}")
