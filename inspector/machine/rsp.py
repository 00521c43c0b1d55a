"""QEMU's gdbstub spoken to directly, for loops of many short stops (GDB manual, "Remote Serial Protocol").

What it rests on (QEMU gdbstub.c):
- A byte that comes while the guest runs stops it, but for a `+` that acknowledges its last packet: for two
  stops that are heard of late the second `+` does. We send none: the next command acknowledges as well.
- `P` is refused until the client has read the target description.
- A breakpoint is checked before its instruction, at each arrival: to go on, leave its address first. A step
  (`vCont;s`) is not held up by it.
- A stop at a breakpoint or after a step throws away all that TCG has translated (tb_flush, up to 10.1): some
  milliseconds to translate what runs next. A breakpoint's page runs one instruction at a time.
- Its own `+` is sent as a command is carried out, on the main loop that also carries out QMP commands.
- A QMP `stop` that falls into a step ends it, and the step's own stop never comes.
"""

from __future__ import annotations

import re
import time

from inspector.errors import GdbError, GuestDied
from inspector.machine.address import Address, dial
from inspector.units import VirtAddr

_CONNECT = 10.0
_ANSWER = 10.0
_THREAD = re.compile(r"thread:(?:p[0-9a-f]+\.)?([0-9a-f]+)")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
# Target description i386-64bit.xml: name and bytes of each register of a `g` packet, up to the FPU's.
_LAYOUT = (
    *((name, 8) for name in (*_GENERAL, "rip")),
    *((name, 4) for name in ("eflags", "cs", "ss", "ds", "es", "fs", "gs")),
    *((name, 8) for name in ("fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer")),
)
_NUMBERS = {name: number for number, (name, _) in enumerate(_LAYOUT)}


class Rsp:
    """A connection to the stub of an x86-64 guest. QEMU stops the guest as it connects.

    All but `receive` need a stopped guest. Raises GdbError where the stub refuses, is busy with another
    client, or does not answer; GuestDied at QEMU's end.
    """

    def __init__(self, where: Address) -> None:
        self._buffer = b""
        try:
            self._socket = dial(where, _CONNECT)
        except OSError as error:
            raise GdbError(f"QEMU's gdbstub cannot be reached: {error}") from error
        try:
            self._send("?")  # it also makes the stub forget the breakpoints of a client before us
            while not self._packet(_ANSWER).startswith("T05"):
                pass  # the stop that our coming made
            self.command("qXfer:features:read:target.xml:0,ffb")
        except OSError as error:
            self.close()
            raise GdbError(f"QEMU's gdbstub cannot be reached: {error}") from error
        except BaseException:
            self.close()
            raise

    def command(self, text: str) -> str:
        """What the stub answers."""
        self._send(text)
        return self._answer(text)

    def _answer(self, text: str) -> str:
        try:
            return self._packet(_ANSWER)
        except TimeoutError as error:
            raise GdbError(f"QEMU's gdbstub did not answer {text!r} within {_ANSWER:g} s") from error

    def _order(self, text: str) -> None:
        answer = self.command(text)
        while answer.startswith("T"):  # a stop that came before the order was carried out
            answer = self._answer(text)
        if answer != "OK":
            raise GdbError(f"QEMU's gdbstub refused {text!r}: {answer or 'not supported'}")

    def insert(self, address: VirtAddr) -> None:
        """Break before the instruction at `address` executes, on every CPU."""
        self._order(f"Z0,{address:x},1")

    def remove(self, address: VirtAddr) -> None:
        """Take a breakpoint out."""
        self._order(f"z0,{address:x},1")

    def registers(self) -> dict[str, int]:
        """The integer registers of the CPU that stopped, by gdb's names."""
        raw = bytes.fromhex(self.command("g"))
        found, at = {}, 0
        for name, size in _LAYOUT:
            found[name] = int.from_bytes(raw[at : at + size], "little")
            at += size
        return found

    def set_register(self, name: str, value: int) -> None:
        """Write a register (of 64 bits) of the CPU that stopped."""
        self._order(f"P{_NUMBERS[name]:x}={value.to_bytes(8, 'little').hex()}")

    def write(self, address: VirtAddr, data: bytes) -> None:
        """Write guest memory as the CPU that stopped sees it."""
        self._order(f"M{address:x},{len(data):x}:{data.hex()}")

    def go(self) -> None:
        """Let all CPUs run; they do when this returns."""
        self._send("c")
        self._acknowledged()

    def step(self, cpu: int) -> None:
        """Let one CPU execute one instruction, the others none, interrupts held back."""
        answer = self.command(order := f"vCont;s:{cpu + 1:x}")
        while stop_cpu(answer) is None:
            answer = self._answer(order)

    def receive(self, timeout: float) -> str | None:
        """The next packet; None where none comes in `timeout` seconds."""
        try:
            return self._packet(timeout)
        except TimeoutError:
            return None

    def close(self) -> None:
        """Hang up: breakpoints stay in the stub, the guest as it is."""
        self._socket.close()

    def _send(self, text: str) -> None:
        data = text.encode()
        try:
            self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        except OSError as error:
            raise GuestDied("the guest is gone: QEMU's gdbstub hung up") from error

    def _packet(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start) if start >= 0 else -1
            if 0 <= end <= len(self._buffer) - 3:
                text = self._buffer[start + 1 : end].decode("latin-1")
                self._buffer = self._buffer[end + 3 :]
                return text
            self._more(deadline)

    def _acknowledged(self) -> None:
        deadline = time.monotonic() + _ANSWER
        while not self._buffer.startswith(b"+"):
            if self._buffer:
                raise GdbError(f"QEMU's gdbstub sent {self._buffer[:20]!r} where it should acknowledge")
            try:
                self._more(deadline)
            except TimeoutError as error:
                raise GdbError(f"QEMU's gdbstub took no command within {_ANSWER:g} s") from error
        self._buffer = self._buffer[1:]

    def _more(self, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError as error:
            raise GuestDied("the guest is gone: QEMU's gdbstub hung up") from error
        if not data:
            raise GuestDied("the guest is gone: QEMU's gdbstub hung up")
        self._buffer += data


def stop_cpu(packet: str) -> int | None:
    """The CPU (from 0) of a stop at a breakpoint or after a step; None for any other packet."""
    found = _THREAD.search(packet)
    return int(found[1], 16) - 1 if packet.startswith("T05") and found else None
