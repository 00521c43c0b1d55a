"""16 GiB of address space in 512 MiB of RAM: what is written comes back on both sides, or is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from inspector import Guest
from inspector.errors import LabFailed, MachineError, PageFault
from inspector.images.manifest import manifest
from inspector.kernel import xarray
from inspector.kernel.vmalloc import VmallocArea
from inspector.labs.actor import Actor
from inspector.units import GIB, MIB, Pfn, VirtAddr

pytestmark = pytest.mark.guest

PAGE = 4096
_FRAMES = 16
_STEP = 500  # MiB between the pages that are written
_PLACES = range(0, 16 * 1024, _STEP)  # MiB; over the whole range, and more of them than frames

_EACH = f"for i in $(seq {_PLACES.start} {_STEP} {_PLACES[-1]}); do"
_WRITE = f'{_EACH} echo "page $i" | dd of=/dev/vast bs=1M seek=$i conv=notrunc; done 2>/dev/null'
_READ = f"{_EACH} dd if=/dev/vast bs=4k skip=$((i * 256)) count=1 2>/dev/null | head -n 1; done"
_SIGBUS = 7


@pytest.fixture(scope="module", params=manifest().loaded_into)
def booted(request: pytest.FixtureRequest, boot_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest of each kernel that modules are built for, with two CPUs."""
    with boot_guest(request.param, "512M", 2) as guest:
        yield guest


def check_sound(guest: Guest) -> None:
    """No oops, no warning of the kernel's (TAINT_DIE, TAINT_WARN)."""
    assert not int(guest.run("cat /proc/sys/kernel/tainted").stdout) & (1 << 7 | 1 << 9)


@pytest.fixture
def vast(booted: Guest) -> Iterator[Guest]:
    """The same with a range of 16 GiB, of which 16 pages are in RAM."""
    booted.load_module("vast", gib=16, frames=_FRAMES)
    yield booted
    booted.unload_module("vast")
    check_sound(booted)


@pytest.fixture
def small(booted: Guest) -> Iterator[Guest]:
    """The same, and 1 MiB for all that is not in RAM."""
    booted.load_module("vast", gib=16, frames=_FRAMES, limit=1)
    yield booted
    booted.unload_module("vast")
    check_sound(booted)


@pytest.fixture
def actor(booted: Guest) -> Iterator[Actor]:
    """A task of user space; it is gone before the module is unloaded."""
    started = Actor(booted)
    yield started
    started.close()


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


def drive_out(guest: Guest) -> None:
    """Have as many other pages brought in as there are frames; nothing is kept of pages of zeros."""
    guest.run(f"dd if=/dev/vast of=/dev/null bs=4k skip=2000000 count={_FRAMES} 2>/dev/null").check()


def of_task(guest: Guest, task: Actor, va: VirtAddr) -> Pfn | None:
    """The frame of a task's page; /proc/PID/pagemap leaves a VM_PFNMAP mapping out."""
    return guest.task(task.pid).walk(va).pfn


def test_what_was_written_comes_back(vast: Guest) -> None:
    write(vast)
    assert read(vast) == [f"page {place}" for place in _PLACES]
    told = counts(vast)
    # Each place is brought in to be written and, as the others have driven it out, to be read.
    assert told["kernel_faults"] == 2 * len(_PLACES)
    assert told["user_faults"] == 0
    assert told["evicted"] == told["kernel_faults"] - _FRAMES
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
    assert 0 < told["packed_bytes"] < told["packed"] * PAGE // 10  # pages of zeros but for one line
    assert told["packed_bytes"] <= told["packed_room"]
    with vast.paused():
        view = vast.kernel.view("vast", vast.symbol("vast"))
        assert {name: view.int(name) for name in told if name != "refused"} == {
            name: value for name, value in told.items() if name != "refused"
        }
        assert view.ptr("start") == start_of(vast)


