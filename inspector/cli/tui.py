"""`kmi tui`, and `kmi` alone: the terminal UI; the report where there is no terminal."""

from __future__ import annotations

import sys
import threading

import click

from inspector.cli.importing import imported
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.cli.output import examples


@click.command(epilog=examples("kmi --kernel debian-6.12 --memory 2G --cpus 2"))
@guest_options
def tui(options: GuestOptions) -> None:
    """Look around in a guest, full screen; what `kmi` alone does.

    Without a terminal it prints the report.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        from inspector.cli.report import gather
        from inspector.cli.report_view import draw

        with opened(options) as opening:
            draw(gather(opening.guest))
        return
    # Textual is imported while QEMU comes up: both take as long.
    threading.Thread(target=imported, args=["inspector.tui.app"], name="kmi-import").start()
    with opened(options) as opening:
        from inspector.tui import run

        run(opening.guest)
