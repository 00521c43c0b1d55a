"""Who owns what: the map by owner, slabs, vmalloc, swap, memory, and the ways between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inspector.kernel.memcg import MemoryGroup
from inspector.kernel.owners import Owner
from inspector.tui.places import Place, ViewName
from inspector.tui.views.frames import FramesView
from inspector.units import Pfn, VirtAddr

if TYPE_CHECKING:
    from tests.tui.conftest import FakeSource, Screen

Play = Callable[..., None]


@pytest.fixture(params=[(80, 24), (200, 60)], ids=str)
def size(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_legend_counts_and_says_what_it_does_not_know(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        # 12 slab frames, 3 of vmalloc; 256 + 1 + 512 + 12 + 3 + 2 are in use, and 2 carry no mark.
        await screen.shows("slab", "48 KiB", "vmalloc", "12 KiB", "unmarked", "8 KiB")
        await screen.shows("unattributed 0.3% of 786 in use")

    play(script, size)


def test_the_cursor_names_the_owners_objects(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.FRAMES, pfn=Pfn(0xB00)))
        await screen.shows("524288 frames")
        for _ in range(16):
            await screen.press("plus")
        await screen.shows("PFN 0xb00 ", "slab dentry")
        for _ in range(4):
            await screen.press("minus")  # 16 frames a cell: 8 of dentry, 4 of inode_cache, 4 free
        await screen.shows("slab dentry 8", "slab inode_cache 4", "free 4")

    more = (1 << 19) - len(source.frame_states)
    source.frame_states = np.append(source.frame_states, np.full(more, Owner.FREE, np.uint8))
    source.frame_details = np.append(source.frame_details, np.zeros(more, np.uint32))
    play(script, size)


def test_one_object_lit_then_all_of_its_owner_then_nothing(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.FRAMES, pfn=Pfn(0xB00)))
        await screen.shows("PFN 0xb")
        for _ in range(12):
            await screen.press("plus")
        await screen.press("l")
        await screen.shows("dentry 8 frames, 32 KiB lit")
        await screen.press("l")
        await screen.shows("s slab", "12 frames, 48 KiB lit")
        await screen.press("l")
        await screen.until(lambda: " lit" not in screen.text())
        assert screen.app.place == Place(ViewName.FRAMES, pfn=Pfn(0xB00))

    play(script)


def test_slabs(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("7")
        # 8 slabs of 21 objects of 192 bytes, 140 of which are held; the empty cache is hidden.
        text = await screen.shows("3 caches, 1 of them empty", "dentry", "140", "168", "184 B", "32 KiB")
        assert "never_used" not in text
        assert text.index("dentry") < text.index("inode_cache")  # by memory
        await screen.shows("A slab of dentry: 4 KiB", "21 objects of 192 bytes, 64 bytes left over")
        await screen.press("u")
        await screen.shows("never_used")
        await screen.press("down")
        await screen.shows("A slab of inode_cache", "8 objects of 512 bytes, 0 bytes left over")

    play(script, size)


def test_from_a_cache_to_its_frames_to_a_page_and_back(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("7")
        await screen.shows("inode_cache")
        await screen.press("down", "enter")
        await screen.shows("inode_cache 4 frames, 16 KiB lit")
        await screen.press("enter")
        await screen.shows(
            "PFN 0xb08 ", "s slab", "inode_cache", "5 in the slab", "3 allocated", "1 free on a CPU"
        )
        await screen.press("enter")  # the first link leads to the cache
        await screen.until(lambda: screen.app.place == Place(ViewName.SLABS, label="inode_cache"))
        await screen.shows("A slab of inode_cache")
        await screen.press("escape", "escape", "escape")
        await screen.shows("3 caches", "A slab of inode_cache")
        await screen.press("escape")
        assert screen.app.place == Place(ViewName.OVERVIEW)

    play(script)


def test_vmalloc(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("8")
        await screen.shows("3 areas", "32 KiB with guard pages", "3 pages of their own", "8 KiB of devices")
        await screen.shows("0xffffc90000000000", "16 KiB", "load_module+0x10/0x20", "freed, not purged yet")
        if size[0] > 80:
            await screen.shows("ioremap 0xfed00000", "0xc00")
        await screen.press("p")
        await screen.shows("PFN 0xc00 ", "vmalloc", "load_module+0x10/0x20")
        await screen.press("enter")  # the area of the alias in the vmalloc region
        await screen.until(
            lambda: screen.app.place == Place(ViewName.VMALLOC, va=VirtAddr(0xFFFFC90000000000))
        )
        await screen.press("enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.WALK, va=VirtAddr(0xFFFFC90000000000)))
        await screen.press("escape", "l")
        await screen.shows("load_module+0x10/0x20 3 frames, 12 KiB lit")

    play(script, size)


def test_swap(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("9")
        await screen.shows("/dev/zram0", "partition, priority -2", "1 MiB of", "4 MiB", "25%")
        await screen.shows("20 KiB of user memory in the swap cache", "800 KiB swapped out of 1")
        text = await screen.shows("worker", "200", "0x10-0xd7", "PROT_NONE")
        assert text.index("0x10-0xd7") < text.index("PROT_NONE")  # by entries
        await screen.press("enter")
        await screen.shows("0x7f0000404000", "worker (42)")
        await screen.press("escape", "a")
        await screen.shows("worker PID 42")

    play(script, size)


def test_a_guest_that_swaps_nowhere(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("9")
        await screen.shows("no swap area is in use", "no task has an entry that is not present")

    source.swap_areas, source.swap_rows = (), ()
    play(script)


def test_memory(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("0")
        await screen.shows("MemFree", "4 MiB", "25.0%", "HugePages_Total", "AnonPages", "12.5%")
        await screen.shows("1 memory cgroup", "/lab", "2 MiB", "50.0%", "max 4 MiB")  # half of its limit
        await screen.press("down", "down", "enter")
        await screen.until(lambda: screen.app.place == Place(ViewName.SLABS))
        await screen.press("escape", "down", "enter")
        await screen.shows("512 frames, 2 MiB lit")

    root = MemoryGroup("/", 1, None, None, None, None, True, VirtAddr(0xFFFF888000007000), None)
    source.groups = (root, replace(root, path="/lab", inode=2, usage=512, max=1024, parent=root.address))
    play(script, size)


def test_page_tells_owner_charge_and_block(play: Play, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.PAGE, pfn=Pfn(0x900)))
        await screen.shows("a anonymous", "worker (42)", "512 frames, 2 MiB in all", "/lab, as user memory")
        await screen.shows("its 2 MiB at PFN 0x800", "anonymous 512")
        await screen.press("enter")  # the task that owns it
        await screen.until(lambda: screen.app.place == Place(ViewName.SPACE, pid=42))
        await screen.press("escape", "down", "enter")
        await screen.shows("worker (42) 512 frames, 2 MiB lit")
        assert screen.app.place.pfn == 0x900

    play(script, size)


def test_labels_of_the_guest_show_literally(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("7")
        await screen.shows("[red]cache[/red]")
        await screen.press("enter")
        await screen.shows("[red]cache[/red] 8 frames")
        await screen.press("enter")
        await screen.shows("[red]cache[/red]", "PFN 0xb00")

    source.labels = tuple("[red]cache[/red]" if label == "dentry" else label for label in source.labels)
    source.caches = [replace(source.caches[0], name="[red]cache[/red]"), *source.caches[1:]]
    play(script)


def test_what_is_lit_may_go_away(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.app.go(Place(ViewName.FRAMES, owner=int(Owner.SLAB), label="dentry"))
        await screen.shows("dentry 8 frames")
        source.frame_states = np.full(2048, Owner.FREE, np.uint8)  # and memory shrinks
        source.frame_details = np.zeros(2048, np.uint32)
        source.labels = ("",)
        await screen.press("ctrl+r")
        await screen.shows("dentry 0 frames", "2048 frames")
        await screen.press("n", "enter")
        await screen.until(lambda: screen.app.place.view is ViewName.PAGE)

    play(script)


def test_owners_are_read_only_while_someone_looks(play: Play, source: FakeSource) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("4096 frames")
        await screen.press("7")
        await screen.shows("3 caches")
        asked = source.asked.count("frames")
        await screen.until(lambda: source.asked.count("slabs") > 1)
        assert source.asked.count("frames") == asked
        assert FramesView.DUTY >= 10

    play(script)


def test_what_changed_hands_since_the_mark(play: Play, source: FakeSource, size: tuple[int, int]) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("unattributed")
        await screen.press("m")
        await screen.shows("marked at", "d shows what changed hands since")
        # What was page cache is anonymous, 64 free frames are slabs, and 2 of dentry are free.
        source.frame_states, source.frame_details = source.frame_states.copy(), source.frame_details.copy()
        source.frame_states[0x777], source.frame_details[0x777] = Owner.ANON, 1
        source.frame_states[0xB40:0xB80], source.frame_details[0xB40:0xB80] = Owner.SLAB, 3
        source.frame_states[0xB00:0xB02], source.frame_details[0xB00:0xB02] = Owner.FREE, 0
        await screen.press("d")
        text = await screen.shows("67 frames changed hands since", "+62 in use", "+64  s  inode_cache")
        assert "-2  s  dentry" in text
        assert "-62  ·  free" in text
        frames = screen.app.query_one(FramesView)
        assert frames.place.changed
        lit = frames._lit
        assert lit is not None
        assert np.flatnonzero(lit).tolist() == [0x777, 0xB00, 0xB01, *range(0xB40, 0xB80)]
        await screen.press("home", "n")
        await screen.shows("PFN 0x77", "was page cache 1")
        await screen.press("d")
        await screen.until(lambda: "frames changed hands" not in screen.text())
        await screen.shows("unattributed")

    play(script, size)


def test_without_a_mark_there_is_one_now(play: Play) -> None:
    async def script(screen: Screen) -> None:
        await screen.press("5")
        await screen.shows("unattributed")
        await screen.press("d")
        await screen.shows("0 frames changed hands since", "nothing changed hands")

    play(script)
