"""How a guest is come by: booted here, held open by another process, or saved in a file."""

from __future__ import annotations

from pathlib import Path

from inspector import images, machine
from inspector.errors import UsageError
from inspector.guest import Guest
from inspector.machine import MachineConfig
from inspector.machine.accel import AccelChoice
from inspector.progress import SILENT, Reporter
from inspector.units import parse_size

DEFAULT_KERNEL = "debian-6.1"
DEFAULT_MEMORY = "512M"


def boot(
    kernel: str | Path = DEFAULT_KERNEL,
    memory: str | int = DEFAULT_MEMORY,
    cpus: int = 1,
    *,
    initrd: Path | None = None,
    name: str = "",
    cmdline: str = "",
    accel: AccelChoice = "auto",
    la57: bool = False,
    vmlinux: Path | None = None,
    cold: bool = False,
    reporter: Reporter = SILENT,
) -> Guest:
    """Boot a guest and attach to it. `kernel` is a name of `kmi kernels` or a bzImage or vmlinux.

    Where such a guest was booted before it goes on from the state that it then had, unless `cold`: see
    docs/explanation/states.md. Guest.restore() puts it back to the state in which it is given here.
    With an `initrd` of the user's own there is no agent in the guest: run() and spawn() raise MachineError.
    The first time fetches the kernel and builds the guest image into the cache. Raises UsageError,
    ImageError, BootError, SymbolsError; leaves nothing behind when it does.
    """
    files = images.fetch_kernel(str(kernel), reporter)
    config = MachineConfig(
        kernel=files.bzimage,
        initrd=initrd or images.guest_image(files, reporter),
        memory=parse_size(memory) if isinstance(memory, str) else memory,
        cpus=cpus,
        cmdline=cmdline,
        accel=accel,
        la57=la57,
        name=name,
        agent=initrd is None,
    )
    started = machine.start(config, reporter, states=images.cache_dir() / "states", cold=cold)
    try:
        with reporter.task("Reading the kernel's names and types"):
            return Guest(started, vmlinux=vmlinux)
    except BaseException:
        started.close()
        raise


def attach(
    name: str | None = None,
    *,
    qmp: Path | str | None = None,
    gdb: Path | str | None = None,
    vmlinux: Path | None = None,
) -> Guest:
    """Attach to a guest that another process holds open (`kmi boot --name NAME`), or to anybody's QEMU.

    `qmp` is a QMP socket of that QEMU, a path or HOST:PORT, with no other client; `gdb`, its gdbstub, is only
    needed to trace. Memory is read only, nothing is left there, and a guest that ran runs on, also if this
    process is killed. There is no agent of ours in it: run() and spawn() raise MachineError; see
    docs/how-to/attach.md. Raises UsageError, MachineError, SymbolsError.
    """
    if (name is None) == (qmp is None) or (gdb is not None and qmp is None):
        raise UsageError("attach to a name, or to a QMP socket, with its gdb socket or without")
    connected: machine.Machine
    if qmp is None:
        assert name is not None
        connected = machine.connect(name)
    else:
        connected = machine.ForeignMachine(
            machine.parse_address(qmp), None if gdb is None else machine.parse_address(gdb)
        )
    try:
        return Guest(connected, vmlinux=vmlinux)
    except BaseException:
        connected.close()
        raise


def open(path: Path | str, *, vmlinux: Path | None = None, reporter: Reporter = SILENT) -> Guest:
    """Open a memory image: ours, QEMU's dump-guest-memory, a kernel's vmcore or makedumpfile's, ELF or kdump.

    All that can be asked of a guest can be asked of it; it does not run. Raises UsageError (no such file),
    BadFormat (no image, cut short, corrupt, no Linux in it), SetupError (no room to unpack it).
    """
    from inspector import saving  # knows all formats of memory images; who boots or attaches needs none
    from inspector.memory import core

    image = core.open_image(Path(path), reporter)
    still = saving.still_machine(Path(path), image)
    try:
        with reporter.task("Reading the kernel's names and types"):
            return Guest(still, vmlinux=vmlinux, vmcoreinfo=image.vmcoreinfo)
    except BaseException:
        still.close()
        raise
