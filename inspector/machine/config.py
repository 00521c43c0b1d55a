"""What machine to start, and the QEMU command line that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inspector.errors import BootError, UsageError
from inspector.machine import window
from inspector.machine.accel import Accel, AccelChoice
from inspector.units import GIB, MIB, format_size

MIN_MEMORY = 64 * MIB
MAX_MEMORY = 16 * GIB
MAX_CPUS = 64
_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """A guest to start. Raises UsageError where it makes no sense."""

    kernel: Path
    """A bzImage; or a vmlinux (ELF) with a PVH note (CONFIG_PVH=y): QEMU enters no other ELF kernel."""
    initrd: Path
    memory: int = 512 * MIB
    """Bytes, 64 MiB to 16 GiB."""
    cpus: int = 1
    arch: str = "x86_64"
    cmdline: str = ""
    """What the kernel's command line gets after our own."""
    accel: AccelChoice = "auto"
    la57: bool = False
    """Offer 5-level paging: a kernel with CONFIG_X86_5LEVEL then takes it."""
    extra: tuple[str, ...] = ()
    """Further arguments for QEMU, as they are."""
    name: str = ""
    """What other processes may call the guest by, once it is served."""
    agent: bool = True
    """Whether the initrd starts our agent: the guest is up when it speaks. False: see `ready_text`."""
    ready_text: str = ""
    """Without an agent: up when the console shows this; empty: when the console has been quiet for 4 s."""
    boot_timeout: float = 180.0
    """Seconds."""

    def __post_init__(self) -> None:
        if self.arch != "x86_64":
            raise UsageError(f"no such architecture: {self.arch!r}; x86_64 is the one there is")
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY or self.memory % _PAGE:
            raise UsageError(
                f"cannot give a guest {format_size(self.memory)} of memory: "
                f"take {format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}, in whole pages"
            )
        if not 1 <= self.cpus <= MAX_CPUS:
            raise UsageError(f"cannot give a guest {self.cpus} CPUs: take 1 to {MAX_CPUS}")
        for what, path in (("kernel", self.kernel), ("initrd", self.initrd)):
            if not path.is_file():
                raise UsageError(f"no such {what}: {path}")


def check_kernel(path: Path) -> None:
    """Raises BootError where the file is neither a whole bzImage nor an ELF file.

    Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header": setup_sects at 0x1f1, syssize (in units of
    16 bytes) at 0x1f4, boot_flag 0xaa55 at 0x1fe, header "HdrS" at 0x202.
    """
    with path.open("rb") as file:
        head = file.read(0x206)
    if head.startswith(b"\x7fELF"):
        return
    if head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":
        raise BootError(f"not a kernel: {path} is neither a bzImage nor an ELF vmlinux")
    size = ((head[0x1F1] or 4) + 1) * 512 + int.from_bytes(head[0x1F4:0x1F8], "little") * 16
    if path.stat().st_size < size:
        raise BootError(f"the kernel image is cut off: {path} has {path.stat().st_size} of {size} bytes")


@dataclass(frozen=True, slots=True)
class Wiring:
    """What QEMU is connected to: descriptors that it inherits, and its private folder."""

    ram_fd: int
    console_fd: int
    shell_fd: int
    qmp_fd: int
    window_fd: int
    folder: Path

    @property
    def fds(self) -> tuple[int, ...]:
        """All that QEMU must inherit."""
        return self.ram_fd, self.console_fd, self.shell_fd, self.qmp_fd, self.window_fd

    @property
    def qmp_socket(self) -> Path:
        """A second QMP monitor, for other tools (drgn --qemu)."""
        return self.folder / "qmp"

    @property
    def gdb_socket(self) -> Path:
        """QEMU's gdbstub."""
        return self.folder / "gdb"


def kernel_cmdline(config: MachineConfig) -> str:
    """The kernel's command line: all it says goes to the first serial line, a panic reboots.

    Documentation/admin-guide/kernel-parameters.txt: panic=-1 reboots at once (-no-reboot then ends QEMU);
    earlyprintk lets the decompressor say that an image is corrupt; no_timer_check: under TCG on a busy host
    the timer's interrupts may come too late for that check, which panics. KASLR stays as the kernel has it.
    """
    ours = ("console=ttyS0", "earlyprintk=ttyS0,115200", "no_timer_check", "panic=-1")
    return " ".join(filter(None, (*ours, config.cmdline)))


def _escaped(path: Path) -> str:
    """A path as a value in a QEMU option, where a comma ends the value."""
    return str(path).replace(",", ",,")


def _shared(name: str, size: int, fd: int) -> str:
    """Guest memory that is an inherited file's."""
    return f"memory-backend-file,id={name},size={size},mem-path=/proc/self/fd/{fd},share=on"


def qemu_command(config: MachineConfig, accel: Accel, wiring: Wiring, *, incoming: bool = False) -> list[str]:
    """QEMU's command line, from its program's name on (QEMU docs: system/invocation).

    `incoming`: it waits to be given the devices' state (QMP migrate-incoming).
    """
    cpu = ("host" if accel.name == "KVM" else "max") + f",la57={'on' if config.la57 else 'off'}"
    return [
        f"qemu-system-{config.arch}",
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-name", "kmi", "-accel", accel.name.lower(), "-cpu", cpu, "-smp", str(config.cpus)),
        *(
            "-m",
            f"{config.memory}B",
            "-object",
            _shared("ram", config.memory, wiring.ram_fd),
            "-machine",
            "q35,memory-backend=ram",
        ),
        *("-chardev", f"socket,id=console,fd={wiring.console_fd}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=shell,fd={wiring.shell_fd}", "-serial", "chardev:shell"),
        *("-chardev", f"socket,id=qmp,fd={wiring.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-qmp", f"unix:{_escaped(wiring.qmp_socket)},server=on,wait=off"),
        *("-gdb", f"unix:{_escaped(wiring.gdb_socket)},server=on,wait=off"),
        *("-object", _shared("window", window.SIZE, wiring.window_fd)),
        # The device reaches 4 GiB (QEMU hw/misc/edu.c has it reach 256 MiB): the driver's own mask decides.
        *("-device", "vmcoreinfo", "-device", "edu,dma_mask=0xffffffff"),
        *("-device", "ivshmem-plain,memdev=window,master=on"),  # a peer cannot be migrated: see devices.py
        *("-kernel", str(config.kernel), "-initrd", str(config.initrd)),
        *("-append", kernel_cmdline(config)),
        *config.extra,
        *(("-incoming", "defer") if incoming else ()),
    ]
