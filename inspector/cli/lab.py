"""`kmi lab`: a demonstration on a live guest, told step by step and checked."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from inspector import labs
from inspector.arch import Walk
from inspector.arch.compare import walk_data
from inspector.cli import lab_view, output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.errors import UsageError
from inspector.guest import Guest
from inspector.kernel.vmas import Vma
from inspector.labs import Lab
from inspector.labs.story import Ending, Event, Question, Seen, Step
from inspector.trace import Fault
from inspector.trace.telling import fault_data
from inspector.units import printable, word

_EXAMPLES = (
    "kmi lab --list",
    "kmi lab copy-on-write --pause",
    "kmi lab zero-page --guest lab",
    "kmi lab swap --prepare :       break its premise: with no swap it fails",
)
_ADDRESSES = ("va", "entry", "phys", "start", "end", "address")


@click.command(epilog=output.examples(*_EXAMPLES))
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the labs.")
@click.option("--pause", is_flag=True, help="Wait for Enter before each step and after it.")
@click.option("--answers", is_flag=True, help="Do not ask the reader: show the right answers.")
@click.option(
    "--prepare", metavar="COMMAND", help="Run this in the guest, not what the lab would: break its premise."
)
@click.option(
    "--svg", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Save each step as SVG."
)
@output.json_option
@guest_options
def lab(
    name: str | None,
    as_list: bool,
    pause: bool,
    answers: bool,
    prepare: str | None,
    svg: Path | None,
    as_json: bool,
    options: GuestOptions,
) -> int:
    """Watch the kernel do a thing with memory, on a live guest.

    Each step says beforehand what will be seen, then does it and checks it: against the guest's memory, and
    against what a program in the guest says. The exit status is 1 where something else is seen.
    """
    if as_list:
        _list(as_json)
        return 0
    if name is None:
        raise click.UsageError("give the name of a lab, or --list")
    chosen = labs.find(name)
    if not options.attaches and options.memory is None:
        options = replace(options, memory=chosen.memory)
    with opened(options) as opening:
        reader = _Reader(pause, answers or as_json)
        pictures = lab_view.Pictures(svg, chosen.name) if svg else None
        events = _tell(opening.guest, chosen, prepare, reader, pictures, quiet=as_json)
    ending = events[-1]
    assert isinstance(ending, Ending)
    if as_json:
        output.emit_json(as_data(chosen, events))
    elif not ending.passed:
        sys.stderr.write(f"kmi: lab {chosen.name} failed at {printable(ending.words)}\n")
    return 0 if ending.passed else 1


def _list(as_json: bool) -> None:
    if as_json:
        output.emit_json([{"name": lab.name, "question": lab.question} for lab in labs.LABS])
        return
    table = output.plain_table("Lab", "Question")
    table.columns[1].no_wrap = False
    for lab in labs.LABS:
        table.add_row(Text(lab.name, "bold"), lab.question)
    output.show(table)


class _Reader:
    """The one who sits before the terminal."""

    def __init__(self, pause: bool, answers: bool) -> None:
        self._pause = pause
        self._answers = answers

    def wait(self, what: str) -> None:
        """Until Enter, where that was asked for."""
        if self._pause:
            self._line(f"-- Enter {what} --")
            if sys.stdin.isatty() and sys.stdout.isatty():
                sys.stdout.write("\x1b[1A\x1b[2K")  # the prompt's line again

    def answer(self, question: Question) -> str:
        """What the reader says. Raises UsageError where nobody is there to ask."""
        if self._answers:
            return question.answer
        line = self._line(f"{question.prompt} ")
        if not line:
            raise UsageError("this lab asks its reader: answer on stdin, or give --answers")
        return line.strip()

    @staticmethod
    def _line(prompt: str) -> str:
        sys.stdout.write(prompt)
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            sys.stdout.write("\n")
        return line


def _tell(
    guest: Guest,
    lab: Lab,
    prepare: str | None,
    reader: _Reader,
    pictures: lab_view.Pictures | None,
    quiet: bool,
) -> list[Event]:
    """Run a lab and draw it as it goes; all that happened."""
    events: list[Event] = []
    if not quiet:
        output.show(*lab_view.title(lab, guest.info()))
    story = labs.run(lab, guest, prepare)
    answer: str | None = None
    try:
        while True:
            event = story.send(answer)
            events.append(event)
            parts = lab_view.event(event)
            if pictures:
                pictures.add(event, parts)
            if parts and not quiet:
                output.show(*parts)
            answer = None
            match event:
                case Question():
                    answer = reader.answer(event)
                case Step():
                    reader.wait("to do it")
                case Seen():
                    reader.wait("to go on")
                case _:
                    pass
    except StopIteration:
        return events
    finally:
        story.close()


def as_data(lab: Lab, events: list[Event]) -> dict[str, Any]:
    """The story as JSON has it."""
    ending = events[-1]
    return {
        "lab": lab.name,
        "question": lab.question,
        "passed": isinstance(ending, Ending) and ending.passed,
        "events": [_data(event) for event in events],
    }


def _data(value: Any, name: str = "") -> Any:
    """Dataclasses by name of their fields, with their class as `type`; addresses and raw words as text."""
    if isinstance(value, Walk):
        return walk_data(value)
    if isinstance(value, Fault):
        return fault_data(value)
    if isinstance(value, Vma):
        return {"start": word(value.start), "end": word(value.end), "name": value.name,
                "permissions": value.permissions}  # fmt: skip
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__.removesuffix("Shown").lower()
        return {"type": kind} | {
            field.name: _data(getattr(value, field.name), field.name) for field in fields(value)
        }
    if isinstance(value, tuple | list):
        return [_data(item) for item in value]
    if isinstance(value, Enum):
        return value.name.lower()
    return word(value) if name in _ADDRESSES and isinstance(value, int) else value
