"""Entry point: the group of commands, and how errors end."""

from __future__ import annotations

import difflib
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

import inspector
from inspector.cli.allocations import allocations
from inspector.cli.bench import bench
from inspector.cli.boot import boot
from inspector.cli.devices import devices
from inspector.cli.export import export
from inspector.cli.faults import faults
from inspector.cli.kernels import kernels
from inspector.cli.lab import lab
from inspector.cli.output import examples
from inspector.cli.page import page
from inspector.cli.report import report
from inspector.cli.save import save
from inspector.cli.shell import shell
from inspector.cli.snapshot import diff, snapshot
from inspector.cli.tui import tui
from inspector.cli.walk import walk
from inspector.errors import InspectorError
from inspector.units import printable

_HELP_OR_VERSION = ("-h", "--help", "--version")


class _Group(click.Group):
    """Without a command it is `tui`; for a mistyped one it says which was meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _HELP_OR_VERSION):
            rest = self.commands["tui"].make_parser(ctx).parse_args(list(args))[1]
            if rest and rest[0] in self.commands:
                meant = shlex.join([rest[0], *(arg for arg in args if arg != rest[0])])
                raise click.UsageError(f"the command comes before its options: kmi {meant}", ctx)
            args = ["tui", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as they were added: the most used first

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], self.commands, 1)
            hint = f"did you mean {near[0]}" if near else "there are " + ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


_EXAMPLES = (
    "kmi                          boot a guest, look around",
    "kmi report | less            the whole state as text",
    "kmi walk 1 '[stack]'         follow an address of PID 1 through its page tables",
    "kmi boot --name lab          hold a guest open ...",
    "kmi walk --guest lab 1 ...   ... and ask it from another terminal",
)


@click.group(
    cls=_Group,
    epilog=examples(*_EXAMPLES),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(inspector.__version__, prog_name="kmi")
def kmi() -> None:
    """Look into the memory of a live Linux guest.

    `kmi` alone boots the default guest and opens the terminal UI, and takes the options of `kmi tui`; where
    stdout is no terminal it prints the report. Addresses are hexadecimal, with or without 0x; frame numbers
    (PFN) are decimal, or hexadecimal with 0x.
    """


_LOOKING = (tui, report, walk, page, devices, faults, allocations, snapshot, diff, export)
for _command in (*_LOOKING, lab, kernels, boot, save, shell, bench):
    kmi.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kmi`; gives its exit status: 0, 2 for anything that is told in one line, 130 after Ctrl-C.

    Where the reader of stdout has gone (`kmi report | head -1`) click leaves quietly with 1.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        status = kmi.main(arguments, prog_name="kmi", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        return _say(_with_help(error))
    except InspectorError as error:
        return _say(str(error))


def _leave(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(128 + number)  # so that what is open is closed on the way out


def _with_help(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see `{context.command_path} --help`" if context else message


def _say(message: str) -> int:
    print("kmi: " + printable(" ".join(message.split())), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
