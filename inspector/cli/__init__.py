"""The `kmi` command: a module a command, on click and rich."""

from __future__ import annotations


def main() -> int:
    """Run `kmi`; its commands are imported in here, so that an early Ctrl-C ends quietly too."""
    try:
        from inspector.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()
