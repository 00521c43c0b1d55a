"""The host's end of the shell channel, against a scripted agent."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from inspector.errors import CommandTimeout, GuestDied, MachineError, UsageError
from inspector.machine import shell as shell_module
from inspector.machine.frames import Decoder, Frame, Kind, encode
from inspector.machine.shell import Shell
from inspector.machine.window import Window

Reply = Callable[["Agent", Frame], None]


class Agent:
    """Answers each frame as the test says, and remembers what came."""

    def __init__(self, channel: socket.socket, reply: Reply) -> None:
        self.channel = channel
        self.seen: list[Frame] = []
        self._reply = reply
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        self.channel.sendall(encode(kind, number, payload))

    def exit(self, number: int, code: int) -> None:
        self.send(Kind.EXIT, number, struct.pack("<i", code))

    def _serve(self) -> None:
        decoder = Decoder()
        with suppress(OSError):  # the test is over
            while data := self.channel.recv(65536):
                for frame in decoder.feed(data):
                    self.seen.append(frame)
                    self._reply(self, frame)


class Channel:
    """A Shell and its scripted agent."""

    def __init__(self, window: Window | None = None) -> None:
        self.running = True
        ours, self.theirs = socket.socketpair()
        self.shell = Shell(ours, lambda: self.running, window)

    def agent(self, reply: Reply) -> Agent:
        agent = Agent(self.theirs, reply)
        agent.send(Kind.HELLO, 0, b"71")
        assert self.shell.hello.wait(10)
        return agent


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.theirs.close()


def silent(agent: Agent, frame: Frame) -> None:
    """An agent that hangs."""


def test_output_is_put_together_and_apart(channel: Channel) -> None:
    def reply(agent: Agent, frame: Frame) -> None:
        for kind, text in ((Kind.STDOUT, b"a\xff"), (Kind.STDERR, b"oops"), (Kind.STDOUT, b"b\n")):
            agent.send(kind, frame.id, text)
        agent.exit(frame.id, 3)

    agent = channel.agent(reply)
    done = channel.shell.run("ls")
    assert (done.stdout_bytes, done.stdout, done.stderr, done.returncode) == (
        b"a\xffb\n",
        "a\ufffdb\n",
        "oops",
        3,
    )
    assert [(frame.kind, frame.payload) for frame in agent.seen] == [(Kind.RUN, b"ls")]
    with pytest.raises(MachineError, match=r"'ls' exited 3: oops"):
        done.check()


def test_noise_between_frames_is_nothing(channel: Channel) -> None:
    def reply(agent: Agent, frame: Frame) -> None:
        agent.channel.sendall(b"[  3.2] a kernel message\r\nKM")
        agent.send(Kind.STDOUT, frame.id, b"clean")
        agent.exit(frame.id, 0)

    channel.agent(reply)
    assert channel.shell.run("true").stdout == "clean"


def test_without_an_agent_the_reason_is_clear(channel: Channel) -> None:
    with pytest.raises(MachineError, match="no agent speaks in this guest"):
        channel.shell.run("true")


def test_answers_find_their_command_whatever_the_order(channel: Channel) -> None:
    waiting: list[Frame] = []

    def reply(agent: Agent, frame: Frame) -> None:
        waiting.append(frame)
        if len(waiting) == 3:
            for each in reversed(waiting):
                agent.send(Kind.STDOUT, each.id, each.payload.upper())
                agent.exit(each.id, 0)

    channel.agent(reply)
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda word=word: answers.update({word: channel.shell.run(word).stdout}))
        for word in ("one", "two", "three")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {"one": "ONE", "two": "TWO", "three": "THREE"}


def test_a_hung_command_is_killed_and_the_channel_goes_on(channel: Channel) -> None:
    def reply(agent: Agent, frame: Frame) -> None:
        if frame.kind == Kind.KILL:
            agent.exit(frame.id, 137)
        elif frame.payload == b"true":
            agent.exit(frame.id, 0)

    agent = channel.agent(reply)
    with pytest.raises(CommandTimeout, match=r"'sleep 99' ran over 0.2 s in the guest and was killed"):
        channel.shell.run("sleep 99", timeout=0.2)
    assert [frame.kind for frame in agent.seen] == [Kind.RUN, Kind.KILL]
    assert channel.shell.run("true").returncode == 0


def test_a_hung_agent_is_told_apart(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "_KILL_GRACE", 0.2)
    channel.agent(silent)
    with pytest.raises(CommandTimeout, match="agent does not answer"):
        channel.shell.run("true", timeout=0.1)


def test_a_flood_is_cut_off(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "OUTPUT_LIMIT", 100_000)
    stop = threading.Event()

    def reply(agent: Agent, frame: Frame) -> None:
        if frame.kind == Kind.KILL:
            agent.exit(frame.id, 137)
        else:
            for _ in range(8):
                agent.send(Kind.STDOUT, frame.id, b"y\n" * 10_000)

    agent = channel.agent(reply)
    with pytest.raises(MachineError, match=r"the command wrote over .* and was killed"):
        channel.shell.run("yes")
    assert [frame.kind for frame in agent.seen] == [Kind.RUN, Kind.KILL]
    stop.set()


def test_the_end_of_the_guest_ends_the_wait_with_its_reason(channel: Channel) -> None:
    def reply(agent: Agent, frame: Frame) -> None:
        channel.shell.fail(GuestDied("the guest is gone: QEMU was killed by signal 9"))

    channel.agent(reply)
    for _ in range(2):
        with pytest.raises(GuestDied, match="killed by signal 9"):
            channel.shell.run("sleep 99")


def test_the_end_of_the_channel_alone_ends_the_wait(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_module, "_REASON", 0.1)
    channel.agent(lambda agent, frame: agent.channel.shutdown(socket.SHUT_RDWR))
    with pytest.raises(GuestDied, match="its shell channel ended"):
        channel.shell.run("sleep 99")


def test_a_new_agent_fails_what_the_old_one_ran(channel: Channel) -> None:
    channel.agent(lambda agent, frame: agent.send(Kind.HELLO, 0, b"99"))
    with pytest.raises(MachineError, match="agent was restarted"):
        channel.shell.run("sleep 99")
    assert channel.shell.agent_pid == 99


def test_a_paused_guest_is_refused(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "_PAUSED_GRACE", 0.1)
    channel.agent(silent)
    channel.running = False
    with pytest.raises(MachineError, match="the guest is paused"):
        channel.shell.run("true")


def test_time_stands_while_the_guest_is_paused(channel: Channel) -> None:
    channel.agent(lambda agent, frame: threading.Timer(0.6, lambda: agent.exit(frame.id, 0)).start())
    runs = iter([True])  # as the command begins, and not once after that
    channel.shell._is_running = lambda: next(runs, False)
    assert channel.shell.run("true", timeout=0.1).returncode == 0


def test_spawn_gives_the_pid_or_the_reason(channel: Channel) -> None:
    pids = iter([4711, -11])
    channel.agent(lambda agent, frame: agent.send(Kind.SPAWNED, frame.id, struct.pack("<i", next(pids))))
    assert channel.shell.spawn("sleep 99") == 4711
    with pytest.raises(MachineError, match="Resource temporarily unavailable"):
        channel.shell.spawn("sleep 99")


def test_a_file_goes_in_pieces_each_acknowledged(channel: Channel) -> None:
    data = bytes(range(256)) * 200
    acknowledged: list[int] = []

    def reply(agent: Agent, frame: Frame) -> None:
        assert len(acknowledged) == len(agent.seen) - 1, "a piece came before the last was acknowledged"
        acknowledged.append(frame.kind)
        agent.send(Kind.ACK, frame.id, struct.pack("<i", 0))

    agent = channel.agent(reply)
    channel.shell.put(data, "/tmp/x", 0o640)
    assert agent.seen[0].payload == struct.pack("<I", 0o640) + b"/tmp/x"
    assert b"".join(frame.payload for frame in agent.seen if frame.kind == Kind.DATA) == data
    assert agent.seen[-1].kind == Kind.DONE


def test_a_file_that_cannot_be_written_says_why(channel: Channel) -> None:
    channel.agent(lambda agent, frame: agent.send(Kind.ACK, frame.id, struct.pack("<i", -28)))
    with pytest.raises(MachineError, match=r"cannot write /tmp/x in the guest: No space left on device"):
        channel.shell.put(b"x", "/tmp/x")


def test_ping(channel: Channel) -> None:
    channel.agent(lambda agent, frame: agent.send(Kind.PONG, frame.id, frame.payload))
    assert channel.shell.ping(bytes(range(256))) > 0


def test_a_changed_ping_is_noticed(channel: Channel) -> None:
    channel.agent(lambda agent, frame: agent.send(Kind.PONG, frame.id, b"other"))
    with pytest.raises(MachineError, match="other bytes"):
        channel.shell.ping(b"ours")


@pytest.mark.parametrize("command", ["", "  ", "a\0b", "x" * 70_000])
def test_commands_that_make_no_sense(channel: Channel, command: str) -> None:
    channel.agent(silent)
    with pytest.raises(UsageError):
        channel.shell.run(command)


@pytest.mark.parametrize("path", ["relative", "/nul\0", "/" + "x" * 4096])
def test_paths_that_make_no_sense(channel: Channel, path: str) -> None:
    channel.agent(silent)
    with pytest.raises(UsageError):
        channel.shell.put(b"", path)


@pytest.mark.parametrize(
    "where", [(1 << 31, 10), (4 << 20, 1), (0, (512 << 10) + 1), (0xFFFFFFFF, 0xFFFFFFFF)]
)
def test_a_guest_that_lies_about_the_window_gives_nothing(where: tuple[int, int]) -> None:
    def reply(agent: Agent, frame: Frame) -> None:
        if frame.kind == Kind.RUN:
            agent.send(Kind.SHOWOUT, frame.id, struct.pack("<II", *where))
            agent.send(Kind.STDOUT, frame.id, b"honest")
            agent.exit(frame.id, 0)

    window = Window()
    channel = Channel(window)
    channel.agent(reply)
    assert channel.shell.run("true").stdout == "honest"
    channel.theirs.close()
    window.close()
