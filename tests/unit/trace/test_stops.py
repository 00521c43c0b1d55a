"""Instructions at breakpoints, as the SDM (vol. 2) says they work."""

from __future__ import annotations

import pytest

from inspector.machine.stoploop import Hit
from inspector.trace import stops
from inspector.trace.stops import Effect, effect
from inspector.units import VirtAddr

_RIP, _RSP = 0xFFFF_FFFF_8100_0000, 0xFFFF_C900_0000_1F00
_REGISTERS = {"rip": _RIP, "rsp": _RSP, "rax": 0x1234_5678_9ABC_DEF0, "rbx": 0xB, "r13": 0x13, "r15": 0xF}
_STACK = (0xFFFF_FFFF_8123_4567).to_bytes(8, "little")


def after(code: str) -> Effect | None:
    """What the instruction does; the rest of the bytes is what follows it."""
    return effect(bytes.fromhex(code) + bytes(8), _REGISTERS, lambda at, size: _STACK if at == _RSP else b"")


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("0f1f440000", 5),  # nopl 0x0(%rax,%rax,1)
        ("6666666690", 5),  # data16 x3 xchg %ax,%ax
        ("660f1f00", 4),  # nopw (%rax), a sealed endbr64
        ("0f1f40d6", 4),  # nopl -0x2a(%rax)
        ("0f1f00", 3),
        ("6690", 2),
        ("90", 1),
        ("f30f1efa", 4),  # endbr64
    ],
)
def test_nops_are_passed(code: str, size: int) -> None:
    assert after(code) == Effect({"rip": _RIP + size})


def test_jmp() -> None:
    assert after("e969030000") == Effect({"rip": _RIP + 5 + 0x369})
    assert after("e9f0ffffff") == Effect({"rip": _RIP + 5 - 0x10})


def test_ret_takes_its_address_from_the_stack() -> None:
    assert after("c3") == Effect({"rip": 0xFFFF_FFFF_8123_4567, "rsp": _RSP + 8})


def test_push_writes_below_the_stack_pointer() -> None:
    assert after("53") == Effect(
        {"rip": _RIP + 1, "rsp": _RSP - 8}, (VirtAddr(_RSP - 8), (0xB).to_bytes(8, "little"))
    )
    assert after("4155") == Effect(  # push %r13
        {"rip": _RIP + 2, "rsp": _RSP - 8}, (VirtAddr(_RSP - 8), (0x13).to_bytes(8, "little"))
    )


def test_a_32_bit_mov_clears_the_upper_half() -> None:
    assert after("4189c7") == Effect({"rip": _RIP + 3, "r15": 0x9ABC_DEF0})  # mov %eax,%r15d
    assert after("89c3") == Effect({"rip": _RIP + 2, "rbx": 0x9ABC_DEF0})  # mov %eax,%ebx


@pytest.mark.parametrize("code", ["f6c404", "4c8b442420", "4889c5", "895c2408", "0f05", "415d"])
def test_other_instructions_are_the_cpus(code: str) -> None:
    """Test $4,%ah; mov 0x20(%rsp),%r8; mov %rax,%rbp; mov %ebx,8(%rsp); syscall; pop %r13."""
    assert after(code) is None


class Loop:
    """A StopLoop that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def insert(self, address: VirtAddr) -> None:
        self.asked.append(("insert", address))

    def remove(self, address: VirtAddr) -> None:
        self.asked.append(("remove", address))

    def wait(self, timeout: float) -> Hit | None:
        return None

    def set_register(self, name: str, value: int) -> None:
        self.asked.append((name, value))

    def write(self, address: VirtAddr, data: bytes) -> None:
        self.asked.append((address, data))

    def step(self) -> None:
        self.asked.append("step")

    def go(self, timeout: float) -> bool:
        return True

    def close(self) -> None:
        pass


def passed(code: str | None, now: str) -> list[object]:
    """What is asked to pass over `code`, where by now there is another."""
    loop = Loop()
    known = bytes.fromhex(code) + bytes(8) if code else None
    stops.pass_over(loop, Hit(0, _REGISTERS), known, lambda at, size: bytes.fromhex(now) + bytes(8))
    return loop.asked


def test_pass_over_writes_what_changes_and_steps_where_it_cannot_tell() -> None:
    push = [(_RSP - 8, (0x13).to_bytes(8, "little")), ("rip", _RIP + 2), ("rsp", _RSP - 8)]
    assert passed("4155", "4155") == push
    assert passed("f6c404", "f6c404") == ["step"]
    assert passed(None, "4155") == []


def test_code_that_the_kernel_has_changed_is_passed_over_as_it_is() -> None:
    """A jump label: a nop that became a jmp; an int3 hides what is there."""
    assert passed("0f1f440000", "e969030000") == [("rip", _RIP + 5 + 0x369)]
    assert passed("0f1f440000", "cc1f440000") == [("rip", _RIP + 5)]
