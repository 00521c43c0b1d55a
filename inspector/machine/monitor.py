"""QEMU's monitor for who owns or attached to it: orders that stop and start it go by the one who counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from inspector.machine.qmp import Qmp


class Monitored(ABC):
    """A machine with a QMP connection of its own. `stop` and `cont` go the way of `pause` and `resume`."""

    @abstractmethod
    def _monitor(self) -> Qmp:
        """The connection. Raises GuestDied, MachineError."""

    @abstractmethod
    def pause(self, who: str = "user") -> None:
        """Stop the CPUs."""

    @abstractmethod
    def resume(self) -> None:
        """Let the CPUs run."""

    def hmp(self, command: str) -> str:
        """What the human monitor answers. `stop` and `cont` go the way of `pause` and `resume`."""
        if command.strip() in ("stop", "s", "cont", "c"):
            (self.pause if command.strip() in ("stop", "s") else self.resume)()
            return ""
        return self._monitor().hmp(command)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What QMP returns. `stop` and `cont` go the way of `pause` and `resume`; `_` in a name means `-`."""
        if command in ("stop", "cont"):
            (self.pause if command == "stop" else self.resume)()
            return {}
        return self._monitor().execute(command, {key.replace("_", "-"): arguments[key] for key in arguments})
