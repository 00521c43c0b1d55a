"""A widget that draws itself as text, for whatever width it gets."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.message import Message
from textual.widget import Widget

from inspector.tui import palette

_T = TypeVar("_T")


class Edge(Message):
    """The cursor wants to leave a widget: `step` is 1 downwards, -1 upwards."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step


class Drawing(Widget):
    """Subclasses say in draw() what to show; the height follows."""

    DEFAULT_CSS = "Drawing { height: auto; width: 1fr; text-wrap: nowrap; text-overflow: clip; }"

    def draw(self, width: int) -> Text:
        """The whole drawing, lines no wider than `width`."""
        raise NotImplementedError

    def redraw(self) -> None:
        """What is shown has changed."""
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as draw() gives."""
        return max(1, self.draw(width).plain.count("\n") + 1)

    def render(self) -> Text:
        """The drawing at the width there is."""
        text = self.draw(max(1, self.content_size.width))
        text.no_wrap = True
        text.end = ""
        return text


class Picture(Drawing, Generic[_T]):
    """A drawing of one thing, empty while there is none; subclasses say in picture() how it looks."""

    _data: _T | None = None

    def show(self, data: _T | None) -> None:
        """The thing."""
        self._data = data
        self.redraw()

    def draw(self, width: int) -> Text:
        """The thing's picture."""
        return Text() if self._data is None else self.picture(self._data, width)

    def picture(self, data: _T, width: int) -> Text:
        """The whole drawing, lines no wider than `width`."""
        raise NotImplementedError


class Body(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Scrolls what does not fit, and leaves the arrow keys to what is in it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
    ]
    DEFAULT_CSS = "Body { scrollbar-size-vertical: 1; }"


def heading(text: Text, title: str, width: int, note: str = "") -> None:
    """A section's title with a rule behind it; the note only where there is room."""
    if len(title) + len(note) + 2 > width:
        note = ""
    text.append(f"{title} ", f"bold {palette.ACCENT}")
    if note:
        text.append(f"{note} ", palette.DIM)
    used = len(title) + 1 + (len(note) + 1 if note else 0)
    text.append("─" * max(0, width - used) + "\n", palette.FAINT)
