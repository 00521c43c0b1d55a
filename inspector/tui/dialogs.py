"""What lies over the screens: go to, the keys, and the last words of a guest."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from inspector.errors import InspectorError
from inspector.tui import palette
from inspector.tui.actions import GLOBAL, VIEWS, Action
from inspector.tui.places import RULES, Names, Place, ViewName, describe, parse
from inspector.tui.source import Source

_SUGGESTED = 8


class GoDialog(ModalScreen[Place | None]):
    """Asks where to go; gives the place, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back"),
        Binding("tab", "complete", "Complete", priority=True),
    ]
    DEFAULT_CSS = """
    GoDialog { align: center top; background: $background 60%; }
    GoDialog > Vertical {
        width: 76; max-width: 100%; height: auto; max-height: 100%; margin-top: 2; padding: 0 1;
        background: $surface; border: round $primary; border-title-color: $accent;
    }
    GoDialog Input { margin: 0 0 1 0; background: $panel; }
    GoDialog Static { height: auto; }
    """

    def __init__(self, source: Source, pid: int) -> None:
        """`pid` is the task that bare user addresses belong to."""
        super().__init__()
        self._source = source
        self._names: Names = source
        self._pid = pid

    def compose(self) -> ComposeResult:
        """The input, what it means, and what it may be."""
        with Vertical() as box:
            box.border_title = "Go to"
            yield Input(placeholder="address, PFN, symbol or PID", select_on_focus=False, compact=True)
            yield Static(id="hint", markup=False)

    def on_mount(self) -> None:
        """Begin with the rules."""
        self._explain("")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Say what it means so far."""
        self._explain(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go there, or say why not."""
        try:
            self.dismiss(parse(event.value, self._pid, self._names))
        except InspectorError as error:
            self._explain(event.value, str(error))

    def action_complete(self) -> None:
        """Extend a symbol as far as it is certain, or take the first that fits."""
        field = self.query_one(Input)
        found = self._suggestions(field.value)
        if not found:
            return
        common = found[0]
        for name in found:
            while not name.startswith(common):
                common = common[:-1]
        field.value = common if len(common) > len(field.value) else found[0]
        field.cursor_position = len(field.value)

    def _suggestions(self, text: str) -> list[str]:
        text = text.strip()
        if not text or text[0].isdigit() or not text.replace("_", "").replace(".", "").isalnum():
            return []
        return self._source.complete(text, _SUGGESTED)

    def _explain(self, text: str, error: str = "") -> None:
        hint = Text()
        if error:
            hint.append(f"{error}\n", palette.BAD)
        elif text.strip():
            try:
                hint.append(f"⏎ {describe(parse(text, self._pid, self._names))}\n", f"bold {palette.GOOD}")
            except InspectorError:
                hint.append("…\n", palette.DIM)
        suggestions = self._suggestions(text)
        for name in suggestions:
            hint.append(f"  {name}\n", palette.ACCENT)
        if not suggestions:
            for example, meaning in RULES:
                hint.append(f"  {example:<17}", palette.WARN)
                hint.append(f"{meaning.format(pid=self._pid)}\n", palette.DIM)
        hint.rstrip()
        self.query_one("#hint", Static).update(hint)


class HelpDialog(ModalScreen[None]):
    """The keys of a view, and those that work everywhere."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss(None)", "Close"),
    ]
    DEFAULT_CSS = """
    HelpDialog { align: center middle; background: $background 60%; }
    HelpDialog > VerticalScroll {
        width: 76; max-width: 100%; height: auto; max-height: 100%; padding: 0 1;
        background: $surface; border: round $primary;
        border-title-color: $accent; border-subtitle-color: $accent;
    }
    HelpDialog Static { height: auto; }
    """

    def __init__(self, view: ViewName) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        """Two lists."""
        with VerticalScroll() as box:
            box.border_title = f"Keys: {self._view.title()}"
            box.border_subtitle = "Esc closes"
            text = Text()
            _list(text, VIEWS[self._view])
            text.append("\nEverywhere\n", f"bold {palette.ACCENT}")
            _list(text, GLOBAL)
            _list(
                text,
                (
                    Action("", "ctrl+p", "All actions by name"),
                    Action("", "tab", "The next part of the screen"),
                ),
            )
            text.rstrip()
            yield Static(text)


class DeathDialog(ModalScreen[None]):
    """The guest is gone: why, what its console said last, and what can be done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+q,ctrl+c", "app.quit", "Quit"),
        Binding("escape", "dismiss(None)", "Look at the last data"),
    ]
    DEFAULT_CSS = """
    DeathDialog { align: center middle; background: $background 60%; }
    DeathDialog > Vertical {
        width: 90%; max-width: 110; height: auto; max-height: 90%; padding: 1 2;
        background: $surface; border: heavy $error;
        border-title-color: $error; border-subtitle-color: $accent;
    }
    DeathDialog Static { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, why: str, tail: str) -> None:
        super().__init__()
        self._why = why
        self._tail = tail

    def compose(self) -> ComposeResult:
        """Reason and console; the keys are on the border, where nothing pushes them out."""
        with Vertical() as box:
            box.border_title = "The guest is gone"
            box.border_subtitle = "q to quit, Esc to look at what was read last"
            text = Text(self._why, style=f"bold {palette.FOREGROUND}")
            if self._tail.strip():
                text.append("\n\nIts console said last:\n", palette.DIM)
                text.append(self._tail.rstrip(), palette.FOREGROUND)
            yield Static(text)


def _list(text: Text, actions: tuple[Action, ...]) -> None:
    for action in actions:
        text.append(f"  {action.key_text:<8}", palette.WARN)
        text.append(f"{action.title}\n", palette.FOREGROUND)
