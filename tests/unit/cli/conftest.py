"""A guest made by hand, and a way to run `kmi` on it in this process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import inspector
from inspector.arch import X86_64_4LEVEL, walk
from inspector.cli.main import main
from inspector.errors import NoSuchFrame, NoSuchSymbol, NoSuchTask
from inspector.guest import GuestInfo
from inspector.kernel.devices import Bar, PciDevice
from inspector.kernel.devres import Managed
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.frames import FrameState
from inspector.kernel.memcg import ChargeKind
from inspector.kernel.owners import FRAME, Owner, Owners
from inspector.kernel.rmap import Alias
from inspector.kernel.swiotlb import Bounce, BounceBuffer, Swiotlb
from inspector.linux import FreeCounts
from inspector.memory import MappedRam, RamBlock
from inspector.units import BusAddr, PhysAddr, VirtAddr

ESC_NAME = "[red]x\x1b[2J"
ROOT = 0x1000
STACK_END = 0x7FFD_0000_3000
KERNEL_SYMBOL = 0xFFFF_FFFF_8100_0040


def thing(**values: Any) -> Any:
    """An object with these attributes, for a dataclass whose other fields do not matter."""
    return SimpleNamespace(**values)


def tables() -> MappedRam:
    """RAM with page tables by hand: a stack's page, a 2 MiB kernel page, an entry with a reserved bit set."""
    ram = bytearray(0x10000)

    def put(table: int, index: int, entry: int) -> None:
        ram[table + 8 * index : table + 8 * index + 8] = entry.to_bytes(8, "little")

    put(ROOT, 255, 0x2067)  # 0x7ffd_0000_2000 is PGD 255, PUD 500, PMD 0, PTE 2
    put(0x2000, 500, 0x3067)
    put(0x3000, 0, 0x4067)
    put(0x4000, 2, 0x8000_0000_0000_9067)
    put(ROOT, 511, 0x5063)  # 0xffff_ffff_8100_0000 is PGD 511, PUD 510, PMD 8
    put(0x5000, 510, 0x6063)
    put(0x6000, 8, 0x0120_01E3)
    put(0x6000, 9, 0x0120_21E3)  # bit 13 is reserved in a 2 MiB page's entry
    return MappedRam(ram, [RamBlock(PhysAddr(0), len(ram), 0)])


def zone(**values: Any) -> Any:
    """A struct zone: DMA32 of 100 pages, half of them free."""
    marks = thing(min=10, low=20, high=30, boost=0)
    base = {"node": 0, "name": "DMA32", "start_pfn": 16, "spanned": 120, "present": 110, "managed": 100}
    more = {
        "free": 50,
        "per_cpu_free": 3,
        "watermarks": marks,
        "free_by_order": (2, 0, 12),
        "populated": True,
    }
    return thing(**(base | more | values))


def task(pid: int, name: str, mm: Any = None) -> Any:
    """A struct task_struct; a kernel thread without an mm."""
    return thing(
        pid=pid, tgid=pid, ppid=1, comm=name, name=name, state="S", uid=1000, cpu=1, threads=2,
        kernel_thread=mm is None, mm=mm, vmas=list,
    )  # fmt: skip


def pci_device() -> PciDevice:
    """A device with two BARs, one of which has no place."""
    bars = (
        Bar(0, "BAR 0", "MEM", PhysAddr(0xFEA00000), 0x2000, 0x142200),
        Bar(2, "BAR 2", "IO", PhysAddr(0), 32, 0x20000100),
    )
    return PciDevice(
        address="0000:00:01.0", vendor=0x1234, device=0x11E8, subsystem_vendor=1, subsystem_device=2,
        revision=3, class_code=0x010802, driver=ESC_NAME, module="m", bars=bars, irq=24, interrupts="MSI",
        enabled=1, bus_master=True, bridge_to=None, dma_mask=(1 << 28) - 1, coherent_dma_mask=(1 << 64) - 1,
        bus_dma_limit=None, dma_ops="direct", max_segment_size=65536, segment_boundary_mask=0xFFFFFFFF,
        min_align_mask=None, numa_node=None, pools=(), managed=(Managed("pcim_release", None, None),),
        at=VirtAddr(KERNEL_SYMBOL),
    )  # fmt: skip


