"""Our own modules in guests: built against their headers, loaded, read by name and type, unloaded.

What the driver logs and what its borrower writes say where pages lie.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from inspector import Guest
from inspector.errors import MachineError, NoSuchSymbol, NoSuchType, SetupError, UsageError
from inspector.images import (
    KernelFiles,
    build_module,
    default_kernel,
    fetch_checkpatch,
    fetch_headers,
    fetch_kernel,
    module_names,
)
from inspector.images.manifest import manifest, source_dir
from inspector.kernel.memmap import MemMap
from inspector.kernel.owners import Owner
from inspector.kernel.vmas import Vma
from inspector.kernlog import KernelLog
from inspector.snapshots.leaks import Leaks
from inspector.snapshots.records import Holder
from inspector.snapshots.snapshot import Snapshot
from inspector.units import Pfn, PhysAddr, VirtAddr

pytestmark = pytest.mark.guest

Start = Callable[[Guest, str], int]

WAYS = ("pfn", "remap", "page", "pages", "fault")  # as enum lender_way has them
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst

_TRIES, _USES = 5, 4
_EXAMPLE = Path(__file__).parents[3] / "docs" / "example" / "ringlog"

# What uses each module well: programs that stay until they are killed.
USES = {
    "edu": [f"dma {kind}" for kind in ("pages", "kmalloc", "coherent", "pinned", "stale")],
    "lender": [f"loan {way} 32 {how}" for way in WAYS for how in ("--account", "--movable --dontcopy")],
    "shades": ["shades wb wc uc-", "shades uc- wb wc"],
    "vast": [
        "sh -c 'dd if=/dev/urandom of=/dev/vast bs=1M seek=99 count=4 2>&1; exec sleep 999'",
        "sh -c '/labs/vast hammer 2 400 1000; exec sleep 999'",
    ],
}


@pytest.fixture(scope="module", params=manifest().loaded_into)
def booted(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of each kernel that modules are built for."""
    with boot_guest(request.param, "512M", 1) as guest:
        yield guest


@pytest.fixture
def bare(booted: Guest) -> Iterator[Guest]:
    """The same with none of our modules, also after a test that failed."""
    yield booted
    booted.run("rmmod lender")


@pytest.fixture
def lent(bare: Guest) -> Iterator[Guest]:
    """The same guest while the lender is loaded."""
    bare.load_module("lender")
    yield bare
    bare.unload_module("lender")


@dataclass(frozen=True)
class Loan:
    """What a borrower and the lender said of a loan."""

    pid: int
    address: VirtAddr
    pagemap: list[int]
    number: int
    pages: list[PhysAddr]

    def vma(self, guest: Guest) -> Vma:
        """The mapping."""
        return next(vma for vma in guest.task(self.pid).vmas() if vma.start == self.address)


Borrow = Callable[..., Loan]


@pytest.fixture
def borrow(lent: Guest, start: Start) -> Iterator[Borrow]:
    """Start a borrower; it ends with the test."""
    pids: list[int] = []

    def ask(way: str, count: int, options: str = "") -> Loan:
        lent.run("dmesg -c >/dev/null").check()
        pids.append(start(lent, f"/labs/loan {way} {count} {options}"))
        pid, address, _, *entries = lent.run(f"cat /tmp/spawn-{pids[-1]}.log").check().stdout.split()
        log = lent.run("dmesg").check().stdout
        said = re.findall(r"lender: loan (\d+) page (\d+) at (0x[0-9a-f]+)", log)
        assert [int(index) for _, index, _ in said] == list(range(count))
        return Loan(
            int(pid),
            VirtAddr(int(address, 16)),
            [int(entry, 16) for entry in entries],
            int(said[0][0]),
            [PhysAddr(int(place, 16)) for _, _, place in said],
        )

    yield ask
    for pid in pids:
        lent.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done")


@pytest.fixture(scope="module", params=manifest().built_for)
def kernel(request: pytest.FixtureRequest) -> KernelFiles:
    """Each kernel that modules are built for, with its headers."""
    try:
        found = fetch_kernel(request.param)
        fetch_headers(found)
    except SetupError as error:
        pytest.skip(str(error))
    return found


@pytest.mark.parametrize("module", [*module_names(), _EXAMPLE], ids=lambda module: Path(module).name)
def test_builds_without_a_warning_and_with_types(kernel: KernelFiles, module: str | Path) -> None:
    built = build_module(kernel, module)
    log = (built.parent / "build.log").read_text()
    assert "warning" not in log.lower()
    assert "Skipping BTF" not in log
    assert kernel.config
    types = "CONFIG_DEBUG_INFO_BTF_MODULES=y\n" in kernel.config.read_text()  # from Linux 5.11 on
    assert types == (b"\0.BTF\0" in built.read_bytes())


