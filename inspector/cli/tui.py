"""`kmi tui`, and `kmi` alone: the terminal UI; the report where there is no terminal."""

from __future__ import annotations

import sys

import click

from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.cli.output import examples
from inspector.cli.report import gather
from inspector.cli.report_view import draw


@click.command(epilog=examples("kmi --kernel debian-6.12 --memory 2G --cpus 2"))
@guest_options
def tui(options: GuestOptions) -> None:
    """Look around in a guest, full screen; what `kmi` alone does.

    Without a terminal it prints the report.
    """
    with opened(options) as opening:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            draw(gather(opening.guest))
            return
        from inspector.tui import run  # Textual takes long to import, and only this needs it

        run(opening.guest)
