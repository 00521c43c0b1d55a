"""The guest of a test that failed, held open for a person to look into."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from inspector import machine
from inspector.guest import Guest
from inspector.machine import LocalMachine


class Kept:
    """A guest that other processes can attach to, until hold() ends."""

    def __init__(self, guest: Guest, test: str) -> None:
        self.guest = guest
        self.name = f"pytest-{os.getpid()}"
        assert isinstance(guest.machine, LocalMachine)
        self._server = machine.serve(guest.machine, self.name)
        self.how = f"the guest of {test} is kept: look into it with\n  kmi --guest {self.name}"

    def hold(self, say: Callable[[str], None]) -> None:
        """Until Ctrl-C, or the guest's end."""
        ended = threading.Event()
        self.guest.machine.on_death(lambda why: ended.set())
        say(f"\n{self.how}\nCtrl-C here ends it.")
        try:
            ended.wait()
        except KeyboardInterrupt:
            say("")
        finally:
            self._server.close()
            self.guest.close()
