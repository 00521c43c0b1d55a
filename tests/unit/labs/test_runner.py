"""How a story is told and ended, on a stage of cardboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from inspector import labs
from inspector.errors import LabFailed, UsageError
from inspector.labs import runner
from inspector.labs.actor import Actor, PagemapWord
from inspector.labs.story import Check, Ending, Lab, Question, Seen, Step, Story

GOOD = Check("It holds", True, "1", "1", "the tables")
BAD = Check("It holds", False, "1", "2", "the tables", "is it on?")


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was prepared, and that the stage was left."""
    seen: list[str] = []

    class Cardboard:
        def __init__(self, guest: Any, lab: Lab, prepare: str | None) -> None:
            if prepare == "broken":
                raise LabFailed("the program is gone: no such file")
            seen.append(str(prepare))

        def __enter__(self) -> Cardboard:
            return self

        def __exit__(self, *exc: object) -> None:
            seen.append("left")

        def check_health(self) -> None:
            if "sick" in seen:
                raise LabFailed("the kernel complains: WARNING: CPU: 0")

    monkeypatch.setattr(runner, "Stage", Cardboard)
    return seen


def told(
    story: Callable[[Any], Story], prepare: str | None = None, answers: tuple[str, ...] = ()
) -> list[Any]:
    lab = Lab("it", "Is it?", "It is.", story)
    generator = labs.run(lab, SimpleNamespace(), prepare)  # type: ignore[arg-type]
    events: list[Any] = []
    left = iter(answers)
    answer: str | None = None
    while True:
        try:
            events.append(generator.send(answer))
        except StopIteration:
            return events
        answer = next(left) if isinstance(events[-1], Question) else None


def test_steps_are_numbered_and_the_answer_comes_last(left: list[str]) -> None:
    def story(stage: Any) -> Story:
        yield Step("One", "words")
        yield Seen((), (GOOD,))
        yield Step("Two", "words")
        yield Seen((), (GOOD,))

    events = told(story)
    assert [e.number for e in events if isinstance(e, Step)] == [1, 2]
    assert events[-1] == Ending(True, "It is.")
    assert left == ["None", "left"]


def test_a_check_that_fails_ends_it(left: list[str]) -> None:
    def story(stage: Any) -> Story:
        yield Step("One", "words")
        yield Seen((), (GOOD, BAD))
        raise AssertionError("it went on")

    events = told(story, "mine")
    assert isinstance(events[-2], Seen), "what was seen is still told"
    assert events[-1] == Ending(False, "step 1: It holds: expected 1, found 2 (the tables); is it on?")
    assert left == ["mine", "left"]


def test_a_missing_premise_ends_it(left: list[str]) -> None:
    def story(stage: Any) -> Story:
        yield Step("One", "words")
        raise LabFailed("there is no swap")

    assert told(story)[-1] == Ending(False, "step 1: there is no swap")
    assert told(story, "broken") == [Ending(False, "the program is gone: no such file")]
    assert left == ["None", "left"]


def test_answers_reach_the_story(left: list[str]) -> None:
    def story(stage: Any) -> Story:
        yield Step("One", "words")
        said = yield Question("How many?", "", "2")
        yield Seen((), (Check("The answer", said == "2", "2", str(said), "you"),))

    assert told(story, answers=("2",))[-1].passed
    assert not told(story, answers=("3",))[-1].passed


def test_leaving_early_leaves_the_stage(left: list[str]) -> None:
    def story(stage: Any) -> Story:
        yield Step("One", "words")

    generator = labs.run(Lab("it", "", "", story), SimpleNamespace())  # type: ignore[arg-type]
    next(generator)
    generator.close()
    assert left == ["None", "left"]


def test_names() -> None:
    assert labs.find("zero-page").name == "zero-page"
    with pytest.raises(UsageError, match="did you mean zero-page"):
        labs.find("zeropage")
    with pytest.raises(UsageError, match="kmi lab --list"):
        labs.find("qqqq")
    names = [lab.name for lab in labs.LABS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("raw", "pfn", "swap"),
    [
        (0x8180000000012345, 0x12345, None),  # present, exclusive, soft-dirty
        (0x4000000000000000 | 7 << 5 | 3, None, (3, 7)),  # swapped: type in the low 5 bits
        (0, None, None),
    ],
)
def test_pagemap_words(raw: int, pfn: int | None, swap: tuple[int, int] | None) -> None:
    assert PagemapWord(raw).pfn == pfn
    assert PagemapWord(raw).swap == swap


class Talk:
    """A guest that answers each command with the next line."""

    def __init__(self, *lines: str) -> None:
        self.lines: Iterator[str] = iter(lines)
        self.commands: list[str] = []

    def spawn(self, command: str) -> int:
        self.commands.append(command)
        return 77

    def run(self, command: str, timeout: float = 30) -> Any:
        self.commands.append(command)
        out = next(self.lines, "") if "read -t" in command else "no such file\n" if "tail" in command else ""
        return SimpleNamespace(stdout=out, returncode=0)


def test_what_the_actor_says() -> None:
    guest = Talk(
        "ok pid=77\n",
        "ok start=0x7f0000000000\n",
        "ok value=3 minor=1 major=0 signal=11 code=2 address=0x10 entry=0x8000000000000005\n",
        "error madvise: Invalid argument\n",
    )
    actor = Actor(guest, "true")  # type: ignore[arg-type]
    assert actor.map("page", 1) == 0x7F0000000000
    access = actor.read(0x7F0000000000)
    assert (access.value, access.minor, access.signal, access.code) == (3, 1, 11, 2)
    assert access.pagemap.pfn == 5
    with pytest.raises(LabFailed, match="Invalid argument"):
        actor.ask("advise")
    with pytest.raises(LabFailed, match="gone: no such file"):
        actor.ask("look")


def test_an_actor_that_never_comes_is_cleaned_up() -> None:
    guest = Talk()
    with pytest.raises(LabFailed, match="gone"):
        Actor(guest, "false", "swapoff -a")  # type: ignore[arg-type]
    assert "kill -9 77" in guest.commands[-1]
    assert "swapoff -a" in guest.commands[-1]


def test_a_kernel_that_complains(left: list[str]) -> None:
    """All checks passed, and still."""

    def story(stage: Any) -> Story:
        yield Step("One", "words")
        yield Seen((), (GOOD,))

    events = told(story, prepare="sick")
    assert events[-1] == Ending(False, "step 1: the kernel complains: WARNING: CPU: 0")
    assert left[-1] == "left"
