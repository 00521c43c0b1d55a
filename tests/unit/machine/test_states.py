"""Saved states: written and read back, damaged in every part, kept within a limit, made by one at a time."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import MachineError
from inspector.machine.states import Guest, State, StateCache, save
from inspector.progress import SILENT
from inspector.units import MIB

PAGE = 4096
ABOUT = Guest(agent_pid=87, window=True, pci={"00:01.0": {"4": 0x103}})


class Ram:
    """A sparse file with known pages."""

    def __init__(self, size: int = 4 * MIB) -> None:
        self.fd = os.memfd_create("ram")
        self.size = size
        os.ftruncate(self.fd, size)

    def write(self, page: int, byte: int) -> None:
        os.pwrite(self.fd, bytes([byte]) * PAGE, page * PAGE)

    def bytes(self) -> bytes:
        return os.pread(self.fd, self.size, 0)

    def used(self) -> int:
        return os.fstat(self.fd).st_blocks * 512


@pytest.fixture
def ram() -> Iterator[Ram]:
    made = Ram()
    for page in (0, 1, 7, 500, 1023):
        made.write(page, page % 251 + 1)
    yield made
    os.close(made.fd)


def saved(folder: Path, ram: Ram) -> State:
    return save(folder, ram.fd, b"devices" * 100, b"console\n", ABOUT)


def checked(state: State | None) -> None:
    assert state is not None
    state.check_ram()


def test_a_state_is_read_back_as_it_was(tmp_path: Path, ram: Ram) -> None:
    cache = StateCache(tmp_path / "states")
    written = saved(cache.folder, ram)
    assert list(cache.folder.iterdir()) == [], "no name until it is whole and asked for"
    cache.keep("key", written)
    written.close()
    state = cache.find("key")
    assert state is not None
    state.check_ram()
    assert (state.devices, state.console, state.guest) == (b"devices" * 100, b"console\n", ABOUT)
    other = Ram()
    state.fill(other.fd)
    assert other.bytes() == ram.bytes()
    state.close()
    os.close(other.fd)


def test_ram_is_put_back_and_what_was_not_there_is_given_back(tmp_path: Path, ram: Ram) -> None:
    state = saved(tmp_path, ram)
    before, used = ram.bytes(), ram.used()
    for page in (0, 3, 700, 1022, 1023):
        ram.write(page, 255)
    assert ram.bytes() != before
    state.fill(ram.fd)
    assert ram.bytes() == before
    assert ram.used() == used
    state.close()


def test_any_damage_is_seen(tmp_path: Path, ram: Ram) -> None:
    """A byte changed anywhere, or the end cut off anywhere: never a state with other content."""
    cache = StateCache(tmp_path)
    cache.keep("good", saved(tmp_path, ram))
    good = (tmp_path / "good.state").read_bytes()
    random.seed(0)
    size = len(good)
    places = [0, 1, 5 * PAGE - 1, 5 * PAGE, *range(size - 600, size, 7), *random.sample(range(size), 100)]
    bad = tmp_path / "bad.state"
    for place in places:
        changed = bytearray(good)
        changed[place] ^= 0x10
        bad.write_bytes(changed)
        with pytest.raises(MachineError):
            checked(cache.find("bad"))
        bad.write_bytes(good[:place])
        with pytest.raises(MachineError):
            cache.find("bad")
    bad.write_bytes(good)
    assert cache.find("bad") is not None


def test_no_entry_is_none(tmp_path: Path) -> None:
    assert StateCache(tmp_path / "nowhere").find("key") is None


def test_the_first_of_two_writers_stands(tmp_path: Path, ram: Ram) -> None:
    cache = StateCache(tmp_path)
    first = saved(tmp_path, ram)
    ram.write(9, 9)
    second = saved(tmp_path, ram)
    cache.keep("key", first)
    cache.keep("key", second)
    found = cache.find("key")
    assert found is not None
    assert os.fstat(found.fd).st_ino == os.fstat(first.fd).st_ino


def test_those_used_longest_ago_go(tmp_path: Path, ram: Ram) -> None:
    state = saved(tmp_path, ram)
    cache = StateCache(tmp_path, limit=3 * state.size)
    for number in range(3):
        cache.keep(f"key{number}", saved(tmp_path, ram))
        os.utime(tmp_path / f"key{number}.state", (number + 1, number + 1))  # used then
    used = cache.find("key0")
    assert used is not None
    cache.keep("key3", state)
    assert sorted(path.stem for path in tmp_path.glob("*.state")) == ["key0", "key2", "key3"]


def test_who_has_a_state_open_keeps_it(tmp_path: Path, ram: Ram) -> None:
    cache = StateCache(tmp_path)
    cache.keep("key", saved(tmp_path, ram))
    state = cache.find("key")
    assert state is not None
    cache.drop("key")
    assert cache.find("key") is None
    state.check_ram()


def test_a_full_disk(tmp_path: Path, ram: Ram, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "sendfile", no_space)
    before = list(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, ram)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


def test_a_file_system_that_has_no_nameless_files(
    tmp_path: Path, ram: Ram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is there all the same, but cannot be named."""
    real = os.open

    def refuse(path: object, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    state = saved(tmp_path, ram)
    state.check_ram()
    with pytest.raises(OSError, match=r"o such file|ross-device"):
        StateCache(tmp_path).keep("key", state)


def test_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    cache = StateCache(tmp_path)
    order: list[str] = []

    def other() -> None:
        with cache.making("key", 30, SILENT):
            order.append("second")

    with cache.making("key", 30, SILENT):
        thread = threading.Thread(target=other)
        thread.start()
        with cache.making("another key", 30, SILENT):
            pass
        time.sleep(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    cache = StateCache(tmp_path)
    with cache.making("key", 30, SILENT), cache.making("key", 0.1, SILENT):
        pass
