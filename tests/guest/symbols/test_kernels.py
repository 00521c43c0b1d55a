"""Each kernel of the manifest: it boots; its names and types, cold and warm, are those it gives itself."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inspector import Guest
from inspector.images import fetch_kernel
from inspector.images.manifest import manifest
from inspector.symbols import Kernel, SymbolTable, attach

pytestmark = pytest.mark.guest

STOCK = ["debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"]
GUESTS = [(name, False) for name in manifest().kernels] + [(name, True) for name in STOCK]
Row = tuple[str, str, str]


@pytest.fixture(scope="module", params=GUESTS, ids=lambda spec: f"{spec[0]}{'-la57' if spec[1] else ''}")
def kernel_guest(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of each kernel, and of the stock ones with a CPU that can do 5 levels."""
    name, la57 = request.param
    with boot_guest(name, "512M", 2, la57=la57) as guest:
        config = fetch_kernel(name).config
        assert config
        # The option went in 6.17: later kernels always can.
        five = la57 and "# CONFIG_X86_5LEVEL is not set" not in config.read_text()
        assert guest.kernel.space.format.name == f"x86-64 {5 if five else 4}-level"
        yield guest


def test_names_and_types(kernel_guest: Guest, tmp_path: Path) -> None:
    theirs = listed(gzip.decompress(kernel_guest.run("gzip -1 </proc/kallsyms", timeout=90).stdout_bytes))
    assert len(theirs) > 50_000
    release = kernel_guest.run("uname -r").stdout.strip()
    kernels = []
    for profile in ("cold", "warm"):
        with kernel_guest.paused():
            kernel = attach(kernel_guest.memory, kernel_guest.machine.registers(), cache=tmp_path)
        assert (kernel.profile, kernel.release) == (profile, release)
        assert rows(kernel.symbols) == theirs
        check_types(kernel)
        kernels.append(kernel)
    notes = kernel_guest.run("od -An -v -tx1 /sys/kernel/notes | tr -d ' \n'").stdout
    # A note's head: n_namesz 4, n_descsz 20, n_type 3 (NT_GNU_BUILD_ID), GNU.
    assert f"040000001400000003000000474e5500{kernels[0].build_id}" in notes


def test_what_tests_need(kernel_guest: Guest, start: Callable[[Guest, str], int]) -> None:
    """Zram has a compressor, so that there is swap; the lab programs run where there are no huge pages."""
    zram = "/sys/block/zram0"
    kernel_guest.run(f"echo 8M >{zram}/disksize && echo 1 >{zram}/reset").check()
    pid = start(kernel_guest, "/labs/touch 64K --no-thp")
    assert kernel_guest.task(pid).comm == "touch"


def listed(text: bytes) -> set[Row]:
    """/proc/kallsyms without what modules, BPF and ftrace add: address, kind, name."""
    lines = (line.split() for line in text.decode().splitlines())
    return {(line[0], line[1], line[2]) for line in lines if len(line) == 3}


def rows(symbols: SymbolTable) -> set[Row]:
    """The same of our table."""
    return {(f"{symbol.address:016x}", symbol.kind, symbol.name) for symbol in symbols}


def check_types(kernel: Kernel) -> None:
    """Every size and offset that the kernel tells crash tools is that of its BTF."""
    info, types = kernel.vmcoreinfo, kernel.types
    checked = 0
    for key in info.values:
        match = re.fullmatch(r"(SIZE|OFFSET)\((\w+)\.?(\w*)\)", key)
        if not match:
            continue
        kind, name, member = match.groups()
        if kind == "SIZE" and types.has(name):
            assert types.sizeof(name) == info.size(name), key
            checked += 1
        elif kind == "OFFSET" and types.has(name, member):
            assert types.offsetof(name, member) == info.offset(f"{name}.{member}"), key
            checked += 1
    assert checked > 40
