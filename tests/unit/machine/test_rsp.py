"""The gdbstub's client, over a stand-in that speaks as the GDB manual's remote protocol has it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import GdbError, GuestDied
from inspector.machine.rsp import Rsp, stop_cpu
from inspector.units import VirtAddr


class Stub:
    """Answers each packet by its first characters, and notes it."""

    def __init__(self, path: Path) -> None:
        self.answers = {
            "?": "T05thread:01;",
            "qXfer": "l<target/>",
            "Z": "OK",
            "z": "OK",
            "P": "OK",
            "M": "OK",
        }
        self.heard: list[str] = []
        self.between: list[bytes] = []
        """What came before each packet."""
        self.events: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connected, _ = self._listener.accept()
        connected.sendall(packet("T02thread:01;"))  # as QEMU tells that our coming stopped the guest
        buffer = b""
        while data := connected.recv(4096):
            buffer += data
            while found := re.match(rb"([^$]*)\$([^#]*)#(..)", buffer):
                assert sum(found[2]) & 0xFF == int(found[3], 16)
                buffer = buffer[found.end() :]
                text = found[2].decode()
                self.between.append(found[1])
                self.heard.append(text)
                connected.sendall(b"+")
                for event in self.events:
                    connected.sendall(packet(event))
                self.events = []
                answer = next((a for start, a in self.answers.items() if text.startswith(start)), None)
                if text == "hang up":
                    connected.close()
                    return
                if answer is not None:
                    connected.sendall(packet(answer))


def packet(text: str) -> bytes:
    """A packet on the wire."""
    return b"$%s#%02x" % (text.encode(), sum(text.encode()) & 0xFF)


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path / "gdb")


@pytest.fixture
def rsp(stub: Stub, tmp_path: Path) -> Iterator[Rsp]:
    made = Rsp(tmp_path / "gdb")
    yield made
    made.close()


def test_it_asks_for_the_description_so_that_registers_can_be_written(rsp: Rsp, stub: Stub) -> None:
    assert [text.split(":")[0] for text in stub.heard] == ["?", "qXfer"]
    rsp.set_register("rip", 0xFFFF_FFFF_8100_0005)
    rsp.set_register("rsp", 1)
    assert stub.heard[-2:] == ["P10=05000081ffffffff", "P7=0100000000000000"]


def test_registers_by_name(rsp: Rsp, stub: Stub) -> None:
    values = {"rax": 1, "rsp": 8, "r8": 9, "rip": 17, "eflags": 0x202, "gs_base": 0xFFFF << 48, "cr2": 0xC2}
    sizes = [8] * 17 + [4] * 7 + [8] * 9  # QEMU's i386-64bit.xml
    names = (
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))),
        *("rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base"),
        *("cr0", "cr2", "cr3", "cr4", "cr8", "efer"),
    )
    both = zip(names, sizes, strict=True)
    raw = b"".join(values.get(name, 0).to_bytes(size, "little") for name, size in both)
    stub.answers["g"] = (raw + bytes(372)).hex()
    assert rsp.registers() == dict.fromkeys(names, 0) | values


def test_breakpoints_and_memory(rsp: Rsp, stub: Stub) -> None:
    rsp.insert(VirtAddr(0x1000))
    rsp.remove(VirtAddr(0x1000))
    rsp.write(VirtAddr(0x2000), b"\x01\xff")
    assert stub.heard[-3:] == ["Z0,1000,1", "z0,1000,1", "M2000,2:01ff"]


def test_a_refusal_is_an_error(rsp: Rsp, stub: Stub) -> None:
    stub.answers["Z"] = "E22"
    with pytest.raises(GdbError, match=r"refused 'Z0,1000,1': E22"):
        rsp.insert(VirtAddr(0x1000))
    stub.answers["P"] = ""
    with pytest.raises(GdbError, match="not supported"):
        rsp.set_register("rip", 0)


def test_a_stop_that_comes_between_is_not_an_answer(rsp: Rsp, stub: Stub) -> None:
    stub.events = ["T02thread:01;"]
    rsp.remove(VirtAddr(0x1000))


def test_go_waits_until_it_is_carried_out_and_the_stop_comes_later(rsp: Rsp, stub: Stub) -> None:
    stub.answers["c"] = "T05thread:02;"
    rsp.go()
    assert stub.heard[-1] == "c"
    assert stop_cpu(rsp.receive(5) or "") == 1
    assert rsp.receive(0.01) is None


def test_stops_heard_of_late_are_not_acknowledged(rsp: Rsp, stub: Stub) -> None:
    """The guest runs on by then, and QEMU stops it at any byte but one acknowledgement."""
    stub.events = ["T02thread:01;", "T02thread:01;"]
    rsp.go()
    assert (rsp.receive(5), rsp.receive(5)) == ("T02thread:01;", "T02thread:01;")
    rsp.insert(VirtAddr(0x1000))
    assert stub.between == [b""] * len(stub.heard)


def test_a_step_that_never_ends_is_an_error(rsp: Rsp, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspector.machine.rsp._ANSWER", 0.05)
    stub.answers["vCont"] = "T02thread:01;"  # a QMP `stop` fell into it
    with pytest.raises(GdbError, match="did not answer 'vCont;s:1'"):
        rsp.step(0)


def test_only_debug_stops_are_breakpoints() -> None:
    assert stop_cpu("T05thread:01;") == 0
    assert stop_cpu("T05thread:p01.04;") == 3
    assert stop_cpu("T02thread:01;") is None
    assert stop_cpu("OK") is None


def test_the_stubs_end(rsp: Rsp) -> None:
    with pytest.raises(GuestDied):
        rsp.command("hang up")


def test_no_stub(tmp_path: Path) -> None:
    with pytest.raises(GdbError, match="cannot be reached"):
        Rsp(tmp_path / "nothing")
