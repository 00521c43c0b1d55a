"""The one thread behind the screens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar, cast

import pytest
from textual.message import Message

from inspector.errors import GuestDied, MachineError
from inspector.machine import RunState
from inspector.tui.poller import Answer, Died, Failed, Poller, Request, StateChanged
from inspector.tui.source import Source

M = TypeVar("M", bound=Message)
RUNNING, PAUSED = RunState("running", "running"), RunState("paused", "paused by user")


class Stub:
    """A source that knows its state and its console."""

    def __init__(self) -> None:
        self.run_state = RUNNING

    def state(self) -> RunState:
        return self.run_state

    def console(self, lines: int) -> str:
        return "last words"


class Harness:
    """A poller, and what it says."""

    def __init__(self) -> None:
        self.source = Stub()
        self.said: queue.Queue[Message] = queue.Queue()
        self.poller = Poller(cast(Source, self.source), self.said.put)
        self.poller.start()

    def hear(self, kind: type[M]) -> M:
        """The next message of a kind; others are passed over."""
        while True:
            message = self.said.get(timeout=20)
            if isinstance(message, kind):
                return message


@pytest.fixture
def harness() -> Iterator[Harness]:
    found = Harness()
    yield found
    found.poller.stop()


def test_answers_again_and_again(harness: Harness) -> None:
    count = iter(range(100))
    harness.poller.watch(Request(7, lambda source: next(count), 0.01))
    assert [(answer.serial, answer.data) for answer in (harness.hear(Answer) for _ in range(3))] == [
        (7, 0),
        (7, 1),
        (7, 2),
    ]


def test_only_the_last_request_of_several_is_read(harness: Harness) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(source: Source) -> str:
        begun.set()
        assert go.wait(20)
        return "slow"

    harness.poller.watch(Request(1, slow, 60))
    assert begun.wait(20)
    read: list[int] = []

    def note(serial: int, source: Source) -> None:
        read.append(serial)

    for serial in (2, 3, 4):
        harness.poller.watch(Request(serial, partial(note, serial), 60))
    go.set()
    assert harness.hear(Answer).data == "slow"
    assert harness.hear(Answer).serial == 4
    assert read == [4]


def test_errors_are_messages_and_the_thread_lives_on(harness: Harness) -> None:
    def fail(error: Exception) -> Any:
        def read(source: Source) -> None:
            raise error

        return read

    harness.poller.watch(Request(1, fail(MachineError("no answer")), 60))
    assert (lambda m: (m.serial, m.error))(harness.hear(Failed)) == (1, "no answer")
    harness.poller.watch(Request(2, fail(KeyError("bug")), 60))
    assert "internal error: KeyError" in harness.hear(Failed).error
    harness.poller.do(fail(MachineError("cannot pause")))
    assert (lambda m: (m.serial, m.error))(harness.hear(Failed)) in ((None, "cannot pause"),)
    harness.poller.watch(Request(3, lambda source: "fine", 60))
    assert harness.hear(Answer).data == "fine"


def test_a_guest_that_died_is_told_with_its_last_words(harness: Harness) -> None:
    def read(source: Source) -> None:
        raise GuestDied("QEMU is gone")

    harness.poller.watch(Request(1, read, 60))
    died = harness.hear(Died)
    assert (died.why, died.tail) == ("QEMU is gone", "last words")


def test_a_state_of_death_is_enough(harness: Harness) -> None:
    harness.source.run_state = RunState("dead", "killed")
    harness.poller.watch(Request(1, lambda source: None, 60))
    assert harness.hear(Died).why == "killed"


def test_what_stands_still_is_read_once(harness: Harness) -> None:
    reads: queue.Queue[int] = queue.Queue()
    harness.source.run_state = PAUSED
    harness.poller.watch(Request(1, lambda source: reads.put(1), 0.01))
    while harness.hear(StateChanged).state != PAUSED:  # it may have looked before
        pass
    harness.hear(Answer)
    # A job between, so that some turns have passed: the paused guest is read again only because of it.
    harness.poller.do(lambda source: None)
    harness.hear(Answer)
    assert reads.qsize() == 2
    harness.source.run_state = RUNNING
    assert harness.hear(StateChanged).state == RUNNING
    harness.hear(Answer)
    harness.hear(Answer)


def test_jobs_are_done_in_order_between_reads(harness: Harness) -> None:
    done: list[str] = []
    harness.poller.do(lambda source: done.append("one"))
    harness.poller.do(lambda source: done.append("two"))
    harness.poller.watch(Request(1, lambda source: tuple(done), 60))
    assert harness.hear(Answer).data == ("one", "two")
