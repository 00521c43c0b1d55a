"""The application: views, history, and the one poller behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import ContentSwitcher, Footer, Static

from inspector.guest import GuestInfo
from inspector.machine import RunState
from inspector.tui import palette, style
from inspector.tui.actions import GLOBAL, VIEWS, Action, bindings
from inspector.tui.dialogs import DeathDialog, GoDialog, HelpDialog
from inspector.tui.places import Place, ViewName
from inspector.tui.poller import Answer, Died, Failed, Poller, Request, StateChanged
from inspector.tui.source import Source
from inspector.tui.views.base import Go, NextTask, Reread, View
from inspector.tui.views.overview import OverviewView
from inspector.tui.widgets.status import StatusLine, Tabs

if TYPE_CHECKING:
    from inspector.tui.recorder import Traced
    from inspector.tui.teller import Told
    from inspector.tui.views.console import RunCommand
    from inspector.tui.views.others import Others

_HISTORY = 100
_HELD = {ViewName.FAULTS: "at a page fault", ViewName.ALLOCATIONS: "at a page allocation or free"}


@dataclass(frozen=True, slots=True)
class _Visited:
    place: Place
    memento: Any


class Introduced(Message):
    """Which guest this is."""

    def __init__(self, info: GuestInfo) -> None:
        super().__init__()
        self.info = info


class InspectorApp(App[None]):
    """Shows a Source until the user quits."""

    TITLE = "kmi"
    BINDINGS: ClassVar[list[BindingType]] = bindings(GLOBAL)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide"), (150, "-huge")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012
    CSS = style.CSS

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.register_theme(palette.THEME)
        self.theme = palette.THEME.name  # before anything is styled by another
        self.source = source
        self._poller = Poller(source, self._post)
        # Held here, and not asked for by query: the screen on top may be a dialog.
        self._status = StatusLine()
        self._tabs = Tabs()
        self._notice = Static(id="notice", markup=False)
        self._switcher = ContentSwitcher(initial=ViewName.OVERVIEW.value)
        self._overview = OverviewView()
        self._others: Others | None = None
        self._serial = 0
        self._history: list[_Visited] = []
        self._place = Place(ViewName.OVERVIEW)
        self._last: dict[ViewName, Place] = {}
        self._dead = False

    # Parts

    def compose(self) -> ComposeResult:
        """Status and tabs on top, the view, its keys at the bottom."""
        yield self._status
        yield self._tabs
        yield self._notice
        with self._switcher:
            yield self._overview
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Begin to read."""
        self._poller.start()
        self._poller.do(self._introduce)
        self.source.on_death(lambda why: self._poller.do(_raise_death(why)))
        self._enter(self._place)

    def on_unmount(self) -> None:
        """Nobody reads or traces the guest after the UI is gone."""
        if self._others:
            self._others.close()
        self._poller.stop()

    @property
    def view(self) -> View[Any]:
        """The view that is shown."""
        return self.view_of(self._place.view)

    @property
    def place(self) -> Place:
        """Where one is."""
        return self._place

    def view_of(self, name: ViewName) -> View[Any]:
        """A view, be it shown or not."""
        return self._overview if name is ViewName.OVERVIEW else self.others.views[name]

    @property
    def others(self) -> Others:
        """The other views and what works for them, made when they are first wanted."""
        if self._others is None:
            from inspector.tui.views.others import Others  # much to import, and the overview needs none of it

            self._others = Others(self.source, self._post)
        return self._others

    # Places

    async def go(self, place: Place, history: bool = True) -> None:
        """Show a place; Esc comes back from it."""
        if place == self._place:
            return
        view = self.view_of(place.view)
        if not view.is_attached:
            view.display = False
            await self._switcher.mount(view)
        if history:
            self._history = [*self._history[-_HISTORY:], _Visited(self._place, self.view.memento())]
        self._enter(place)

    def _enter(self, place: Place, memento: Any = None) -> None:
        self._place = place
        self._last[place.view] = place
        view = self.view
        if place.view is ViewName.LABS:
            self.others.turn.stop()  # a guest that stands still at a record plays no lab
        view.enter(place)
        if memento is not None:
            view.restore(memento)
        self._switcher.current = place.view.value
        self._tabs.show(place.view)
        self._say("")
        view.focus_first()
        self._ask()

    def _ask(self) -> None:
        if self._dead:
            self._status.failed()
            self._say("the guest is gone: what is shown was read before; q quits")
            return
        self._serial += 1
        self._status.asked()
        self._poller.watch(
            Request(self._serial, self.view.request(self._place), self.view.EVERY, self.view.DUTY)
        )

    def _current_pid(self) -> int:
        """The task that bare user addresses belong to: the one under the cursor, or the last looked at."""
        if self.view.pid is not None:
            return self.view.pid
        for place in (self._place, *(visited.place for visited in reversed(self._history))):
            if place.pid is not None:
                return place.pid
        return 1

    def _default(self, view: ViewName) -> Place:
        """Where a digit leads: to where the view was last, or to what is most at hand."""
        if view in (ViewName.FAULTS, ViewName.ALLOCATIONS) and not self._keeps_trace(view):
            return Place(view, pid=self._current_pid())
        if view in self._last:
            return self._last[view]
        if view is ViewName.SPACE:
            return Place(view, pid=self._current_pid())
        return Place(view)

    def _keeps_trace(self, view: ViewName) -> bool:
        """Whether there is a trace to come back to; one that has ended gives way where tasks are chosen."""
        progress = self.others.recorders[view].progress
        choosing = self._place.view in (ViewName.TASKS, ViewName.SPACE)
        return progress.on or (progress.state == "ended" and not choosing)

    async def on_go(self, message: Go) -> None:
        """A view followed a link."""
        await self.go(message.place, message.history)

    def on_reread(self, message: Reread) -> None:
        """A view wants other data."""
        self._ask()

    def on_next_task(self, message: NextTask) -> None:
        """Find the neighbour among the tasks that have an address space, without waiting for it here."""

        def find(source: Source) -> None:
            pids = [task.pid for task in source.tasks(False) if task.vsz]
            further = [pid for pid in pids if (pid - message.pid) * message.step > 0]
            if further:
                pid = min(further) if message.step > 0 else max(further)
                self.post_message(Go(Place(ViewName.SPACE, pid=pid), history=False))

        self._poller.do(find)

    def on_run_command(self, message: RunCommand) -> None:
        """On a thread of its own: a command may take long, and reading goes on meanwhile."""

        def work() -> None:
            answer = message.run(self.source)
            self.call_from_thread(message.console.finished, answer)

        self.run_worker(work, thread=True, exit_on_error=False)

    def on_traced(self, message: Traced) -> None:
        """There is news of the trace."""
        held = ""
        for name, recorder in self.others.recorders.items():
            if recorder.progress.state == "holding":
                held = _HELD[name]
            self._news(name)
        self._status.set_held(held)

    def on_told(self, message: Told) -> None:
        """The lab got on."""
        self._news(ViewName.LABS)

    def _news(self, name: ViewName) -> None:
        view = self.view_of(name)
        if view.is_attached:
            view.news()

    async def on_tabs_chosen(self, message: Tabs.Chosen) -> None:
        """A tab was clicked."""
        await self.action_view(message.view.value)

    # What the poller says

    def _post(self, message: Message) -> None:
        self.post_message(message)

    def on_answer(self, message: Answer) -> None:
        """Draw it, unless one has gone elsewhere meanwhile, or the screen is being taken down."""
        if message.serial != self._serial or not self.view.is_attached or not self.is_running:
            return
        self._status.answered(message.seconds)
        self._say("")
        self.view.show(message.data)

    def _introduce(self, source: Source) -> None:
        self.post_message(Introduced(source.info()))

    def on_introduced(self, message: Introduced) -> None:
        """The status line knows which guest this is."""
        info = message.info
        self._status.set_guest(info.release, info.accel, info.memory, info.cpus)

    def on_failed(self, message: Failed) -> None:
        """Say it on one line."""
        if message.serial in (None, self._serial) and self.view.is_attached:
            self._status.failed()
            self._say(message.error)

    def on_state_changed(self, message: StateChanged) -> None:
        """The status line knows."""
        self._status.set_state(message.state)

    def on_died(self, message: Died) -> None:
        """Say so, once."""
        if not self._dead and self.view.is_attached:
            self._dead = True
            self._status.set_state(RunState("dead", message.why))
            self._ask()
            self.push_screen(DeathDialog(message.why, message.tail))

    def _say(self, error: str) -> None:
        self._notice.update(Text(error, style=palette.BAD))
        self._notice.set_class(bool(error), "-shown")

    # Actions

    async def action_view(self, name: str) -> None:
        """Switch to a view."""
        if ViewName(name) is not self._place.view:
            await self.go(self._default(ViewName(name)))

    def action_leave(self) -> None:
        """Go back."""
        if self._history:
            self.view.leave()
            *self._history, visited = self._history
            self._enter(visited.place, visited.memento)

    def action_go(self) -> None:
        """Ask where to go."""

        async def arrive(place: Place | None) -> None:
            if place is None:
                return
            if place.view is ViewName.PAGE and self._place.view is ViewName.FRAMES:
                place = replace(place, view=ViewName.FRAMES)  # the map's cursor goes there; Enter opens it
            await self.go(place)

        self.push_screen(GoDialog(self.source, self._current_pid()), arrive)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpDialog(self._place.view))

    def action_toggle_run(self) -> None:
        """Pause or resume: on the poller's thread, so that no read resumes what the user stopped."""
        if self._status.state and self._status.state.kind == "saved":
            self._say("a saved image does not run")
        elif not self._dead:
            self._poller.do(_toggle)

    def action_reload(self) -> None:
        """Read again now."""
        self._ask()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The registry of actions, for the command palette."""
        yield from (self._command(action, self.view) for action in VIEWS[self._place.view])
        yield from (self._command(action, self) for action in GLOBAL)

    def _command(self, action: Action, namespace: Any) -> SystemCommand:
        return SystemCommand(
            action.title, f"key {action.key_text}", partial(self.run_action, action.action, namespace)
        )


def _toggle(source: Source) -> None:
    if source.state().running:
        source.pause()
    else:
        source.resume()


def _raise_death(why: str) -> Any:
    def job(source: Source) -> None:
        from inspector.errors import GuestDied

        raise GuestDied(why)

    return job
