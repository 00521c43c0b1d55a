"""`kmi walk`: a virtual address followed level by level."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click

from inspector.arch import Walk
from inspector.arch.compare import walk_data
from inspector.cli import output, walk_view
from inspector.cli.options import GuestOptions, Opened, guest_options, opened
from inspector.errors import UsageError
from inspector.guest import Guest
from inspector.kernel.tasks import Task
from inspector.kernel.vmas import Vma
from inspector.units import PhysAddr, VirtAddr, parse_address, parse_int

_SYMBOL = re.compile(r"([A-Za-z_.$][\w.$]*)(?:\+(0x[0-9a-fA-F]+|\d+))?")
_ANON = "[anon]"
_CPU = re.compile(r"cpu(\d+)")


@dataclass(frozen=True, slots=True)
class Answer:
    """A walk, and in whose page tables: `where` for a person; pid and cpu where it is one's."""

    walk: Walk
    where: str
    pid: int | None
    cpu: int | None
    read_stopped: bool


_WORDS = """\
PID  a task; or `kernel`, `cpu0` (what its CR3 names), `spawned` (what --spawn started)
VA   an address in hexadecimal; or a kernel symbol like init_task+0x40;
     or a mapping of the task by its name in /proc/PID/maps, like '[stack]';
     '[anon]' is its largest one without a name or file"""
_EXAMPLES = (
    "kmi walk 1 '[stack]' -v",
    "kmi walk kernel init_task --json",
    "kmi walk cpu0 dead000000000000 --guest lab",
    "kmi walk spawned '[anon]' --spawn '/labs/touch 8M --thp'",
)


@click.command(epilog=output.examples(*_EXAMPLES, before=_WORDS))
@click.argument("target", nargs=-1, metavar="PID VA")
@click.option("--root", metavar="PA", help="Start at the table at this physical address; leave PID out.")
@click.option("-v", "--verbose", is_flag=True, help="Tell what each flag means.")
@output.json_option
@guest_options
def walk(
    target: tuple[str, ...], root: str | None, verbose: bool, as_json: bool, options: GuestOptions
) -> None:
    """Follow a virtual address through the page tables, as the MMU does.

    An address that does not translate is an answer too: it says what the MMU would do.
    """
    if len(target) != (1 if root is not None else 2):
        raise click.UsageError("give a VA alone with --root" if root is not None else "give a PID and a VA")
    top = PhysAddr(parse_address(root)) if root is not None else None
    who = target[0] if top is None else None
    with opened(options) as opening:
        answer = follow(opening, who, target[-1], top)
    if as_json:
        output.emit_json(as_data(answer))
    else:
        walk_view.draw(answer, verbose)


def follow(opening: Opened, who: str | None, address: str, root: PhysAddr | None = None) -> Answer:
    """Do the walk that was asked for: in the tables at `root`, or in those of `who`.

    Raises UsageError, NoSuchTask, NoSuchSymbol.
    """
    guest = opening.guest
    if root is not None and root % guest.kernel.space.format.page_size:
        raise UsageError(f"no table can be at {root:#x}: tables are aligned to their size, a page")
    with guest.paused():
        if who is None or who == "kernel":
            walk = guest.walk(_address(guest, address, None), root=root)
            return Answer(walk, "in the kernel" if who else "in the tables given", None, None, True)
        if match := _CPU.fullmatch(who):
            cpu = int(match[1])
            walk = guest.walk(_address(guest, address, None), cpu=cpu)
            return Answer(walk, f"from CR3 of CPU {cpu}", None, cpu, True)
        task = guest.task(_pid(opening, who))
        walk = task.walk(_address(guest, address, task))
        return Answer(walk, f"in task {task.pid} ({task.comm})", task.pid, None, True)


def _pid(opening: Opened, who: str) -> int:
    if who == "spawned":
        if opening.spawned is None:
            raise UsageError("nothing was spawned: add --spawn COMMAND, or give a PID")
        return opening.spawned
    if not who.isdecimal():
        raise UsageError(f"not a PID: {who!r}; give a number, kernel, cpu0 or spawned")
    return parse_int(who, "PID")


def _address(guest: Guest, text: str, task: Task | None) -> VirtAddr:
    """An address from what the user wrote: hexadecimal, a mapping's name, a kernel symbol; in that order."""
    if text.startswith(("[", "/")):
        return _mapping(guest, task, text)
    match = _SYMBOL.fullmatch(text)
    if not match or _is_hex(text):
        return VirtAddr(parse_address(text))
    return VirtAddr(guest.symbol(match[1]) + int(match[2] or "0", 0))


def _is_hex(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-fA-F_]+", text.removeprefix("0x")))


def _mapping(guest: Guest, task: Task | None, name: str) -> VirtAddr:
    """Where a mapping of that name begins; of one that grows down, like a stack, its topmost page."""
    if task is None:
        raise UsageError(f"{name} is a mapping's name: it needs a task, give its PID")
    areas = task.vmas()
    if name == _ANON:
        found = max((vma for vma in areas if _is_anonymous(vma)), key=lambda vma: vma.size, default=None)
    else:
        found = next((vma for vma in areas if vma.name == name), None)
    if found is None:
        known = ", ".join(dict.fromkeys(vma.name for vma in areas if vma.name)) or "no named ones"
        raise UsageError(f"task {task.pid} has no mapping {name}; it has {known}")
    if "GROWSDOWN" in found.flag_names:
        return VirtAddr(found.end - guest.kernel.space.format.page_size)
    return found.start


def _is_anonymous(vma: Vma) -> bool:
    return not vma.name or vma.name.startswith("[anon:")


def as_data(answer: Answer) -> dict[str, Any]:
    """The walk as JSON has it."""
    return {
        "read_stopped": answer.read_stopped,
        "pid": answer.pid,
        "cpu": answer.cpu,
        **walk_data(answer.walk),
    }
