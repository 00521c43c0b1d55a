"""What drivers lose is told frame by frame, whatever others give back; what is exchanged is no leak."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inspector import Guest
from inspector.kernel.owners import Owner
from inspector.testing import Unexpected, expect
from inspector.units import VirtAddr

pytestmark = pytest.mark.guest

_EXAMPLE = Path(__file__).parents[3] / "docs" / "example"
_RING = 8
_TRIES = 3
_PAGE = 4096


@pytest.fixture(scope="module", params=["debian-5.10", "debian-6.1", "debian-6.12"])
def own(
    request: pytest.FixtureRequest, boot_guest: Callable[..., Guest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    """A guest with the example's program, and the lender, which logs where its pages lie."""
    folder = tmp_path_factory.mktemp("chatter")
    program = ["gcc", "-O2", "-static", "-o", str(folder / "chatter"), str(_EXAMPLE / "chatter.c")]
    subprocess.run(program, check=True)
    with boot_guest(request.param, "512M", 2) as guest:
        guest.put(folder / "chatter", "/chatter")
        guest.load_module("lender")
        lend(guest)  # what is made for the first loan stays
        yield guest


def lend(guest: Guest, how: str = "") -> set[int]:
    """A loan of eight pages that ends at once; the frames that the driver's log names."""
    guest.run("dmesg -c >/dev/null").check()
    pid = guest.spawn(f"/labs/loan page {_RING} {how}")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.05; done").check()
    guest.run(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.02; done").check()
    log = guest.run("dmesg").check().stdout
    return {int(at, 16) // _PAGE for at in re.findall(r"page \d+ at (0x[0-9a-f]+)", log)}


def ring_pages(guest: Guest) -> list[int]:
    """The PFNs of ringlog's messages, the oldest first, by its own variables."""
    with guest.paused():
        space, start = guest.kernel.space, guest.symbol("ringlog_ring")
        oldest = space.u32(guest.symbol("ringlog_next"))
        messages = [space.pointer(VirtAddr(start + (oldest + number) % _RING * 8)) for number in range(_RING)]
        return [int(guest.pfn(space.pointer(message))) for message in messages]  # its first member


@pytest.fixture
def ring(own: Guest) -> Iterator[Callable[[Path], None]]:
    """Loads a ringlog whose ring is full: eight messages hold a page each."""

    def load(sources: Path) -> None:
        own.load_module(sources)
        own.run(f"/chatter {_RING}").check()

    yield load
    own.run("rmmod ringlog 2>/dev/null")


def test_a_release_does_not_hide_a_leak(own: Guest, ring: Callable[[Path], None]) -> None:
    """Eight unmarked frames are lost and eight others given back: no more are in use than before."""
    ring(_EXAMPLE / "ringlog")
    before, given_back = own.snapshot(), ring_pages(own)
    lost: set[int] = set()

    def work() -> None:
        with expect.no_leaks(own, frames=4, objects=64, patience=0):
            own.run("rmmod ringlog").check()
            lost.update(lend(own, "--forget"))

    with pytest.raises(Unexpected) as raised:
        work()
    diff = own.snapshot().diff(before)
    assert set(diff.forgotten.tolist()) == lost
    assert len(lost) == len(given_back) == _RING
    assert diff.balance(Owner.UNMARKED, "").net < _RING  # their number alone does not tell
    (told,) = (line for line in str(raised.value).splitlines() if "of unmarked" in line)
    assert re.match(rf"  {_RING} frames \(32 KiB\) of unmarked: .*freed meanwhile; nothing points to ", told)


@pytest.mark.parametrize("mended", [False, True])
def test_an_exchange_is_no_leak(
    own: Guest, ring: Callable[[Path], None], tmp_path: Path, mended: bool
) -> None:
    """Each new message drives out an old one: with its page where the driver is mended."""
    shutil.copytree(_EXAMPLE, tmp_path / "example")
    if mended:
        subprocess.run(["git", "apply", "fix.patch"], cwd=tmp_path / "example", check=True)
    ring(tmp_path / "example" / "ringlog")
    for _ in range(_TRIES):  # a word that somebody left behind may hide a page, and show it the next time
        oldest = ring_pages(own)[:5]
        before = own.snapshot()
        own.run("/chatter 5").check()
        diff = own.snapshot().diff(before)
        lost, expected = sorted(diff.forgotten.tolist()), [] if mended else sorted(oldest)
        if lost == expected:
            break
    assert lost == expected
    found = [leak.count for leak in diff.leaked(frames=4).found if leak.holder.owner == Owner.UNMARKED]
    assert (not found) if mended else found[0] >= 5


def test_what_the_kernel_does_of_itself_is_no_leak(own: Guest) -> None:
    """Programs come and go, files are read, address spaces are exchanged: nothing is lost."""
    before = own.snapshot()
    for _ in range(3):
        own.run("ls -R /proc/1; sort /proc/slabinfo | head -3; dmesg | tail -3", timeout=120).check()
    diff = own.snapshot().diff(before)
    assert len(diff.pfns)
    assert diff.forgotten.tolist() == []