@pytest.fixture(scope="module")
def checkpatch() -> Path:
    """The script of the kernel's sources; a missing prerequisite skips."""
    try:
        script = fetch_checkpatch(fetch_kernel(default_kernel()))
        if not shutil.which("perl"):
            raise SetupError("there is no perl for checkpatch.pl")
    except SetupError as error:
        pytest.skip(str(error))
    return script


def complaints(checkpatch: Path, *sources: Path) -> list[str]:
    """What the script has against files, by its own words; it says nothing else."""
    command = ["perl", str(checkpatch), "--no-tree", "--strict", "--terse", "--no-summary", "-f"]
    result = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=False)
    assert not result.stderr
    assert bool(result.returncode) == bool(result.stdout)
    return result.stdout.splitlines()


@pytest.mark.parametrize("module", [*module_names(), _EXAMPLE], ids=lambda module: Path(module).name)
def test_passes_checkpatch(checkpatch: Path, module: str | Path) -> None:
    assert not complaints(checkpatch, *sorted((source_dir() / "modules" / module).glob("*.[ch]")))


def test_checkpatch_has_its_lists(checkpatch: Path, tmp_path: Path) -> None:
    """The misspelt words and the structs that are to be const: it reads both from beside itself."""
    source = tmp_path / "bad.c"
    source.write_text(
        "// SPDX-License-Identifier: GPL-2.0\n/* Such adresses are numbers. */\n"
        "static struct file_operations bad_fops = { };\n"
    )
    said = " ".join(complaints(checkpatch, source))
    assert "'adresses' may be misspelled" in said
    assert "struct file_operations should normally be const" in said


# The device reaches all of the guest's RAM then, and nothing is refused.
PARAMETERS = {"edu": {"mask": 32}}


def use(guest: Guest, start: Start, name: str, commands: list[str]) -> None:
    """Load a module, have it used, unload it."""
    guest.load_module(name, **PARAMETERS.get(name, {}))
    try:
        for command in commands:
            pid = start(guest, command if command.startswith("sh ") else f"/labs/{command}")
            guest.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done").check()
    finally:
        guest.unload_module(name)


def leaked(guest: Guest, before: Snapshot) -> Leaks:
    """What is in use that was not; what is freed late, by RCU or a worker, has some seconds to go."""
    for _ in range(_TRIES):
        if not (leaks := guest.snapshot().diff(before).leaked()):
            break
        guest.run("sleep 0.2").check()
    return leaks


@pytest.mark.parametrize("name", module_names())
def test_leaves_nothing_behind(bare: Guest, start: Start, name: str) -> None:
    """A driver that leaks does so with each use; the kernel around it takes and keeps things now and then."""
    log = KernelLog(bare)
    use(bare, start, name, USES[name])  # what is made when it is done for the first time
    grew: set[Holder] | None = None
    for _ in range(_USES):
        before = bare.snapshot()
        use(bare, start, name, USES[name])
        holders = {leak.holder for leak in leaked(bare, before).found}
        grew = holders if grew is None else grew & holders
        if not grew:
            break
    assert not grew
    assert not log.complaint()


def test_what_is_left_behind_is_found(bare: Guest, start: Start) -> None:
    commands = ["loan page 4", "loan pfn 3 --forget"]
    use(bare, start, "lender", commands)
    bare.run("dmesg -c >/dev/null").check()
    before = bare.snapshot()
    use(bare, start, "lender", commands)
    leaks = {leak.holder.owner: leak for leak in leaked(bare, before).found}
    places = re.findall(r"page \d+ at (0x[0-9a-f]+)", bare.run("dmesg").check().stdout)[-3:]
    lost = {int(place, 16) >> 12 for place in places}
    assert leaks[Owner.UNMARKED].count == len(lost)
    assert lost <= set(leaks[Owner.UNMARKED].pfns.tolist())


def test_comes_and_goes(bare: Guest) -> None:
    for _ in range(2):
        module = bare.load_module("lender", most=7)
        (line,) = re.findall(r"^lender .*$", bare.run("cat /proc/modules").stdout, re.MULTILINE)
        assert line.split()[1:3] == [str(module.size), "0"]
        assert int(line.split()[5], 16) == module.base
        assert bare.run("cat /sys/module/lender/parameters/most").stdout == "7\n"
        assert "lender.ko" not in bare.run("ls /modules").stdout  # its file is not page cache for ever
        bare.unload_module("lender")
        assert "lender" not in bare.run("cat /proc/modules").stdout
        assert "lender" not in {found.name for found in bare.modules()}
        with pytest.raises(NoSuchSymbol):
            bare.symbol("lender_fault")
        with pytest.raises(NoSuchType):
            bare.kernel.types.find("struct loan")


