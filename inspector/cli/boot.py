"""`kmi boot`: a guest held open for other commands."""

from __future__ import annotations

import sys
import threading

import click

from inspector import machine
from inspector.cli.options import GuestOptions, boot_options, opened
from inspector.cli.output import examples
from inspector.errors import GuestDied
from inspector.machine import LocalMachine
from inspector.machine.names import check_name

_USE = """\
{name} is open: {what}. From another terminal:

  kmi tui --guest {name}
  kmi report --guest {name}
  kmi walk --guest {name} 1 '[stack]'

For other tools, one client each: QMP at {folder}/qmp, gdb's stub at {folder}/gdb.

Ctrl-C here, or q and Enter, ends it."""


@click.command(epilog=examples("kmi boot --name lab --memory 2G --cpus 2", "kmi report --guest lab"))
@click.option("--name", required=True, help="What other commands call the guest by.")
@boot_options
def boot(name: str, options: GuestOptions) -> None:
    """Boot a guest and hold it open, so that other commands need not boot their own.

    Without a terminal it stays until a signal ends it, or the guest ends.
    """
    check_name(name)  # an empty one too, which to boot() is none
    with opened(options, name) as opening:
        guest = opening.guest
        assert isinstance(guest.machine, LocalMachine)
        ended = threading.Event()
        died: list[str] = []

        def bury(why: str) -> None:
            died.append(why)
            ended.set()

        guest.machine.on_death(bury)
        info = guest.info()
        with machine.serve(guest.machine, name):
            what = f"Linux {info.release}, {info.accel}, QEMU has PID {guest.machine.qemu_pid}"
            print(_USE.format(name=name, what=what, folder=guest.machine.folder), flush=True)
            _hold(ended)
        if died:
            raise GuestDied(f"the guest is gone: {died[0]}")


def _hold(ended: threading.Event) -> None:
    """Until Ctrl-C, a `q` typed, or the guest's end. Ctrl-C is a way to leave here, not an accident."""
    if sys.stdin.isatty():
        threading.Thread(target=_listen, args=(ended,), daemon=True).start()
    try:
        ended.wait()
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _listen(ended: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip().lower() in ("q", "quit", "exit"):
            ended.set()
            return
