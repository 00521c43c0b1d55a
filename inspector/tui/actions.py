"""Every action in one registry: it feeds the key bindings, the footer, the help and the command palette."""

from __future__ import annotations

from dataclasses import dataclass, replace

from textual.binding import Binding, BindingType

from inspector.tui.places import ViewName


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do: `label` is for the footer (empty: not there), `title` for help and palette."""

    action: str
    keys: str
    title: str
    label: str = ""
    shown_key: str | None = None

    @property
    def key_text(self) -> str:
        """The keys as a person reads them."""
        return " ".join(_pretty(key) for key in self.keys.split(","))


GLOBAL = (
    Action("help", "question_mark", "Show the keys of this screen", "Keys", "?"),
    Action("go", "slash", "Go to an address, PFN, symbol or PID", "Go", "/"),
    Action("toggle_run", "space", "Pause or resume the guest", "Pause", "␣"),
    Action("leave", "escape", "Go back to where you came from", "Back", "Esc"),
    Action("view('overview')", "1,f1", "Overview: the guest, its CPUs, zones and free lists"),
    Action("view('tasks')", "2,f2", "Tasks: processes and threads"),
    Action("view('space')", "3,f3", "Address space: the VMAs of a task"),
    Action("view('walk')", "4,f4", "Walk: an address followed through the page tables"),
    Action("view('frames')", "5,f5", "Frames: a map of physical memory"),
    Action("view('page')", "6,f6", "Page: all that is known of a frame"),
    Action("view('slabs')", "7,f7", "Slabs: the kernel's object caches"),
    Action("view('vmalloc')", "8,f8", "Vmalloc: areas contiguous in virtual addresses only"),
    Action("view('swap')", "9,f9", "Swap: areas, and who is swapped out"),
    Action("view('memory')", "0,f10", "Memory: the lines of /proc/meminfo, and memory cgroups"),
    Action("view('devices')", "D", "Devices: PCI devices, what they reach, their buffers"),
    Action("view('console')", "c,f11", "Console: what the guest says; run a command in it"),
    Action("view('faults')", "F,f12", "Faults: page faults of a task, one by one as they happen"),
    Action("view('allocations')", "A", "Allocations: pages handed out and taken back, as it happens"),
    Action("view('labs')", "L", "Labs: small demonstrations on this guest, step by step"),
    Action("reload", "ctrl+r", "Read the shown data again now"),
    Action("quit", "q,ctrl+q", "Quit", "Quit", "q"),
)

_LISTED = (
    Action("filter", "f", "Filter as you type", "Filter"),
    Action("sort(1)", "s,greater_than_sign", "Sort by the next column", "Sort", "s"),
    Action("sort(-1)", "S,less_than_sign", "Sort by the column before", shown_key="S"),
    Action("reverse", "r", "Reverse the order"),
)
"""What every list can."""

VIEWS: dict[ViewName, tuple[Action, ...]] = {
    ViewName.OVERVIEW: (
        Action("open", "enter", "Open what the cursor is on: a CPU's task, a zone's frames", "Open"),
    ),
    ViewName.TASKS: (
        Action("open", "enter", "Open the task's address space", "Space"),
        *_LISTED,
        Action("threads", "t", "Show threads, or processes only", "Threads"),
        Action("kernel_threads", "k", "Show kernel threads, or hide them"),
    ),
    ViewName.SPACE: (
        Action("open", "enter", "Walk the first resident page of the VMA", "Walk"),
        *_LISTED,
        Action("tasks(-1)", "left_square_bracket", "The task before", shown_key="["),
        Action("tasks(1)", "right_square_bracket", "The next task", "Task", "]"),
    ),
    ViewName.WALK: (
        Action("open", "enter", "Open the frame that the entry points to", "Frame"),
        Action("page(-1)", "left", "Walk the page before", "Page", "←→"),
        Action("page(1)", "right", "Walk the next page", shown_key="→"),
        Action("table", "t", "Open the frame that holds this table", "Table"),
        Action("space", "a", "Open the task's address space", "Space"),
    ),
    ViewName.FRAMES: (
        Action("open", "enter", "Open the frame under the cursor", "Page"),
        Action("zoom(1)", "plus,equals_sign", "Zoom in: fewer frames a cell", "Zoom", "+-"),
        Action("zoom(-1)", "minus", "Zoom out: more frames a cell", shown_key="-"),
        Action("fit", "a", "Show all memory"),
        Action(
            "next_state(1)", "n", "The next run of the owner under the cursor, or of what is lit", "Next", "n"
        ),
        Action(
            "next_state(-1)",
            "N",
            "The run before of the owner under the cursor, or of what is lit",
            shown_key="N",
        ),
        Action(
            "light", "l", "Light up the object under the cursor, then all of its owner, then nothing", "Light"
        ),
        Action("mark", "m", "Mark this moment, to see later what changed hands since", "Mark"),
        Action("changes", "d", "Light up what changed hands since the mark, or no more", "Diff"),
        Action("watch", "w", "Watch who takes and frees the frame under the cursor", "Watch"),
        Action("glyphs", "g", "Letters, or colours alone"),
    ),
    ViewName.PAGE: (
        Action("open", "enter", "Follow the link", "Follow"),
        Action("frame(-1)", "left", "The frame before", "Frame", "←→"),
        Action("frame(1)", "right", "The next frame", shown_key="→"),
        Action("map", "m", "Show it in the map of frames", "Map"),
        Action("watch", "w", "Watch who takes and frees it", "Watch"),
    ),
    ViewName.SLABS: (
        Action("open", "enter", "Show the cache's frames in the map", "Frames"),
        *_LISTED,
        Action("used", "u", "Hide caches without slabs, or show them", "Used"),
    ),
    ViewName.VMALLOC: (
        Action("open", "enter", "Walk the area's first address", "Walk"),
        Action("page", "p", "Open the area's first frame", "Page"),
        Action("light", "l", "Show in the map all frames that this caller has", "Light"),
        *_LISTED,
    ),
    ViewName.SWAP: (
        Action("open", "enter", "Walk the first such address of the task", "Walk"),
        Action("space", "a", "Open the task's address space", "Space"),
        Action("light", "l", "Show the swap cache's frames in the map", "Light"),
        *_LISTED,
    ),
    ViewName.MEMORY: (
        Action("open", "enter", "Go to what the line counts", "Open"),
        *_LISTED,
    ),
    ViewName.DEVICES: (
        Action("open", "enter", "From a device to its buffers; open a buffer's first frame", "Open"),
        Action("back", "left", "From the buffers back to the devices", "Devices", "←"),
        Action("map", "m", "Show the buffer's first frame in the map of frames", "Map"),
        Action("walk", "w", "Walk the buffer's address in the kernel"),
        Action("space", "a", "Open the address space of the task that asked for the buffer"),
        Action("look", "k", "From now on tell what has moved since this look", "Look"),
        *_LISTED,
    ),
    ViewName.FAULTS: (
        Action("open", "enter", "Open the frame that came in", "Page"),
        Action("trace", "t", "Begin to trace the task, or end it", "Trace"),
        Action("next", "n", "Go on to the next fault, and stay there", "Next"),
        Action("run", "g", "Let it run, or stay at the next fault", "Run"),
        Action("command", "i", "Type a command, or a PID, to trace", "Cmd"),
        Action("export", "e", "Save the fault as JSON and SVG in the current folder", "Save"),
        Action("walk", "w", "Walk the address as it is now"),
        Action("children", "k", "Trace what the process forks too, or not: before the trace begins"),
        *(replace(action, label="") for action in _LISTED),
    ),
    ViewName.ALLOCATIONS: (
        Action("open", "enter", "Open the first frame of these pages", "Page"),
        Action("trace", "t", "Begin to trace, or end it", "Trace"),
        Action("next", "n", "Go on to the next allocation or free, and stay there", "Next"),
        Action("run", "g", "Let it run, or stay at the next", "Run"),
        Action("command", "i", "Type a command, a PID, pfn N, or all, to trace", "Cmd"),
        Action("other", "o", "Go to the other half: who freed it, or who allocated it"),
        Action("holders", "b", "Who holds how much, in place of the stack or beside it", "Who"),
        Action("export", "e", "Save all of it as JSON and SVG in the current folder"),
        Action("map", "m", "Show these pages in the map of frames"),
        Action("children", "k", "Trace what the process forks too, or not: before the trace begins"),
        *(replace(action, label="") for action in _LISTED),
    ),
    ViewName.LABS: (
        Action("open", "enter", "Play the lab under the cursor; then on to the next step", "Go on"),
        Action("rest", "g", "On to the end without a stop, or to the next question", "Rest"),
        Action("page", "p", "Open the frame that was shown last", "Page"),
        *_LISTED,
    ),
    ViewName.CONSOLE: (Action("command", "enter,i", "Type a command to run in the guest", "Command", "⏎"),),
}


_KEYS = {
    "enter": "⏎", "escape": "Esc", "space": "␣", "left": "←", "right": "→", "tab": "Tab",
    "question_mark": "?", "slash": "/", "plus": "+", "minus": "-", "equals_sign": "=",
    "left_square_bracket": "[", "right_square_bracket": "]", "less_than_sign": "<", "greater_than_sign": ">",
}  # fmt: skip


TAB_KEYS: dict[ViewName, str] = {
    view: action.keys.split(",")[0]
    for view in ViewName
    for action in GLOBAL
    if action.action == f"view('{view.value}')"
}
"""The key that leads to each view."""


def bindings(actions: tuple[Action, ...]) -> list[BindingType]:
    """The Textual bindings of some actions."""
    return [
        Binding(
            action.keys, action.action, action.label or action.title, bool(action.label), _footer_key(action)
        )
        for action in actions
    ]


def _footer_key(action: Action) -> str:
    return action.shown_key or _pretty(action.keys.split(",")[0])


def _pretty(key: str) -> str:
    return _KEYS.get(key, key.upper() if key[:1] == "f" and key[1:].isdigit() else key.replace("ctrl+", "^"))
