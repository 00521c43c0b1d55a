"""What a guest's kernel has logged, and whether it has warned, since a moment."""

from __future__ import annotations

import re
import uuid

from inspector.guest import Guest
from inspector.units import printable

_BAD = 1 << 5 | 1 << 7 | 1 << 9  # TAINT_BAD_PAGE, TAINT_DIE, TAINT_WARN (include/linux/panic.h)
_COMPLAINTS = "WARNING:|BUG:|Oops:|refcount_t:"


class KernelLog:
    """The kernel's log from the moment that this is made."""

    def __init__(self, guest: Guest) -> None:
        """Raises MachineError where the guest has no agent or stands still."""
        self._guest = guest
        self._mark = f"kmi looks at the log from here: {uuid.uuid4().hex}"
        self._tainted = self._taint()
        guest.run(f"echo {self._mark} >/dev/kmsg").check()

    def find(self, pattern: str) -> list[re.Match[str]]:
        """The lines in which a pattern is found, oldest first."""
        text = self._guest.run(f"dmesg | sed '1,/{self._mark}/d'").check().stdout
        return [found for line in text.splitlines() if (found := re.search(pattern, line))]

    def complaint(self) -> str:
        """The first line in which the kernel warned, or told of a bug of its own; empty where it did not.

        A second warning in one boot is not seen: the kernel's taint is there already.
        """
        if not self._taint() & ~self._tainted & _BAD:
            return ""
        found = self.find(_COMPLAINTS)
        return printable(found[0].string) if found else "see dmesg"

    def _taint(self) -> int:
        kernel = self._guest.kernel
        return kernel.space.u64(kernel.symbol("tainted_mask"))