def test_the_store_by_its_xarray(vast: Guest) -> None:
    """Each page's entry: its place in the ring, or an object; together they are what the module counts."""
    write(vast)
    told = counts(vast)
    with vast.paused():
        pages = vast.kernel.view("vast", vast.symbol("vast")).at("pages")
        entries = [xarray.load(pages, place * MIB // PAGE) for place in _PLACES]
        kept = [entry for entry in entries if not xarray.is_value(entry)]
        assert [xarray.is_value(entry) for entry in entries[-_FRAMES:]] == [True] * _FRAMES
        sizes = [vast.kernel.view("packed", VirtAddr(entry)).int("size") for entry in kept]
        assert xarray.load(pages, 1) == xarray.load(pages, 1 << 40) == 0
    assert (len(kept), sum(sizes)) == (told["packed"], told["packed_bytes"])


def test_what_was_never_written_is_zero(vast: Guest) -> None:
    read_back = vast.run("dd if=/dev/vast bs=1M skip=7777 count=1 2>/dev/null | tr -d '\\0' | wc -c").check()
    assert read_back.stdout.strip() == "0"
    told = counts(vast)
    assert told["kernel_faults"] == MIB // PAGE
    assert told["packed"] == told["packed_bytes"] == 0  # nothing is kept of zeros


def test_what_does_not_shrink_comes_back(vast: Guest) -> None:
    """64 pages of noise, four times as many as there are frames."""
    vast.run("dd if=/dev/urandom of=/tmp/noise bs=4k count=64 2>/dev/null").check()
    vast.run("dd if=/tmp/noise of=/dev/vast bs=4k seek=1000 conv=notrunc 2>/dev/null").check()
    told = counts(vast)
    assert told["packed_bytes"] == told["packed"] * PAGE == (64 - _FRAMES) * PAGE
    vast.run("dd if=/dev/vast bs=4k skip=1000 count=64 2>/dev/null | cmp - /tmp/noise; s=$?; rm /tmp/noise; "
             "exit $s").check()  # fmt: skip


def test_page_tables_come_and_go(vast: Guest) -> None:
    start = start_of(vast)
    assert vast.kernel.space.walk(start).phys is None
    vast.run("echo here | dd of=/dev/vast conv=notrunc 2>/dev/null").check()
    with vast.paused():
        steps = vast.kernel.space.walk(start).steps
    assert steps[-1].level.name == "PTE"
    assert counts(vast)["tables"] == 1
    write(vast)  # each place is alone in its table
    assert counts(vast)["tables"] == _FRAMES
    drive_out(vast)
    assert counts(vast)["tables"] == 1
    with vast.paused():
        walk = vast.kernel.space.walk(start)
        # The PMD table goes with the last PTE table in it: the walk ends where it was referred to.
        assert walk.phys is None
        assert (walk.steps[-1].level.name, walk.steps[-1].entry) == ("PUD", 0)


def test_user_and_kernel_see_one_page(vast: Guest, actor: Actor) -> None:
    page = actor.map("page", 512, "shared", "file=/dev/vast")
    wrote = actor.write(page + PAGE, ord("u"))
    assert (wrote.minor, wrote.signal) == (1, 0)
    start = start_of(vast)
    with vast.paused():
        (by_qemu,) = re.findall(r"gpa: (0x\w+)", vast.machine.hmp(f"gva2gpa {start + PAGE:#x}"))
        assert of_task(vast, actor, VirtAddr(page + PAGE)) == int(by_qemu, 16) // PAGE
    assert vast.run("dd if=/dev/vast bs=4k skip=1 count=1 2>/dev/null | head -c 1").stdout == "u"
    vast.run("printf kernel | dd of=/dev/vast bs=4k seek=1 conv=notrunc 2>/dev/null").check()
    again = actor.read(page + PAGE)
    assert (again.value, again.minor) == (ord("k"), 0)
    told = counts(vast)
    assert (told["user_faults"], told["kernel_faults"]) == (1, 0)  # the kernel found it mapped


def test_eviction_takes_it_from_both(vast: Guest, actor: Actor) -> None:
    page = actor.map("page", 1, "shared", "file=/dev/vast")
    actor.write(page, 7)
    child = actor.fork()
    assert child.read(page).value == 7
    assert of_task(vast, child, page) == of_task(vast, actor, page) is not None
    drive_out(vast)
    assert of_task(vast, child, page) is of_task(vast, actor, page) is None
    assert vast.kernel.space.walk(start_of(vast)).phys is None
    assert [child.read(page).value, actor.read(page).value] == [7, 7]


def test_by_another_node_of_the_device(vast: Guest, actor: Actor) -> None:
    """Eviction finds mappings by whatever inode they were opened."""
    vast.run("mknod /tmp/node c 10 $(awk '$2 == \"vast\" { print $1 }' /proc/misc)").check()
    one = actor.map("one", 1, "shared", "file=/dev/vast")
    two = actor.map("two", 1, "shared", "file=/tmp/node")
    actor.write(one, 5)
    assert actor.read(two).value == 5
    assert of_task(vast, actor, one) == of_task(vast, actor, two) is not None
    drive_out(vast)
    assert of_task(vast, actor, one) is of_task(vast, actor, two) is None
    actor.ask("unmap one 1")
    actor.write(two, 6)
    drive_out(vast)
    assert of_task(vast, actor, two) is None
    vast.run("rm /tmp/node").check()


def test_what_cannot_be_mapped(vast: Guest, actor: Actor) -> None:
    with pytest.raises(LabFailed, match="Invalid argument"):
        actor.map("private", 1, "file=/dev/vast")
    with pytest.raises(LabFailed, match="No such device or address"):
        actor.map("large", 16 * GIB // PAGE + 1, "shared", "file=/dev/vast")
    assert actor.map("all", 16 * GIB // PAGE, "shared", "file=/dev/vast")


def test_where_sleeping_is_not_allowed(vast: Guest) -> None:
    """A load with page faults disabled sees what is in RAM, and is refused what is not."""
    vast.run("printf 12345678 | dd of=/dev/vast bs=4k seek=9 conv=notrunc 2>/dev/null").check()
    before = counts(vast)
    assert vast.run("/labs/vast peek $((9 * 4096))").check().stdout == "0x3837363534333231\n"
    missing = vast.run("/labs/vast peek $((10 * 4096))")
    assert (missing.returncode, missing.stderr.strip()) == (1, "cannot peek: Bad address")
    assert counts(vast) == before | {"refused": before["refused"] + 1}


def test_when_it_is_full(small: Guest, actor: Actor) -> None:
    """Who asks for more is told: no oops, no OOM killer, and no less of what was written."""
    page = actor.map("page", 4096, "shared", "file=/dev/vast")
    small.run("dd if=/dev/urandom of=/tmp/noise bs=1M count=2 2>/dev/null").check()
    wrote = small.run("dd if=/tmp/noise of=/dev/vast bs=64k seek=16 conv=notrunc")
    assert "Input/output error" in wrote.stderr
    assert 0 < counts(small)["packed_room"] <= MIB
    assert "Input/output error" in small.run("dd if=/dev/vast of=/dev/null bs=4k skip=3000000 count=1").stderr
    touched = actor.read(page)
    assert touched.signal == _SIGBUS
    # What is in RAM is still served, and what is not can be exchanged with what is.
    there = small.run("dd if=/dev/vast bs=64k skip=16 count=1 2>/dev/null | cmp -n 65536 - /tmp/noise")
    small.run("rm /tmp/noise").check()
    assert there.returncode == 0, there.stderr


def test_two_cpus_on_both_sides(vast: Guest) -> None:
    """Four processes in the same pages, by mappings, read(), write() and copies within the range."""
    assert vast.run("/labs/vast hammer 4 64 1500", timeout=300).check().stdout == "ok\n"
    told = counts(vast)
    assert told["kernel_faults"] > 0
    assert told["user_faults"] > 0
    assert told["evicted"] > 1000


def test_least_frames(booted: Guest) -> None:
    """Fewer than one instruction on each CPU may need at once would never get on."""
    with pytest.raises(MachineError, match="vast: gib must be 1 or more, frames 8 or more"):
        booted.load_module("vast", frames=7)


def test_unloads_cleanly(booted: Guest) -> None:
    booted.load_module("vast", gib=1, frames=_FRAMES)
    booted.run("dd if=/dev/zero of=/dev/vast bs=1M count=4 conv=notrunc 2>/dev/null").check()
    probes = "cat /sys/kernel/debug/kprobes/list"
    assert "bad_area_nosemaphore" in booted.run(probes).check().stdout
    (start,) = [found.start for found in booted.vmalloc_areas() if found.size >= GIB]
    assert booted.kernel.space.walk(start).steps[-1].level.name in ("PMD", "PTE")
    booted.unload_module("vast")
    assert "bad_area_nosemaphore" not in booted.run(probes).check().stdout
    assert not [found for found in booted.vmalloc_areas() if found.size >= GIB and found.pages]
    with booted.paused():
        assert booted.kernel.space.walk(start).steps[-1].level.name == "PUD"  # no table is left below
    check_sound(booted)
