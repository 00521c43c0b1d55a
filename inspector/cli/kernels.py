"""`kmi kernels`: what can be booted by name."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.text import Text

from inspector import images
from inspector.cli import output
from inspector.images import KernelStatus
from inspector.units import format_size


@click.command(epilog=output.examples("kmi kernels"))
@output.json_option
def kernels(as_json: bool) -> None:
    """List the kernels that can be booted by name, and which are in the cache."""
    found = images.kernels()
    if as_json:
        output.emit_json([_as_data(kernel) for kernel in found])
        return
    table = output.plain_table("Name", "Kernel", "Version", "Cached", right=("Cached",))
    for kernel in found:
        name = kernel.name + (" *" if kernel.default else "")
        size = format_size(kernel.size) if kernel.cached else "-"
        table.add_row(name, kernel.title, kernel.version or "-", size)
    note = "\n* is the default. What is not cached is fetched when it first boots: kmi --kernel NAME"
    output.show(table, Text(note, "dim"))


def _as_data(kernel: KernelStatus) -> dict[str, object]:
    data = asdict(kernel)
    size = data.pop("size")
    return {**data, "version": kernel.version or None, "size_bytes": size}
