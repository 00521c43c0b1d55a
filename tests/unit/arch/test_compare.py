"""Two walks side by side: entries of tables made by hand, before and after one of them is filled in."""

from __future__ import annotations

import json

from inspector.arch import X86_64_4LEVEL, walk
from inspector.arch.compare import side_by_side, walk_data
from inspector.memory import MappedRam, RamBlock
from inspector.units import PhysAddr, VirtAddr

ROOT, VA = PhysAddr(0x1000), VirtAddr(0x2008)
SIZE = 0x6000


def tables(*entries: tuple[int, int]) -> MappedRam:
    ram = bytearray(SIZE)
    for address, entry in entries:
        ram[address : address + 8] = entry.to_bytes(8, "little")
    return MappedRam(ram, [RamBlock(PhysAddr(0), SIZE, 0)])


UPPER = ((0x1000, 0x2067), (0x2000, 0x3067))


def test_what_changed_and_what_did_not() -> None:
    before = walk(tables(*UPPER), X86_64_4LEVEL, ROOT, VA)
    after = walk(tables(*UPPER, (0x3000, 0x4067), (0x4010, 0x5067)), X86_64_4LEVEL, ROOT, VA)
    pairs = side_by_side(before, after)
    assert [(pair.level.name, pair.index, pair.changed) for pair in pairs] == [
        ("PGD", 0, False),
        ("PUD", 0, False),
        ("PMD", 0, True),
        ("PTE", 2, True),
    ]
    assert [pair.before and pair.before.entry for pair in pairs] == [0x2067, 0x3067, 0, None]
    assert [pair.after and pair.after.entry for pair in pairs] == [0x2067, 0x3067, 0x4067, 0x5067]
    assert not any(pair.changed for pair in side_by_side(after, after))
    assert len(side_by_side(after, before)) == 4


def test_an_equal_entry_elsewhere_is_another_one() -> None:
    full = ((0x3000, 0x4067), (0x4010, 0x5067))
    before = walk(tables(*UPPER, *full), X86_64_4LEVEL, ROOT, VA)
    moved = walk(
        tables((0x1000, 0x2067), (0x2000, 0x5067), (0x5000, 0x4067), full[1]), X86_64_4LEVEL, ROOT, VA
    )
    assert [pair.changed for pair in side_by_side(before, moved)] == [False, True, True, False]


def test_no_entry_was_read() -> None:
    nowhere = walk(tables(), X86_64_4LEVEL, ROOT, VirtAddr(1 << 50))
    assert side_by_side(nowhere, nowhere) == []


def test_plain_data_is_json() -> None:
    data = json.loads(json.dumps(walk_data(walk(tables(*UPPER), X86_64_4LEVEL, ROOT, VA))))
    assert (data["va"], data["phys"], data["fault"]["entry_address"]) == ("0x2008", None, "0x3000")
