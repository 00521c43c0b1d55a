"""Walks: what a user may name, the drawing, the JSON; the entries are those of conftest's tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from inspector.arch import X86_64_5LEVEL, walk
from inspector.cli.walk_view import cut
from inspector.memory import MappedRam, RamBlock
from inspector.units import PhysAddr, VirtAddr

Kmi = Callable[..., Any]


def walked(kmi: Kmi, *arguments: str) -> Any:
    done = kmi("walk", *arguments, "--json")
    assert done.status == 0
    return json.loads(done.out)


@pytest.mark.parametrize(
    ("target", "va"),
    [
        (["1", "7ffd00002abc"], 0x7FFD_0000_2ABC),
        (["1", "0x7ffd_0000_2abc"], 0x7FFD_0000_2ABC),
        (["1", "[stack]"], 0x7FFD_0000_2000),  # it grows down: its topmost page
        (["1", "[anon]"], 0x7FFD_0000_2000),  # the larger of two
        (["kernel", "init_task"], 0xFFFF_FFFF_8100_0040),
        (["kernel", "init_task+0x10"], 0xFFFF_FFFF_8100_0050),
        (["kernel", "init_task+16"], 0xFFFF_FFFF_8100_0050),
        (["cpu0", "add"], 0xADD),  # what can be hexadecimal is
        (["1", "init_task"], 0xFFFF_FFFF_8100_0040),
        (["--root", "1000", "0"], 0),
    ],
)
def test_target(kmi: Kmi, target: list[str], va: int) -> None:
    assert walked(kmi, *target)["va"] == hex(va)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["2", "0"], "no task has PID 2"),
        (["-1", "0"], "No such option"),
        (["one", "0"], "not a PID: 'one'"),
        (["1", "0x10000000000000000"], "not an address"),
        (["1", "no-such"], "not an address"),
        (["1", "no_such"], "no symbol 'no_such'"),
        (["1", "[heap]"], "no mapping [heap]; it has [stack]"),
        (["kernel", "[stack]"], "needs a task"),
        (["spawned", "0"], "nothing was spawned"),
        (["--root", "1008", "0"], "no table can be at 0x1008"),
    ],
)
def test_bad_target(kmi: Kmi, fake: Any, arguments: list[str], says: str) -> None:
    done = kmi("walk", *arguments)
    assert done.status == 2
    assert says in done.error


def test_json_of_a_page(kmi: Kmi) -> None:
    data = walked(kmi, "1", "7ffd00002abc")
    assert data["pid"] == 1
    assert data["root"] == "0x1000"
    assert [(step["level"], step["index"]) for step in data["steps"]] == [
        ("PGD", 255),
        ("PUD", 500),
        ("PMD", 0),
        ("PTE", 2),
    ]
    assert [step["entry_address"] for step in data["steps"]] == ["0x17f8", "0x2fa0", "0x3000", "0x4010"]
    assert data["steps"][3]["entry"] == "0x8000000000009067"
    assert data["steps"][3]["flags"] == ["P", "RW", "US", "A", "D", "NX"]
    assert (data["phys"], data["pfn"], data["page_size_bytes"]) == ("0x9abc", 9, 4096)
    assert (data["writable"], data["user"], data["executable"], data["fault"]) == (True, True, False, None)
    assert data["read_stopped"] is True


def test_json_of_a_fault(kmi: Kmi) -> None:
    data = walked(kmi, "1", "7ffd00003000")
    assert data["phys"] is None
    assert data["fault"] == {
        "kind": "not_present", "level": "PTE", "entry_address": "0x4018", "entry": "0x0",
        "what": data["fault"]["what"],
    }  # fmt: skip
    assert "#PF" in data["fault"]["what"]


def test_drawn_page(kmi: Kmi) -> None:
    lines = kmi("walk", "1", "7ffd00002abc").out.splitlines()
    assert lines[0] == "0x7ffd00002abc in task 1 (init): x86-64 4-level tables from 0x1000"
    assert lines[3].split() == ["0" * 16, "011111111", "111110100", "000000000", "000000010", "101010111100"]
    assert lines[4].split() == ["0x0", "255", "500", "0", "2", "0xabc"]
    assert lines[10].split() == [
        "PTE[2]",
        "0x4010",
        "8000000000009067",
        "P",
        "RW",
        "US",
        "A",
        "D",
        "NX",
        "page",
        "0x9000",
    ]
    assert lines[-1] == "Physical 0x9abc, PFN 9 (0x9), in a 4 KiB page: writable, user, no execute"
    assert max(map(len, lines)) <= 80


def test_a_large_page_has_a_long_offset(kmi: Kmi) -> None:
    out = kmi("walk", "kernel", "init_task").out
    lines = out.splitlines()
    assert lines[2].split() == ["sign", "PGD", "PUD", "PMD", "offset"]
    assert lines[4].split() == ["0xffff", "511", "510", "8", "0x40"]
    assert "Physical 0x1200040, PFN 4608 (0x1200), in a 2 MiB page" in out


def test_drawn_faults(kmi: Kmi) -> None:
    assert "No translation, entry not present: #PF" in kmi("walk", "1", "0").out
    assert "No translation, reserved bits set: #PF" in kmi("walk", "kernel", "ffffffff81200000").out
    beyond = kmi("walk", "cpu0", "800000000000").out
    assert "No translation, non-canonical address: #GP" in beyond
    assert "Entry" not in beyond


def test_verbose_tells_each_flag_once(kmi: Kmi) -> None:
    out = kmi("walk", "1", "7ffd00002abc", "-v").out
    meanings = out.split("Meaning")[1].splitlines()
    assert sum(line.startswith("US ") for line in meanings) == 1
    assert any(line.split()[:2] == ["NX", "63"] for line in meanings)
    assert not any(line.startswith("G ") for line in meanings)


def test_five_levels_are_cut_into_seven_fields() -> None:
    ram = MappedRam(bytearray(0x2000), [RamBlock(PhysAddr(0), 0x2000, 0)])
    va = VirtAddr(0x0012_3456_789A_BCDE)
    names, bits, values = (line.plain.split() for line in cut(walk(ram, X86_64_5LEVEL, PhysAddr(0x1000), va)))
    assert names == ["sign", "PGD", "P4D", "PUD", "PMD", "PTE", "offset"]
    assert "".join(bits) == f"{va:064b}"
    assert values == ["0x0", "18", "104", "345", "452", "427", "0xcde"]


def test_spawned(kmi: Kmi, fake: Any) -> None:
    data = walked(kmi, "spawned", "[stack]", "--spawn", "/labs/touch 8M")
    assert fake.spawned == ["/labs/touch 8M"]
    assert data["pid"] == 1


def test_spawned_and_gone(kmi: Kmi, fake: Any) -> None:
    fake.survives, fake.said = False, "sh: tuch: not\x1b found\n"
    done = kmi("walk", "spawned", "0", "--spawn", "tuch")
    assert done.status == 2
    assert done.err.splitlines()[-1] == "kmi: in the guest, 'tuch' ended at once: sh: tuch: not\\x1b found"
    assert fake.closed == 1
