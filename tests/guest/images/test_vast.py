"""Gigabytes of kernel virtual space in 512 MiB of RAM: what is written comes back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from inspector import Guest
from inspector.errors import PageFault
from inspector.images.manifest import manifest
from inspector.kernel.vmalloc import VmallocArea
from inspector.units import GIB, MIB, VirtAddr

pytestmark = pytest.mark.guest

_FRAMES = 16
_STEP = 500  # MiB between the pages that are written
_PLACES = range(0, 16 * 1024, _STEP)  # MiB; over the whole range, and more of them than frames

_EACH = f"for i in $(seq {_PLACES.start} {_STEP} {_PLACES[-1]}); do"
_WRITE = f'{_EACH} echo "page $i" | dd of=/dev/vast bs=1M seek=$i conv=notrunc; done 2>/dev/null'
_READ = f"{_EACH} dd if=/dev/vast bs=4k skip=$((i * 256)) count=1 2>/dev/null | head -n 1; done"


@pytest.fixture(scope="module", params=manifest().built_for)
def booted(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of each kernel that modules are built for, with two CPUs."""
    with boot_guest(request.param, "512M", 2) as guest:
        yield guest


@pytest.fixture
def vast(booted: Guest) -> Iterator[Guest]:
    """The same with a range of 16 GiB, of which 16 pages are in RAM."""
    booted.load_module("vast", gib=16, frames=_FRAMES)
    yield booted
    booted.unload_module("vast")


def area(guest: Guest) -> VmallocArea | None:
    """The range: there is no other of that size."""
    return next((found for found in guest.vmalloc_areas() if found.size >= 16 * GIB), None)


def start_of(guest: Guest) -> VirtAddr:
    """Where the range begins."""
    found = area(guest)
    assert found
    return found.start


def counts(guest: Guest) -> dict[str, int]:
    """The module's own word, in debugfs."""
    text = guest.run("cd /sys/kernel/debug/vast && grep . *").check().stdout
    return {name: int(value) for name, value in re.findall(r"^(\w+):(\d+)$", text, re.MULTILINE)}


def write(guest: Guest) -> None:
    """Write a line into each of the places."""
    guest.run(_WRITE, timeout=120).check()


def read(guest: Guest) -> list[str]:
    """The lines that are there."""
    return guest.run(_READ, timeout=120).check().stdout.splitlines()


def test_what_was_written_comes_back(vast: Guest) -> None:
    write(vast)
    assert read(vast) == [f"page {place}" for place in _PLACES]
    told = counts(vast)
    # Each place is brought in to be written and, as the others have driven it out, to be read.
    assert told["faults"] == 2 * len(_PLACES)
    assert told["evicted"] == told["faults"] - _FRAMES
    assert told["packed"] == len(_PLACES) - _FRAMES


def test_only_the_last_pages_are_in_ram(vast: Guest) -> None:
    write(vast)
    start = start_of(vast)
    with vast.paused():
        mappings = vast.kernel.space.scan(start, VirtAddr(start + 16 * GIB))
        last = [start + place * MIB for place in _PLACES[-_FRAMES:]]
        assert sorted(int(va) for va in mappings["va"]) == last
        for place, va in zip(_PLACES[-_FRAMES:], last, strict=True):
            text = f"page {place}\n".encode()
            assert vast.read_virt(VirtAddr(va), len(text)) == text
        with pytest.raises(PageFault):
            vast.read_virt(start, 1)


def test_it_is_kept_compressed(vast: Guest) -> None:
    write(vast)
    told = counts(vast)
    assert 0 < told["packed_bytes"] < told["packed"] * 4096 // 10  # pages of zeros but for one line
    with vast.paused():
        view = vast.kernel.view("vast", vast.symbol("vast"))
        assert {name: view.int(name) for name in told} == told
        assert view.ptr("start") == start_of(vast)


def test_what_was_never_written_is_zero(vast: Guest) -> None:
    read_back = vast.run("dd if=/dev/vast bs=1M skip=7777 count=1 2>/dev/null | tr -d '\\0' | wc -c").check()
    assert read_back.stdout.strip() == "0"
    assert counts(vast)["faults"] == MIB // 4096


def test_two_cpus_at_once(vast: Guest) -> None:
    """Two writers with their own halves of each page, and the same pages."""
    writer = (
        'for i in $(seq 1 120); do printf "%s %%05d" $i | dd of=/dev/vast bs=2048 seek=$((i * 2 + %d)) '
        "conv=notrunc; done 2>/dev/null"
    )
    vast.run(f"({writer % ('a', 0)}) & ({writer % ('b', 1)}) & wait", timeout=120).check()
    for name, half in (("a", 0), ("b", 1)):
        reader = (
            f"for i in $(seq 1 120); do dd if=/dev/vast bs=2048 skip=$((i * 2 + {half})) count=1 2>/dev/null"
            " | head -c 7; echo; done"
        )
        lines = vast.run(reader, timeout=120).check().stdout.splitlines()
        assert lines == [f"{name} {number:05d}" for number in range(1, 121)]


def test_unloads_cleanly(booted: Guest) -> None:
    booted.load_module("vast", gib=1, frames=_FRAMES)
    booted.run("dd if=/dev/zero of=/dev/vast bs=1M count=4 conv=notrunc 2>/dev/null").check()
    probes = "cat /sys/kernel/debug/kprobes/list"
    assert "bad_area_nosemaphore" in booted.run(probes).check().stdout
    booted.unload_module("vast")
    assert "bad_area_nosemaphore" not in booted.run(probes).check().stdout
    assert not [found for found in booted.vmalloc_areas() if found.size >= GIB]
    # TAINT_DIE, TAINT_WARN: an oops or a warning.
    assert not int(booted.run("cat /proc/sys/kernel/tainted").stdout) & (1 << 7 | 1 << 9)
