"""What may be typed behind `/`."""

from __future__ import annotations

import pytest

from inspector.errors import InspectorError, NoSuchSymbol, UsageError
from inspector.tui.places import RULES, Place, ViewName, describe, parse
from inspector.units import Pfn, VirtAddr


class Names:
    """Two symbols."""

    def symbol(self, name: str) -> VirtAddr:
        addresses = {"init_task": 0xFFFFFFFF81000000, "cafe": 0xFFFFFFFF82000000}
        if name not in addresses:
            raise NoSuchSymbol(f"the kernel has no symbol {name!r}")
        return VirtAddr(addresses[name])


def walk(va: int, **where: int) -> Place:
    return Place(ViewName.WALK, va=VirtAddr(va), pid=where.get("pid"), cpu=where.get("cpu"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("1", Place(ViewName.SPACE, pid=1)),
        (" 4194304 ", Place(ViewName.SPACE, pid=4194304)),
        ("pid 7", Place(ViewName.SPACE, pid=7)),
        ("0x1000", walk(0x1000, pid=9)),
        ("0x7ffd_1000_0000", walk(0x7FFD10000000, pid=9)),
        ("7ffd10000000", walk(0x7FFD10000000, pid=9)),
        ("ffff888000000000", walk(0xFFFF888000000000)),
        ("0xffffffff81000000", walk(0xFFFFFFFF81000000)),
        ("3:400000", walk(0x400000, pid=3)),
        ("3:0x400000", walk(0x400000, pid=3)),
        ("cpu1:0x400000", walk(0x400000, cpu=1)),
        ("pfn 0x1a2b", Place(ViewName.PAGE, pfn=Pfn(0x1A2B))),
        ("PFN:42", Place(ViewName.PAGE, pfn=Pfn(42))),
        ("#0x10", Place(ViewName.PAGE, pfn=Pfn(16))),
        ("pa 0x1a2b123", Place(ViewName.PAGE, pfn=Pfn(0x1A2B))),
        ("phys=3000", Place(ViewName.PAGE, pfn=Pfn(3))),
        ("init_task", Place(ViewName.WALK, va=VirtAddr(0xFFFFFFFF81000000), symbol="init_task")),
        ("init_task+0x10", Place(ViewName.WALK, va=VirtAddr(0xFFFFFFFF81000010), symbol="init_task+0x10")),
        ("cafe", Place(ViewName.WALK, va=VirtAddr(0xFFFFFFFF82000000), symbol="cafe")),
    ],
)
def test_parse(text: str, place: Place) -> None:
    assert parse(text, 9, Names()) == place


@pytest.mark.parametrize(
    "text", ["", "   ", "pfn", "pfn -1", "#", "0x", "0x1ffffffffffffffff", "1:zz", "a b", "[red]"]
)
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InspectorError) as raised:
        parse(text, 9, Names())
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, UsageError | NoSuchSymbol)


def test_a_name_that_the_kernel_lacks() -> None:
    with pytest.raises(NoSuchSymbol):
        parse("nosuch", 9, Names())


def test_the_rules_examples_mean_what_they_say() -> None:
    places = [parse(example, 1, Names()) for example, _ in RULES]
    assert [place.view for place in places] == ["space", "walk", "walk", "walk", "page", "page", "walk"]
    assert places[3].cpu == 0
    assert places[5].pfn == 0x1A2B


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(ViewName.PAGE, pfn=Pfn(16)), "page frame 0x10"),
        (Place(ViewName.SPACE, pid=3), "the address space of PID 3"),
        (walk(0x1000, pid=3), "walk 0x1000 in PID 3"),
        (walk(0x1000, cpu=1), "walk 0x1000 from CR3 of CPU 1"),
        (walk(0x1000), "walk 0x1000 in the kernel's page tables"),
        (Place(ViewName.TASKS), "tasks"),
    ],
)
def test_describe(place: Place, words: str) -> None:
    assert describe(place) == words
