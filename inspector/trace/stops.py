"""Where the kernel handles a page fault, and how to go on from a breakpoint there.

Four points, the same from 5.10 to 7.2 (arch/x86/mm/fault.c, mm/memory.c), by symbols and calls in the code:
`exc_page_fault(regs, error_code)` as it begins; `handle_mm_fault(vma, address, flags, regs)` as it begins and
as it is back in do_user_addr_fault(); and exc_page_fault() again as it leaves through irqentry_exit(regs),
before signals are delivered or another task runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inspector.errors import SymbolsError
from inspector.machine.stoploop import Hit, StopLoop
from inspector.symbols import Kernel
from inspector.units import VirtAddr

_CALL, _JMP, _RET, _INT3 = 0xE8, 0xE9, 0xC3, 0xCC
_LONGEST = 4096  # of the functions that are searched for calls
# SDM vol. 2, NOP: the recommended forms; the kernel's other paddings (arch/x86/include/asm/nops.h); and
# endbr64, which a jump to the next instruction does not need.
_NOPS = tuple(
    bytes.fromhex(text)
    for text in (
        "6666666690", "66666690", "666690", "6690", "90",
        "0f1f440000", "0f1f4000", "0f1f40d6", "660f1f00", "0f1f00", "660f1f440000", "f30f1efa",
    )
)  # fmt: skip
_GENERAL = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FaultPoints:
    """Addresses to stop at. `returns`: behind each call of handle_mm_fault() in do_user_addr_fault()."""

    entry: VirtAddr
    call: VirtAddr
    returns: tuple[VirtAddr, ...]
    exit: VirtAddr


def fault_points(kernel: Kernel) -> FaultPoints:
    """Find them in the kernel's code. Raises NoSuchSymbol, SymbolsError."""
    entry, handle = kernel.symbol("exc_page_fault"), kernel.symbol("handle_mm_fault")
    returns = calls(kernel, kernel.symbol("do_user_addr_fault"), handle, (_CALL,))
    exits = calls(kernel, entry, kernel.symbol("irqentry_exit"), (_JMP, _CALL))
    if not returns or len(exits) != 1:
        raise SymbolsError("the kernel handles page faults in a way that is not known: no trace of them")
    return FaultPoints(entry, handle, tuple(VirtAddr(site + 5) for site in returns), exits[0])


def calls(kernel: Kernel, function: VirtAddr, target: VirtAddr, opcodes: tuple[int, ...]) -> list[VirtAddr]:
    """Where a function calls, or jumps to, another directly (SDM vol. 2: E8 or E9 and 32 bits, relative)."""
    code = kernel.space.read(function, _size(kernel, function))
    found = []
    for at in range(len(code) - 4):
        distance = int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
        if code[at] in opcodes and function + at + 5 + distance == target:
            found.append(VirtAddr(function + at))
    return found


def _size(kernel: Kernel, function: VirtAddr) -> int:
    """Bytes up to the next symbol."""
    arrays = kernel.symbols.arrays
    link = function - kernel.symbols.offset
    after = int(arrays.addresses.searchsorted(link, "right"))
    end = int(arrays.addresses[after]) if after < len(arrays.addresses) else link + _LONGEST
    return min(end - link, _LONGEST)


Read = Callable[[VirtAddr, int], bytes]


@dataclass(frozen=True, slots=True)
class Effect:
    """What an instruction does: registers and, for a push, the stack."""

    registers: dict[str, int]
    memory: tuple[VirtAddr, bytes] | None = None


def effect(code: bytes, registers: dict[str, int], read: Read) -> Effect | None:
    """What the instruction at rip does, where it is a simple one; None: let the CPU step over it.

    A step under TCG costs a stop more, and with it all translated code.
    """
    rip, rsp = registers["rip"], registers["rsp"]
    for nop in _NOPS:
        if code.startswith(nop):
            return Effect({"rip": rip + len(nop)})
    if code[0] == _JMP:
        return Effect({"rip": rip + 5 + int.from_bytes(code[1:5], "little", signed=True)})
    if code[0] == _RET:
        return Effect({"rip": int.from_bytes(read(VirtAddr(rsp), 8), "little"), "rsp": rsp + 8})
    extended = code[0] == 0x41  # REX.B: the register is one of r8..r15
    opcode = code[1] if extended else code[0]
    if 0x50 <= opcode <= 0x57:  # push
        value = registers[_GENERAL[(opcode & 7) + 8 * extended]]
        stack = VirtAddr(rsp - 8)
        return Effect({"rip": rip + 1 + extended, "rsp": stack}, (stack, value.to_bytes(8, "little")))
    modrm = code[2] if extended else code[1]
    if opcode == 0x89 and modrm >> 6 == 3:  # mov to a 32-bit register, which clears its upper half
        target, source = _GENERAL[(modrm & 7) + 8 * extended], _GENERAL[modrm >> 3 & 7]
        return Effect({"rip": rip + 2 + extended, target: registers[source] & 0xFFFFFFFF})
    return None


def pass_over(loop: StopLoop, hit: Hit, code: bytes | None, read: Read) -> None:
    """Leave the instruction at a breakpoint behind, as if the CPU had executed it.

    `code` is what was there without the breakpoint; None: there is none. The kernel may have changed it since
    (jump labels, ftrace); under KVM, and while the kernel changes it, an int3 hides it.
    """
    if code is None:
        return
    now = read(hit.address, len(code))
    what = effect(code if now[0] == _INT3 else now, hit.registers, read)
    if what is None:
        loop.step()
        return
    if what.memory:
        loop.write(*what.memory)
    for name, value in what.registers.items():
        loop.set_register(name, value)
