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
from inspector.cli.importing import imported
from inspector.cli.output import examples
from inspector.errors import InspectorError
from inspector.units import printable

_HELP_OR_VERSION = ("-h", "--help", "--version")
_ELSEWHERE = {"diff": "snapshot"}
_COMMANDS = {
    "tui": "Look around in a guest, full screen; what `kmi` alone does.",
    "report": "Print what a guest holds: CPUs, zones, frames, tasks.",
    "walk": "Follow a virtual address through the page tables.",
    "page": "Show all that is known of a frame.",
    "devices": "List PCI devices and the memory that they reach by DMA.",
    "faults": "Trace the page faults of a process.",
    "allocations": "Trace page allocations and frees.",
    "snapshot": "Save what all of memory is at one moment.",
    "diff": "Tell what changed hands between two snapshots, or since one.",
    "export": "Save memory as tables, Parquet or Arrow.",
    "lab": "Watch the kernel do a thing with memory, on a live guest.",
    "kernels": "List the kernels that can be booted by name.",
    "boot": "Boot a guest and hold it open for other commands.",
    "save": "Save all memory and the registers: for --image, drgn, crash.",
    "shell": "Talk to a guest in Python: a REPL with `guest` bound.",
    "bench": "Measure how fast it is.",
}
"""Each command is the function of that name in the module of that name, or in that of _ELSEWHERE."""


class _Group(click.Group):
    """Without a command it is `tui`; for a mistyped one it says which was meant.

    A command is imported when it is run: none waits for what another needs.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = imported(f"inspector.cli.{_ELSEWHERE.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _HELP_OR_VERSION):
            tui = self.get_command(ctx, "tui")
            assert tui
            rest = tui.make_parser(ctx).parse_args(list(args))[1]
            if rest and rest[0] in _COMMANDS:
                meant = shlex.join([rest[0], *(arg for arg in args if arg != rest[0])])
                raise click.UsageError(f"the command comes before its options: kmi {meant}", ctx)
            args = ["tui", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)  # the most used first

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS:
            near = difflib.get_close_matches(args[0], _COMMANDS, 1)
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
