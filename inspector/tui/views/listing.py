"""Views that are a table with a filter."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from textual import events
from textual.widgets import Input

from inspector.tui.views.base import Data, View
from inspector.tui.widgets.table import VirtualTable

Row = TypeVar("Row")


class FilterInput(Input):
    """Filters as one types; Enter keeps the filter, Esc drops it."""

    DEFAULT_CSS = """
    FilterInput { background: $panel; display: none; }
    FilterInput.-shown { display: block; }
    """

    def on_key(self, event: events.Key) -> None:
        """Give the keys that end the typing to the view."""
        if event.key in ("escape", "enter", "down", "up"):
            event.stop()
            event.prevent_default()
            self.post_message(self.Submitted(self, "" if event.key == "escape" else self.value))


class ListView(View[Data], Generic[Data, Row]):
    """A view with one table that can be sorted and filtered; compose() yields that and the filter."""

    @property
    def table(self) -> VirtualTable[Row]:
        """The table."""
        return self.query_one(VirtualTable)

    def filter_input(self) -> FilterInput:
        """The line to type a filter into, hidden at first."""
        return FilterInput(
            placeholder="filter: ⏎ keeps it, Esc drops it", select_on_focus=False, compact=True
        )

    def focus_first(self) -> None:
        """The table."""
        self.table.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as one types."""
        event.stop()
        self.table.set_filter(event.value.strip())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Back to the table."""
        event.stop()
        field = self.query_one(FilterInput)
        if event.value != field.value:
            field.value = event.value
        field.set_class(bool(event.value.strip()), "-shown")
        self.table.focus()

    def action_filter(self) -> None:
        """Type a filter."""
        field = self.query_one(FilterInput)
        field.add_class("-shown")
        self.screen.set_focus(field)  # at once: focus() would take its turn behind keys that are typed ahead

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        self.table.sort_next(step)

    def action_reverse(self) -> None:
        """Turn the order round."""
        self.table.reverse()

    def on_virtual_table_chosen(self) -> None:
        """A click on the row under the cursor."""
        self.action_open()

    def action_open(self) -> None:
        """Follow the row under the cursor."""
        raise NotImplementedError

    def memento(self) -> Any:
        """The row under the cursor."""
        return self.table.cursor_key

    def restore(self, memento: Any) -> None:
        """The cursor goes there as soon as that row is there."""
        self.table.want(memento)

    def forget(self) -> None:
        """No rows yet."""
        self.table.empty = "reading…"
        self.table.clear()
