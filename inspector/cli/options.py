"""The options that say which guest a command asks, and how that guest is opened."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

import inspector
from inspector import opening as defaults
from inspector.cli.progress import reporter
from inspector.errors import UsageError
from inspector.guest import Guest
from inspector.machine import ForeignMachine
from inspector.machine.accel import AccelChoice

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_START_TRIES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """What the user said about the guest; None where nothing was said."""

    kernel: str | None = None
    initrd: Path | None = None
    memory: str | None = None
    cpus: int | None = None
    accel: AccelChoice | None = None
    la57: bool = False
    append: str | None = None
    vmlinux: Path | None = None
    cold: bool = False
    guest: str | None = None
    image: Path | None = None
    qmp: str | None = None
    gdb: str | None = None
    spawn: str | None = None

    @property
    def attaches(self) -> bool:
        """Whether they name a guest that there is already."""
        return not (self.guest is None and self.image is None and self.qmp is None)

    def boot_options(self) -> list[str]:
        """The given options that only make sense for a guest that is booted here."""
        names = ("kernel", "initrd", "memory", "cpus", "accel", "la57", "append", "cold")
        return [f"--{name}" for name in names if getattr(self, name) not in (None, False)]

    def others(self, *names: str) -> list[str]:
        """The given options of boot_options(), and those of these."""
        return [*self.boot_options(), *(f"--{name}" for name in names if getattr(self, name) is not None)]


BOOT_OPTIONS = (
    click.option(
        "--kernel",
        metavar="NAME|PATH",
        help=f"A kernel of `kmi kernels`, or a bzImage or vmlinux.  [{defaults.DEFAULT_KERNEL}]",
    ),
    click.option("--initrd", type=_FILE, help="Your own initramfs instead of ours."),
    click.option("--memory", metavar="SIZE", help=f"64M to 16G.  [{defaults.DEFAULT_MEMORY}]"),
    click.option("--cpus", type=int, metavar="N", help="How many CPUs.  [1]"),
    click.option(
        "--accel",
        type=click.Choice(["auto", "kvm", "tcg"]),
        help="KVM where it works, or the one said.  [auto]",
    ),
    click.option("--la57", is_flag=True, help="Offer 5-level paging to the kernel."),
    click.option("--append", metavar="TEXT", help="More for the kernel's command line, like nopti."),
    click.option("--vmlinux", type=_FILE, help="Names and types from this vmlinux, not from guest memory."),
    click.option("--cold", is_flag=True, help="Boot anew, where such a guest's booted state is kept."),
)
SHARE_OPTIONS = (
    click.option("--guest", metavar="NAME", help="Ask a guest that `kmi boot` holds open; boot none."),
    click.option(
        "--image", type=_FILE, help="Ask a memory image: of `kmi save`, or any vmcore, ELF or kdump."
    ),
    click.option(
        "--qmp",
        metavar="SOCKET",
        help="Ask anybody's QEMU by its QMP socket, a path or HOST:PORT; read-only.",
    ),
    click.option("--gdb", metavar="SOCKET", help="With --qmp: QEMU's gdbstub, to trace what runs there."),
    click.option("--spawn", metavar="COMMAND", help="First start a command in the guest: a task to look at."),
)


def guest_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options about its guest; it receives them as one GuestOptions named `options`."""
    return _with_options(function, (*BOOT_OPTIONS, *SHARE_OPTIONS))


def boot_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """guest_options() for a command that always boots its own guest."""
    return _with_options(function, BOOT_OPTIONS)


def _with_options(
    function: Callable[..., Any], given: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        names = [field.name for field in fields(GuestOptions) if field.name in values]
        options = GuestOptions(**{name: values.pop(name) for name in names})
        return function(options=options, **values)

    for option in reversed(given):
        wrapper = option(wrapper)
    return wrapper


@dataclass(frozen=True, slots=True)
class Opened:
    """A guest to ask, and the PID of the task that --spawn started in it."""

    guest: Guest
    spawned: int | None


@contextmanager
def opened(options: GuestOptions, name: str = "") -> Iterator[Opened]:
    """Boot the guest that the options describe, or attach to the one they name; let go of it at the end."""
    with _open(options, name) as guest:
        yield Opened(guest, _spawn(guest, options.spawn) if options.spawn is not None else None)


def _open(options: GuestOptions, name: str) -> Guest:
    if options.image is not None:
        if extra := options.others("guest", "qmp", "gdb", "spawn"):
            raise UsageError(f"--image takes a saved image as it is: leave out {', '.join(extra)}")
        return inspector.open(options.image, vmlinux=options.vmlinux, reporter=reporter())
    if options.qmp is not None:
        if extra := options.others("guest", "spawn"):
            raise UsageError(f"--qmp takes a QEMU as others run it: leave out {', '.join(extra)}")
        return _attach(options.qmp, options.gdb, options.vmlinux)
    if options.guest is not None:
        if extra := options.others("gdb"):
            raise UsageError(f"--guest takes a guest as it runs: leave out {', '.join(extra)}")
        return inspector.attach(options.guest, vmlinux=options.vmlinux)
    if options.gdb is not None:
        raise UsageError("--gdb goes with --qmp, to a QEMU that others started")
    kernel: str | Path = options.kernel or defaults.DEFAULT_KERNEL
    return inspector.boot(
        kernel,
        options.memory or defaults.DEFAULT_MEMORY,
        1 if options.cpus is None else options.cpus,
        initrd=options.initrd,
        name=name,
        cmdline=options.append or "",
        accel=options.accel or "auto",
        la57=options.la57,
        vmlinux=options.vmlinux,
        cold=options.cold,
        reporter=reporter(),
    )


def _attach(qmp: str, gdb: str | None, vmlinux: Path | None) -> Guest:
    """Attach to a foreign QEMU, and say in one line what cannot be had of it, and how to."""
    guest = inspector.attach(qmp=qmp, gdb=gdb, vmlinux=vmlinux)
    if isinstance(guest.machine, ForeignMachine) and guest.machine.lacks:
        click.echo("kmi: " + "; ".join(guest.machine.lacks), err=True)
    return guest


def _spawn(guest: Guest, command: str) -> int:
    """Start the command; wait till it has said a word or sleeps. Raises UsageError where it ends at once."""
    with reporter().task(f"Starting {command}"):
        pid = guest.spawn(command)
        log = f"/tmp/spawn-{pid}.log"
        guest.run(
            f"for i in $(seq {_START_TRIES}); do [ -d /proc/{pid} ] && [ ! -s {log} ] && "
            f"! grep -q '^State:.*sleep' /proc/{pid}/status || break; sleep 0.05; done"
        )
        if guest.run(f"[ -d /proc/{pid} ]").returncode:
            said = guest.run(f"tail -n 1 {log}").stdout.strip()
            raise UsageError(f"in the guest, {command!r} ended at once" + (f": {said}" if said else ""))
    return pid
