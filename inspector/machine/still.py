"""A saved image as a machine: it stands still for ever, and only its memory and registers can be asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from inspector.errors import MachineError
from inspector.machine.model import (
    Completed,
    CpuRegisters,
    DeathListener,
    RamRange,
    RunState,
    StateListener,
)
from inspector.machine.stoploop import StopLoop


class StillMachine:
    """See the Machine protocol. It never changes, so that pauses and holds do nothing."""

    def __init__(
        self,
        path: Path,
        form: str,
        ram_fd: int,
        blocks: Sequence[RamRange],
        registers: Sequence[CpuRegisters],
        remarks: Sequence[str] = (),
    ) -> None:
        """`form` and `remarks` say what kind of image it is. The descriptor is the machine's from here on."""
        self.path = path
        self.name = path.name
        self.accel = "image"
        self.accel_reason = "; ".join((form, *remarks))
        self.ram_fd = ram_fd
        self.blocks: list[RamRange] = list(blocks)
        self.memory_size = sum(size for _, size, _ in self.blocks)
        self.cpus = len(registers)
        self._registers = list(registers)
        self._closed = False

    @property
    def kernel_path(self) -> Path:
        """Raises MachineError: an image does not tell."""
        self._refuse("does not tell which file its kernel was booted from")

    @property
    def folder(self) -> Path:
        """Raises MachineError: there is no QEMU."""
        self._refuse("has no QEMU behind it")

    @property
    def running(self) -> bool:
        """Never."""
        return False

    @property
    def alive(self) -> bool:
        """Until it is closed."""
        return not self._closed

    def state(self) -> RunState:
        """That it is a saved image."""
        return RunState("dead", "closed") if self._closed else RunState("saved", "saved image")

    def pause(self, who: str = "user") -> None:
        """Nothing: it stands still."""

    def resume(self) -> None:
        """Raises MachineError."""
        self._refuse("cannot run")

    def hold(self, who: str = "a reading") -> None:
        """Nothing: it stands still."""

    def release(self) -> None:
        """Nothing."""

    def registers(self) -> list[CpuRegisters]:
        """Every vCPU's registers, as they were saved."""
        return list(self._registers)

    def run(self, command: str, timeout: float = 30) -> Completed:
        """Raises MachineError."""
        self._refuse("runs no commands")

    def spawn(self, command: str) -> int:
        """Raises MachineError."""
        self._refuse("runs no commands")

    def put(self, data: bytes, path: str, mode: int = 0o755) -> None:
        """Raises MachineError."""
        self._refuse("takes no files")

    def hmp(self, command: str) -> str:
        """Raises MachineError."""
        self._refuse("has no QEMU behind it")

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Raises MachineError."""
        self._refuse("has no QEMU behind it")

    def stop_loop(self) -> StopLoop:
        """Raises MachineError."""
        self._refuse("cannot run, so that nothing can be traced in it")

    def console_tail(self, lines: int = 40) -> str:
        """That there is none."""
        return f"{self.name} is a saved image: it has no console, and runs no commands"

    def on_state(self, listener: StateListener) -> None:
        """Nothing: it never changes."""

    def on_death(self, listener: DeathListener) -> None:
        """Nothing: it never dies."""

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self.ram_fd)

    def _refuse(self, what: str) -> NoReturn:
        raise MachineError(f"{self.name} is a saved image: it {what}")
