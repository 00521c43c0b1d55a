"""The QMP face, against a scripted monitor."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inspector.errors import GuestDied, QmpError
from inspector.machine.qmp import Qmp

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
Answer = Callable[["Monitor", dict[str, Any]], Any]


class Hangup(Exception):
    """The monitor hangs up instead of answering."""


class Monitor:
    def __init__(self, answer: Answer) -> None:
        self.ours, self._channel = socket.socketpair()
        self.asked: list[dict[str, Any]] = []
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        self._channel.sendall(json.dumps(message).encode() + b"\r\n")

    def _requests(self) -> Iterator[dict[str, Any]]:
        """JSON objects one after the other, with nothing between them (QEMU docs: interop/qmp-spec)."""
        text = ""
        while data := self._channel.recv(65536):
            text += data.decode()
            while text.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                yield request

    def _serve(self) -> None:
        with self._channel:
            self.send(GREETING)
            for request in self._requests():
                if request["execute"] == "qmp_capabilities":
                    self.send({"return": {}})
                    continue
                self.asked.append(request)
                try:
                    answer = self._answer(self, request)
                except Hangup:
                    self._channel.shutdown(socket.SHUT_RDWR)
                    return
                if answer is not None:
                    self.send(answer | {"id": request["id"]})


events: list[tuple[str, dict[str, Any]]] = []


@pytest.fixture
def connect() -> Iterator[Callable[[Answer], tuple[Qmp, Monitor]]]:
    opened: list[Qmp] = []
    events.clear()

    def dial(answer: Answer) -> tuple[Qmp, Monitor]:
        monitor = Monitor(answer)
        opened.append(Qmp(monitor.ours, lambda name, data: events.append((name, data)), timeout=10))
        return opened[-1], monitor

    yield dial
    for qmp in opened:
        qmp.close()
        qmp.close()


Connect = Callable[[Answer], tuple[Qmp, Monitor]]


def test_a_command_and_its_return(connect: Connect) -> None:
    qmp, monitor = connect(lambda monitor, request: {"return": {"running": True}})
    assert qmp.execute("query-status") == {"running": True}
    assert qmp.execute("stop", {"now": 1}) == {"running": True}
    assert [(r["execute"], r.get("arguments")) for r in monitor.asked] == [
        ("query-status", {}),
        ("stop", {"now": 1}),
    ]


def test_the_human_monitor(connect: Connect) -> None:
    qmp, monitor = connect(lambda monitor, request: {"return": "one\r\ntwo\r\n"})
    assert qmp.hmp("info status") == "one\ntwo\n"
    assert monitor.asked[0]["arguments"] == {"command-line": "info status"}


def test_an_event_comes_before_the_answer_it_precedes(connect: Connect) -> None:
    def answer(monitor: Monitor, request: dict[str, Any]) -> dict[str, Any]:
        monitor.send({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})
        return {"return": {}}

    qmp, _ = connect(answer)
    qmp.execute("stop")
    assert events == [("STOP", {})]


def test_a_refusal_is_one_line(connect: Connect) -> None:
    qmp, _ = connect(lambda m, r: {"error": {"class": "CommandNotFound", "desc": "no such command"}})
    with pytest.raises(QmpError, match=r"^QEMU refused QMP 'bogus': no such command$"):
        qmp.execute("bogus")


def test_no_answer_in_time(connect: Connect) -> None:
    qmp, _ = connect(lambda monitor, request: None)
    with pytest.raises(QmpError, match=r"did not answer QMP 'query-status' within 0.2 s"):
        qmp.execute("query-status", timeout=0.2)


def test_a_monitor_that_hangs_up(connect: Connect) -> None:
    def answer(monitor: Monitor, request: dict[str, Any]) -> None:
        raise Hangup

    qmp, _ = connect(answer)
    for _ in range(2):
        with pytest.raises(GuestDied):
            qmp.execute("query-status")


def test_a_monitor_that_does_not_greet() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(GuestDied):
        Qmp(ours, lambda name, data: None)


_SILENT = """
import socket
from inspector.errors import QmpError
from inspector.machine.qmp import Qmp

ours, theirs = socket.socketpair()
try:
    Qmp(ours, lambda name, data: None, timeout=0.2)
except QmpError as error:
    print(error)
"""


def test_a_monitor_that_keeps_silent() -> None:
    """One error: asyncio, which tells of what was given up when it is thrown away, has nothing to add."""
    done = subprocess.run([sys.executable, "-c", _SILENT], capture_output=True, text=True, check=True)
    assert done.stdout == "QEMU did not answer the QMP greeting within 0.2 s\n"
    assert done.stderr == ""


def test_a_closed_connection(connect: Connect) -> None:
    qmp, _ = connect(lambda monitor, request: {"return": {}})
    qmp.close()
    with pytest.raises(GuestDied, match="closed"):
        qmp.execute("query-status")


def test_threads_share_it(connect: Connect) -> None:
    qmp, _ = connect(lambda monitor, request: {"return": request["arguments"]["n"]})
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: qmp.execute("echo", {"n": n})}))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {n: n for n in range(20)}
