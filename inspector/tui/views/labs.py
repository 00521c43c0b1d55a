"""Labs: a list of them, and the one that is played, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Input, Static

from inspector.labs import Lab
from inspector.labs.story import AliasesShown, Ending, EntryShown, FrameShown, Seen, Step
from inspector.tui import palette
from inspector.tui.actions import VIEWS, bindings
from inspector.tui.places import Place, ViewName
from inspector.tui.source import Source
from inspector.tui.teller import Teller
from inspector.tui.views.base import Go
from inspector.tui.views.listing import ListView
from inspector.tui.widgets.story import StoryText
from inspector.tui.widgets.table import Column, VirtualTable
from inspector.units import Pfn


class StoryBody(VerticalScroll, can_focus=True, inherit_bindings=False):
    """Scrolls the story; Enter is the view's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "Up", show=False),
        Binding("down", "scroll_down", "Down", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
        Binding("home", "scroll_home", "First", show=False),
        Binding("end", "scroll_end", "Last", show=False),
    ]
    DEFAULT_CSS = "StoryBody { height: 1fr; scrollbar-size-vertical: 1; }"


class AnswerInput(Input):
    """What the reader answers; Esc gives the keys back."""

    DEFAULT_CSS = """
    AnswerInput { background: $panel; display: none; }
    AnswerInput.-shown { display: block; }
    """

    def on_key(self, event: events.Key) -> None:
        """Esc gives the keys back to the view."""
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            self.screen.set_focus(self.screen.query_one(StoryBody))


