"""Look into the memory of a live Linux guest: page tables, struct page, zones, tasks; no debug files needed.

For example:

    import inspector
    with inspector.boot(kernel="debian-6.1", memory="512M") as guest:
        task = guest.task(guest.spawn("/labs/touch 8M"))
        print(task.vmas(), guest.zones())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inspector import errors
from inspector.errors import InspectorError

if TYPE_CHECKING:
    from inspector.guest import Guest
    from inspector.opening import attach, boot, open

__version__ = "0.1.0"
__all__ = ["Guest", "InspectorError", "attach", "boot", "errors", "open"]


def __getattr__(name: str) -> Any:
    # Lazily: `import inspector` costs no numpy and no QEMU client until a guest is asked for.
    if name == "Guest":
        from inspector.guest import Guest

        return Guest
    if name in ("attach", "boot", "open"):
        from inspector import opening

        return getattr(opening, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
