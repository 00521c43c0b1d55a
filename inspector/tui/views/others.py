"""Every view but the first: what is imported here, nobody waits for before the overview is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.message import Message

from inspector.trace.ledger import Ledger
from inspector.tui.places import ViewName
from inspector.tui.recorder import Recorder, Turn
from inspector.tui.source import Source
from inspector.tui.teller import Teller
from inspector.tui.views.allocations import AllocationsView
from inspector.tui.views.base import View
from inspector.tui.views.console import ConsoleView
from inspector.tui.views.devices import DevicesView
from inspector.tui.views.faults import FaultBook, FaultsView
from inspector.tui.views.frames import FramesView
from inspector.tui.views.labs import LabsView
from inspector.tui.views.memory import MemoryView
from inspector.tui.views.page import PageScreen
from inspector.tui.views.slabs import SlabsView
from inspector.tui.views.space import SpaceView
from inspector.tui.views.swap import SwapView
from inspector.tui.views.tasks import TasksView
from inspector.tui.views.vmalloc import VmallocView
from inspector.tui.views.walk import WalkScreen


class Others:
    """The views by name, and what traces and plays labs for them."""

    def __init__(self, source: Source, post: Callable[[Message], Any]) -> None:
        """`post` takes messages from any thread."""
        self.turn = Turn()
        faults = Recorder(source.trace_faults, FaultBook, post, self.turn)
        pages = Recorder(source.trace_allocations, Ledger, post, self.turn)
        self.recorders: dict[ViewName, Recorder[Any, Any]] = {
            ViewName.FAULTS: faults,
            ViewName.ALLOCATIONS: pages,
        }
        self._teller = Teller(source, post)
        views: tuple[View[Any], ...] = (
            TasksView(),
            SpaceView(),
            WalkScreen(),
            FramesView(),
            PageScreen(),
            SlabsView(),
            VmallocView(),
            SwapView(),
            MemoryView(),
            DevicesView(),
            ConsoleView(),
            FaultsView(faults),
            AllocationsView(pages),
            LabsView(self._teller),
        )
        self.views = {view.NAME: view for view in views}

    def close(self) -> None:
        """Nobody traces the guest, and no lab is played, any more."""
        self.turn.close()
        self._teller.close()