@dataclass
class FakeGuest:
    """What the commands ask of a Guest, answered from hand-made values."""

    live: bool = False
    running: bool = True
    closed: int = 0
    pauses: int = 0
    said: str = ""
    survives: bool = True

    def __post_init__(self) -> None:
        self.memory = tables()
        space = thing(format=X86_64_4LEVEL, read=lambda address, size: bytes(range(size)))
        self.kernel = thing(space=space, types=thing(sizeof=lambda name: 64))
        self.machine = thing(accel_reason="TCG was asked for", memory_size=1 << 20, accel="TCG")
        self.spawned: list[str] = []

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pauses += 1
        yield

    def info(self) -> GuestInfo:
        return GuestInfo(
            name="lab", release="6.1.0-test", build_id="ab" * 20, accel="TCG", memory=1 << 20, cpus=2,
            paging="x86-64 4-level", kaslr_offset=0x3000000, page_table_isolation=True, profile="warm",
            attach_seconds=0.25,
        )  # fmt: skip

    def cpus(self) -> list[Any]:
        kernel = thing(cpl=0, rip=KERNEL_SYMBOL, cr3=0x1001, halted=True)
        user = thing(cpl=3, rip=0x401234, cr3=0x3801, halted=False)
        return [
            thing(number=0, pid=0, comm="swapper/0", registers=kernel, root=0x1000, root_kind="kernel"),
            thing(number=1, pid=7, comm=ESC_NAME, registers=user, root=0x3000, root_kind="user"),
        ]

    def zones(self) -> list[Any]:
        return [zone(), zone(name="Normal", populated=False)]

    def buddy(self) -> list[FreeCounts]:
        return [FreeCounts(0, "DMA32", ("Unmovable", "Movable"), np.array([[2, 0, 5], [0, 0, 7]]))]

    def owners(self) -> Owners:
        rows = np.zeros(256, FRAME)
        rows["state"][16:] = FrameState.FREE
        rows["state"][200:] = FrameState.ANON
        rows["owner"][16:] = Owner.FREE
        rows["owner"][200:] = Owner.ANON
        rows["detail"][200:] = 1
        return Owners(rows, ("", f"{ESC_NAME} (7)"))

    def mapped_by(self, pfn: int) -> list[Alias]:
        whose = task(7, ESC_NAME)
        return [
            Alias(whose, "user", VirtAddr(0x7000), 0xC8067, 4096, 3, 0, ("P", "RW"), "WB"),
            Alias(
                None,
                "direct map",
                VirtAddr(KERNEL_SYMBOL),
                0x1E3,
                2 << 20,
                1,
                3,
                ("P", "PS"),
                "UC",
                3,
                2 << 20,
            ),
        ]

    def tasks(self) -> list[Any]:
        mm = thing(rss=3, total_vm=300, pgtables_bytes=20480)
        return [task(1, "init", mm), task(2, "kthreadd"), task(7, ESC_NAME, mm)]

    def task(self, pid: int) -> Any:
        if pid != 1:
            raise NoSuchTask(f"no task has PID {pid}; `kmi report` lists them")
        found = task(1, "init")
        stack = thing(
            name="[stack]", start=VirtAddr(STACK_END - 0x3000), end=VirtAddr(STACK_END), size=0x3000
        )
        stack.flag_names = ("READ", "WRITE", "GROWSDOWN")
        small, large = (
            thing(name="", start=VirtAddr(at), end=VirtAddr(at + size), size=size, flag_names=("READ",))
            for at, size in ((0x10000, 0x1000), (0x7FFD_0000_2000, 0x4000))
        )
        found.vmas = lambda: [small, large, stack]
        found.walk = self.walk
        return found

    def walk(self, va: VirtAddr, *, cpu: int | None = None, root: PhysAddr | None = None) -> Any:
        return walk(self.memory, X86_64_4LEVEL, PhysAddr(ROOT) if root is None else root, va)

    def symbol(self, name: str) -> VirtAddr:
        if name != "init_task":
            raise NoSuchSymbol(f"the kernel has no symbol {name!r}")
        return VirtAddr(KERNEL_SYMBOL)

    def symbol_at(self, address: int) -> Any:
        return thing(name="init_task", module=None), address - KERNEL_SYMBOL

    def page(self, pfn: int, owners: Owners | None = None) -> Any:
        if pfn > 255:
            raise NoSuchFrame(f"PFN {pfn:#x} has no struct page; this guest has 0x0-0xff")
        return thing(
            pfn=pfn, address=0xFFFF_EA00_0000_0000 + 64 * pfn, flags=0x10048, flag_names=("uptodate", "head"),
            refcount=3, mapcount=2, page_type=None, mapping=0xFFFF_8880_0000_1230, mapping_kind="anon",
            index=0x77, private=0, head=pfn - 1, order=3, is_tail=True, node=0, zone="DMA32",
            owner=Owner.ANON, owner_label=f"{ESC_NAME} (7)", migratetype="Movable",
            charge=ChargeKind.USER, memory_group="/lab",
        )  # fmt: skip

    def pci_devices(self) -> list[Any]:
        return [pci_device()]

    def dma_buffers(self) -> list[DmaBuffer]:
        runs = ((PhysAddr(0x7800), 0x800), (PhysAddr(0x9000), 0x400))
        return [
            DmaBuffer(
                "0000:00:01.0", "pages", ESC_NAME, BusAddr(0x5800), VirtAddr(KERNEL_SYMBOL), 0xC00, runs,
                "BIDIRECTIONAL", "edu", 7, "to RAM", 12,
            ),
            DmaBuffer(None, "coherent", "", None, None, 4096, (), None, "vmap area"),
        ]  # fmt: skip

    def bounce_buffer(self) -> BounceBuffer:
        return BounceBuffer(PhysAddr(0x4000), PhysAddr(0x8000), 8, 2)

    def swiotlb(self) -> Swiotlb:
        return Swiotlb(self.bounce_buffer(), True, (Bounce(PhysAddr(0x5800), 2, PhysAddr(0x7800), 0xC00),))

    def spawn(self, command: str) -> int:
        self.spawned.append(command)
        return 1

    def run(self, command: str, timeout: float = 30) -> Any:
        gone = command.startswith("[") and not self.survives
        return thing(returncode=int(gone), stdout=self.said)


@dataclass
class Outcome:
    """How a run of kmi ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr. Fails where there are more, or none."""
        assert self.err.startswith("kmi: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("kmi: ").rstrip("\n")


Kmi = Callable[..., Outcome]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """What boot and attach give."""
    guest = FakeGuest()
    monkeypatch.setattr(inspector, "boot", lambda *args, **kwargs: guest, raising=False)
    monkeypatch.setattr(inspector, "attach", lambda *args, **kwargs: guest, raising=False)
    return guest


@pytest.fixture
def kmi(
    fake: FakeGuest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kmi]:
    """Run a command line; without a terminal, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        status = main(arguments)
        return Outcome(status, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