def test_its_symbols_agree_with_kallsyms(lent: Guest) -> None:
    restrict = "/proc/sys/kernel/kptr_restrict"
    before = lent.run(f"cat {restrict}").stdout.strip()
    listing = lent.run(
        f"echo 1 >{restrict}; grep '\\[lender\\]' /proc/kallsyms; echo {before} >{restrict}"
    ).stdout
    symbols = re.findall(r"^([0-9a-f]+) \w (lender_\w+)\t", listing, re.MULTILINE)
    assert {"lender_fault", "lender_mmap", "lender_fops", "lender_device"} <= {name for _, name in symbols}
    for address, name in symbols:
        assert lent.symbol(name) == int(address, 16), name


def test_its_types_read_what_it_logs(lent: Guest, borrow: Borrow) -> None:
    """The struct that a VMA's vm_private_data leads to, by the module's own BTF, says what the log says."""
    loan = borrow("fault", 3)
    with lent.paused():
        vma = lent.kernel.view("vm_area_struct", loan.vma(lent).address)
        view = lent.kernel.view("loan", vma.ptr("vm_private_data"))
        assert (view.int("number"), view.int("count"), view.int("way")) == (
            loan.number,
            3,
            WAYS.index("fault"),
        )
        array = view.ptr("pages")
        pages = [lent.kernel.space.pointer(VirtAddr(array + 8 * index)) for index in range(3)]
        memmap = MemMap(lent.kernel)
        assert [memmap.pfn(page) * 4096 for page in pages] == loan.pages
    assert lent.kernel.types.enum("lender_way") == {
        **{f"LENDER_{way.upper()}": i for i, way in enumerate(WAYS)},
        "LENDER_WAYS": len(WAYS),
    }


@pytest.mark.parametrize("way", WAYS)
def test_pages_lie_where_the_driver_says(lent: Guest, borrow: Borrow, way: str) -> None:
    loan = borrow(way, 3)
    task = lent.task(loan.pid)
    for index, (place, entry) in enumerate(zip(loan.pages, loan.pagemap, strict=True)):
        text = f"loan page {index}\0".encode()
        assert lent.read_phys(place, len(text)) == text  # what the borrower wrote
        assert task.walk(VirtAddr(loan.address + index * 4096)).phys == place
        # The kernel tells nothing of a VM_PFNMAP VMA's pages there (walk_page_test, mm/pagewalk.c).
        assert (entry & _FRAME if entry & _PRESENT else None) == (
            None if way in ("pfn", "remap") else place // 4096
        )


@pytest.mark.parametrize(("way", "flag"), [("pfn", "pf"), ("remap", "pf"), ("page", "mm"), ("pages", "mm")])
def test_the_way_marks_the_vma(lent: Guest, borrow: Borrow, way: str, flag: str) -> None:
    loan = borrow(way, 1)
    smaps = lent.run(f"cat /proc/{loan.pid}/smaps").check().stdout
    (flags,) = re.findall(rf"^{loan.address:08x}-.*/dev/lender\n(?:\w+: .*\n)*?VmFlags: (.*)$", smaps, re.M)
    assert flag in flags.split()


def test_a_leak_stays_after_rmmod(bare: Guest, start: Start) -> None:
    bare.load_module("lender")
    pid = start(bare, "/labs/loan page 2 --forget")
    bare.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done")
    bare.unload_module("lender")
    log = bare.run("dmesg").check().stdout
    assert "forgets 2 pages" in log
    for place in re.findall(r"page \d+ at (0x[0-9a-f]+)", log)[-2:]:
        page = bare.page(Pfn(int(place, 16) // 4096))
        assert (page.refcount, page.mapcount) == (1, 0)
        assert bare.read_phys(PhysAddr(int(place, 16)), 9) == b"loan page"


def test_is_not_loaded_twice(lent: Guest) -> None:
    with pytest.raises(MachineError, match="refuses lender: it is loaded already"):
        lent.load_module("lender")


def test_is_not_unloaded_while_it_is_used(lent: Guest, borrow: Borrow) -> None:
    borrow("page", 1)
    with pytest.raises(MachineError, match="lender is not unloaded: its reference count is 1"):
        lent.unload_module("lender")


def test_the_kernels_reason(bare: Guest) -> None:
    with pytest.raises(MachineError, match="`many' invalid for parameter `most'"):
        bare.load_module("lender", most="many")
    with pytest.raises(UsageError, match="no parameter 'least'"):
        bare.load_module("lender", least=1)
    with pytest.raises(MachineError, match="lender is not unloaded: it is not loaded"):
        bare.unload_module("lender")
