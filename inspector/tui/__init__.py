"""The terminal UI: a live guest's memory drawn, one poller behind it, nothing that blocks the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inspector.guest import Guest


def run(guest: Guest) -> None:
    """Show the guest until the user quits. The guest stays open: it is the caller's."""
    from inspector.tui.app import InspectorApp
    from inspector.tui.guest_source import GuestSource

    InspectorApp(GuestSource(guest)).run()
