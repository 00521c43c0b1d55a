"""A lab on a guest: its story told as it happens, and ended where something is not as it was said."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from inspector.errors import KernelError, LabFailed
from inspector.guest import Guest
from inspector.labs.stage import Stage
from inspector.labs.story import Ending, Event, Lab, Seen, Step


def run(lab: Lab, guest: Guest, prepare: str | None = None) -> Generator[Event, str | None, None]:
    """Each event as it happens; the last one is an Ending. To a Question the answer is sent.

    `prepare` takes the place of the lab's own. Raises MachineError, GuestDied; that the lab fails is no
    error but its Ending.
    """
    number = 0
    try:
        with Stage(guest, lab, prepare) as stage, closing(lab.story(stage)) as story:
            event = next(story, None)
            while event is not None:
                if isinstance(event, Step):
                    number += 1
                    event = replace(event, number=number)
                answer = yield event
                if isinstance(event, Seen) and (failed := [c for c in event.checks if not c.passed]):
                    yield Ending(False, f"step {number}: {failed[0].complaint}")
                    return
                try:
                    event = story.send(answer)
                except StopIteration:
                    break
            stage.check_health()
    except (LabFailed, KernelError) as error:
        yield Ending(False, f"step {number}: {error}" if number else str(error))
        return
    yield Ending(True, lab.answer)
