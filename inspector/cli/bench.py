"""`kmi bench`: how fast it is."""

from __future__ import annotations

import click


@click.command()
def bench() -> None:
    """Later."""