class LabsView(ListView[tuple[Lab, ...], Lab]):
    """Without a lab the list of them; with one its story. Enter goes on."""

    NAME = ViewName.LABS
    EVERY = 60.0
    BINDINGS: ClassVar[list[BindingType]] = bindings(VIEWS[ViewName.LABS])

    def __init__(self, teller: Teller) -> None:
        super().__init__()
        self._teller = teller
        self._rest = False
        self._outcomes: dict[str, bool] = {}

    def compose(self) -> ComposeResult:
        """Summary, list or story, what Enter does, inputs."""
        yield Static(id="labs-summary", classes="summary", markup=False)
        yield VirtualTable(
            (
                Column("lab", lambda lab: lab.name, lambda lab: lab.name, 16),
                Column("outcome", self._outcome, self._outcome, 9, color=self._color),
                Column("question", lambda lab: lab.question, lambda lab: lab.question, 0),
            ),
            lambda lab: lab.name, lambda lab: f"{lab.name} {lab.question}", id="lab-table",
        )  # fmt: skip
        with StoryBody():
            yield StoryText()
        yield Static(id="labs-prompt", markup=False)
        yield self.filter_input()
        yield AnswerInput(placeholder="your answer", compact=True)

    def _outcome(self, lab: Lab) -> str:
        passed = self._outcomes.get(lab.name)
        return "-" if passed is None else "✔ passed" if passed else "✖ failed"

    def _color(self, lab: Lab) -> str:
        passed = self._outcomes.get(lab.name)
        return palette.DIM if passed is None else palette.GOOD if passed else palette.BAD

    @property
    def lab(self) -> str | None:
        """The lab that is played; None in the list."""
        return self.place.label

    @property
    def on(self) -> bool:
        """Whether there is more to come."""
        return self._teller.on

    def request(self, place: Place) -> Callable[[Source], tuple[Lab, ...]]:
        """The labs that there are."""
        return lambda source: source.labs()

    def show(self, data: tuple[Lab, ...]) -> None:
        """The list."""
        super().show(data)
        self.table.set_rows(data)
        self._draw()

    def forget(self) -> None:
        """Another lab begins, or none."""
        super().forget()
        self._rest = False
        if self.lab is not None:
            self._teller.begin(self.lab)
        self.news()

    def leave(self) -> None:
        """The screen is closed: the lab ends, and the guest is as it was."""
        self._teller.stop()

    def focus_first(self) -> None:
        """The list, the story, or the answer."""
        if self.lab is None:
            self.table.focus()
        elif self._teller.question:
            self.query_one(AnswerInput).focus()
        else:
            self.query_one(StoryBody).focus()

    def news(self) -> None:
        """The story got on."""
        told = self._teller.events
        if self.lab is not None and told and isinstance(told[-1], Ending):
            self._outcomes[self.lab] = told[-1].passed
        elif self._rest and told and not self._teller.question:
            self._teller.go()
        self.query_one(StoryText).show(
            told if self.lab is not None else (), self._teller.answers, self._teller.error
        )
        self._draw()
        self.call_after_refresh(self.query_one(StoryBody).scroll_end, animate=False)
        if self.display:
            self.focus_first()

    def _draw(self) -> None:
        playing = self.lab is not None
        self.table.display, self.query_one(StoryBody).display = not playing, playing
        self.query_one(AnswerInput).set_class(playing and self._teller.question is not None, "-shown")
        text = Text(no_wrap=True, overflow="ellipsis")
        found = next((lab for lab in self.data or () if lab.name == self.lab), None)
        if not playing:
            text.append(
                "Small demonstrations on this guest: each says what will be seen, and checks it", palette.DIM
            )
        else:
            text.append(f"{self.lab} ", f"bold {palette.ACCENT}")
            text.append(found.question if found else "", f"bold {palette.FOREGROUND}")
        self.query_one("#labs-summary", Static).update(text)
        prompt = self.query_one("#labs-prompt", Static)
        prompt.update(self._prompt() if playing else Text(self.table.row.question if self.table.row else ""))
        self.refresh_bindings()

    def on_virtual_table_moved(self) -> None:
        """The question under the cursor in full."""
        self._draw()

    def _prompt(self) -> Text:
        told = self._teller.events
        last = told[-1] if told else None
        if self._teller.busy:
            return Text("◌ at work in the guest…", palette.WARN)
        if question := self._teller.question:
            return Text(f"⏎ answers · {question.help}", palette.DIM)
        if self._teller.error:
            return Text("Esc leads back to the list", palette.DIM)
        match last:
            case Ending():
                return Text("Esc leads back to the list", palette.DIM)
            case Step():
                return Text("⏎ does it", f"bold {palette.WARN}")
        return Text("⏎ goes on", f"bold {palette.WARN}")

    def action_open(self) -> None:
        """Play the lab under the cursor, or go on with the one that is played."""
        if self.lab is not None:
            self._teller.go()
            self._draw()
        elif self.table.row:
            self.post_message(Go(Place(ViewName.LABS, label=self.table.row.name)))

    def action_rest(self) -> None:
        """On to the end, or to the next question."""
        self._rest = True
        if not self._teller.question:
            self._teller.go()
        self._draw()

    def action_page(self) -> None:
        """The frame that was shown last."""
        for event in reversed(self._teller.events):
            for exhibit in event.exhibits if isinstance(event, Seen) else ():
                pfn = _frame_of(exhibit)
                if pfn is not None:
                    self.post_message(Go(Place(ViewName.PAGE, pfn=pfn)))
                    return

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A list can be filtered and sorted, a story told."""
        if action in ("rest", "page"):
            return self.lab is not None
        return action not in ("filter", "sort", "reverse") or self.lab is None

    def on_input_changed(self, event: Input.Changed) -> None:
        """Only the filter filters."""
        if isinstance(event.input, AnswerInput):
            event.stop()
            event.prevent_default()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The reader's answer."""
        if isinstance(event.input, AnswerInput):
            event.stop()
            event.prevent_default()
            event.input.value = ""
            self._teller.go(event.value.strip())
            self._draw()


def _frame_of(exhibit: Any) -> Pfn | None:
    match exhibit:
        case FrameShown(now=now):
            return now.pfn
        case AliasesShown(pfn=pfn):
            return pfn
        case EntryShown(now=look) if look.walk.pfn is not None:
            return look.walk.pfn
    return None
