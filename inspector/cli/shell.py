"""`kmi shell`: Python with `guest` at hand."""

from __future__ import annotations

import code
import importlib.util
import rlcompleter
import sys
from contextlib import suppress
from typing import Any

import click

import inspector
from inspector import errors, units
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.cli.output import examples
from inspector.errors import InspectorError

_BANNER = """\
{name}: Linux {release}, {accel}. Names: {names}.
Try guest.tasks(), guest.task(1).vmas(), guest.walk(guest.symbol("init_task")); Ctrl-D leaves."""


@click.command(epilog=examples("kmi shell --memory 1G", "echo 'print(guest.zones())' | kmi shell"))
@guest_options
def shell(options: GuestOptions) -> None:
    """Talk to a guest in Python: a REPL with `guest` bound.

    It is IPython where that is installed. Without a terminal it runs what comes from stdin.
    """
    with opened(options) as opening:
        guest = opening.guest
        names: dict[str, Any] = {
            "guest": guest,
            "inspector": inspector,
            "errors": errors,
            "PhysAddr": units.PhysAddr,
            "VirtAddr": units.VirtAddr,
            "Pfn": units.Pfn,
            "format_size": units.format_size,
        }
        if opening.spawned is not None:
            names["spawned"] = opening.spawned
        if not sys.stdin.isatty():
            _run(sys.stdin.read(), names)
            return
        info = guest.info()
        banner = _BANNER.format(
            name=info.name or "a guest",
            release=info.release,
            accel=info.accel,
            names=", ".join(names),
        )
        if importlib.util.find_spec("IPython"):
            _ipython(names, banner)
        else:
            _console(names, banner)


def _run(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "<stdin>", "exec"), names)


def _ipython(names: dict[str, Any], banner: str) -> None:
    embed = importlib.import_module("IPython").start_ipython
    print(banner)
    embed(argv=["--no-banner"], user_ns=names)


def _console(names: dict[str, Any], banner: str) -> None:
    with suppress(ImportError):  # some builds of Python have no readline
        import readline

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    _Console(names).interact(banner, exitmsg="")


class _Console(code.InteractiveConsole):
    """The standard REPL, in which our own errors take a line and no traceback."""

    def showtraceback(self) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, InspectorError):
            self.write(f"{type(error).__name__}: {units.printable(str(error))}\n")
        else:
            super().showtraceback()
