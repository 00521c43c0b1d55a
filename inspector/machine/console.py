"""The guest's serial console, kept in a ring so that a chatty guest cannot eat the host."""

from __future__ import annotations

import re
import socket
import threading
import time

from inspector.units import MIB, printable

_KEEP = MIB
_PANIC = re.compile(rb"(?<!end )Kernel panic - not syncing[^\r\n]*")
_HALTED = re.compile(rb"([^\r\n]*)[\r\n\s]*-- System halted")


class Console:
    """Reads the console's socket on a thread of its own; QEMU never waits for us."""

    def __init__(self, source: socket.socket, before: bytes = b"") -> None:
        """`before`: what a guest that goes on from a saved state had said."""
        self._source = source
        self._kept = bytearray(before)
        self._lock = threading.Lock()
        self.last_heard = time.monotonic()
        """When the last byte came (time.monotonic)."""
        self.total = 0
        """Bytes seen in all."""
        self.ended = threading.Event()
        threading.Thread(target=self._read, name="kmi-console", daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._source.recv(65536)
            except OSError:
                data = b""
            if not data:
                self.ended.set()
                return
            with self._lock:
                self._kept += data
                if len(self._kept) > 2 * _KEEP:
                    del self._kept[:-_KEEP]
                self.total += len(data)
                self.last_heard = time.monotonic()

    def raw(self) -> bytes:
        """All that is kept, as it came."""
        with self._lock:
            return bytes(self._kept)

    def text(self) -> str:
        """All that is kept (the last MiB at least), lines apart, other control characters made visible."""
        with self._lock:
            kept = self._kept.decode("utf-8", "replace")
        lines = (printable(line.replace("\t", "        ").rstrip("\r")) for line in kept.split("\n"))
        return "\n".join(lines).rstrip("\n")

    def tail(self, lines: int = 40) -> str:
        """The last lines."""
        return "\n".join(self.text().split("\n")[-lines:]) if lines > 0 else ""

    def last_line(self) -> str:
        """The last line that says something."""
        return next((line.strip() for line in reversed(self.text().split("\n")) if line.strip()), "")

    def fatal(self) -> str:
        """The kernel's last words: its panic, or why the decompressor halted; empty where there are none."""
        with self._lock:
            found = list(_PANIC.finditer(self._kept)) or list(_HALTED.finditer(self._kept))
            words = found[-1][0] if found else b""
        return printable(" ".join(words.decode("utf-8", "replace").split()))

    def contains(self, text: str) -> bool:
        """Whether what is kept holds `text`."""
        with self._lock:
            return text.encode() in self._kept
