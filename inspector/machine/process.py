"""The QEMU process, as its parent sees it: started through the supervisor, ended on request, its end told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inspector.errors import SetupError
from inspector.machine import supervisor
from inspector.machine.accel import Accel
from inspector.machine.config import MachineConfig, Wiring, qemu_command
from inspector.machine.folders import new_folder
from inspector.machine.window import Window
from inspector.units import printable

_GRACE = 10.0


class QemuProcess:
    """A running QEMU with our ends of its channels. Raises SetupError where QEMU is not installed.

    `ram_fd` is the guest's RAM. `on_exit(process)` is called once, on a thread of its own, when QEMU is gone.
    `incoming`: it waits for the state of its devices. `heir_of`: a process that `leave` ended, or will; ours
    takes its folder over.
    """

    def __init__(
        self,
        config: MachineConfig,
        accel: Accel,
        ram_fd: int,
        on_exit: Callable[[QemuProcess], None],
        *,
        incoming: bool = False,
        heir_of: QemuProcess | None = None,
    ) -> None:
        program = f"qemu-system-{config.arch}"
        if not shutil.which(program):
            raise SetupError(f"{program} is not installed: `make run` does it, or install qemu-system-x86")
        self.pid: int | None = None
        """QEMU's process id, once the supervisor has told it."""
        self.exited = threading.Event()
        self.why = ""
        """How QEMU ended, for a person; set before `on_exit` is called, and that before `exited`."""
        self._on_exit = on_exit
        self._left = False
        self.window = Window()
        self.folder: Path
        self._lock_fd: int
        if heir_of and heir_of.folder.exists() and not heir_of.exited.is_set():
            self.folder, self._lock_fd = heir_of.folder, os.dup(heir_of._lock_fd)
        else:
            self.folder, self._lock_fd = new_folder()
        lock_fd = self._lock_fd
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        self.console, self.shell, self.qmp = ours
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        status, status_end = os.pipe2(os.O_CLOEXEC)
        try:
            console, shell, qmp = (end.fileno() for end in theirs)
            self.wiring = Wiring(ram_fd, console, shell, qmp, self.window.fd, self.folder)
            spec = {
                "command": qemu_command(config, accel, self.wiring, incoming=incoming),
                "fds": [*self.wiring.fds, lock_fd],
                "hand_over": self.wiring.fds,
                "folder": str(self.folder),
                "parent": os.getpid(),
                "lifeline": lifeline,
                "status": status_end,
            }
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[*self.wiring.fds, lock_fd, lifeline, status_end],
                start_new_session=True,  # Ctrl-C in our terminal is for us alone
            )
        except BaseException:
            os.close(status)
            self._release()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            for fd in (lifeline, status_end):
                os.close(fd)
            for end in theirs:
                end.close()
        self._watcher = threading.Thread(target=self._watch, args=(status,), name="kmi-qemu", daemon=True)
        self._watcher.start()

    def _watch(self, status: int) -> None:
        why = "its supervisor was killed"
        with os.fdopen(status, "rb") as lines:
            for line in lines:
                told = json.loads(line)
                self.pid = told.get("qemu", self.pid)
                if "exit" in told:
                    why = _describe(told["exit"], told["said"])
        self._supervisor.wait()
        if not self._left:
            shutil.rmtree(self.folder, ignore_errors=True)  # where the supervisor could not
        self.why = why
        self._on_exit(self)
        self.exited.set()

    def _drop_lifeline(self) -> None:
        with suppress(OSError):
            fd, self._lifeline = self._lifeline, -1
            if fd >= 0:
                os.close(fd)

    def leave(self) -> None:
        """End QEMU as `close` does, but leave the folder to an heir: in it others have their sockets."""
        self._left = True
        with suppress(OSError):
            os.write(self._lifeline, b"L")
        self.close()

    def close(self) -> None:
        """End QEMU and take back all that it was given. Returns when the process and the folder are gone."""
        self._drop_lifeline()
        if threading.current_thread() is not self._watcher:
            self._watcher.join(_GRACE)
            if self._watcher.is_alive():
                self._supervisor.kill()
                self._watcher.join(_GRACE)
        self._release()

    def _release(self) -> None:
        self._drop_lifeline()
        for end in (self.console, self.shell, self.qmp):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.window.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _describe(code: int, said: str) -> str:
    """`QEMU was killed by signal 9` or `QEMU exited 1: its last words`."""
    how = f"QEMU was killed by signal {-code}" if code < 0 else f"QEMU exited {code}"
    words = [line.strip() for line in said.splitlines() if line.strip() and "warning:" not in line]
    return how + (f": {printable(words[-1])}" if words else "")
