"""Every view but the first: what is imported here, nobody waits for before the overview is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.message import Message

from inspector.tui.recorder import Recorder
from inspector.tui.source import Source
from inspector.tui.teller import Teller
from inspector.tui.views.base import View
from inspector.tui.views.console import ConsoleView
from inspector.tui.views.devices import DevicesView
from inspector.tui.views.faults import FaultsView
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
        self.recorder = Recorder(source, post)
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
            FaultsView(self.recorder),
            LabsView(self._teller),
        )
        self.views = {view.NAME: view for view in views}

    def close(self) -> None:
        """Nobody traces the guest, and no lab is played, any more."""
        self.recorder.close()
        self._teller.close()
