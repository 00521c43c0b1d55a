"""`kmi page`: all that is known of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text

from inspector.cli import output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.guest import Guest
from inspector.kernel.frames import FrameState
from inspector.kernel.pages import Page
from inspector.units import Pfn, PhysAddr, format_size, parse_int

_WORDS_A_LINE = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: its struct page, decoded and raw, and what it is in use for."""

    page: Page
    state: FrameState
    page_size: int
    raw: bytes
    read_stopped: bool

    @property
    def phys(self) -> PhysAddr:
        """Where the frame begins."""
        return PhysAddr(self.page.pfn * self.page_size)


@click.command(epilog=output.examples("kmi page 0x1000 --guest lab"))
@click.argument("pfn")
@click.option("-v", "--verbose", is_flag=True, help="Show the bytes of the struct page too.")
@output.json_option
@guest_options
def page(pfn: str, verbose: bool, as_json: bool, options: GuestOptions) -> None:
    """Show all that is known of a frame: its struct page, what it is used for, its zone.

    PFN is decimal, or hexadecimal with 0x: a physical address without its last three digits.
    """
    number = Pfn(parse_int(pfn, "PFN"))
    with opened(options) as opening:
        frame = read(opening.guest, number)
    if as_json:
        output.emit_json(as_data(frame))
    else:
        draw(frame, verbose)


def read(guest: Guest, pfn: Pfn) -> Frame:
    """Read a frame, the guest standing still. Raises NoSuchFrame."""
    with guest.paused():
        found = guest.page(pfn)
        state = FrameState(int(guest.frames()["state"][pfn]))
        kernel = guest.kernel
        raw = kernel.space.read(found.address, kernel.types.sizeof("page"))
        return Frame(found, state, kernel.space.format.page_size, raw, True)


def as_data(frame: Frame) -> dict[str, Any]:
    """The frame as JSON has it."""
    page = frame.page
    return {
        "read_stopped": frame.read_stopped,
        "pfn": page.pfn,
        "phys": output.word(frame.phys),
        "page_size_bytes": frame.page_size,
        "state": frame.state.name.lower(),
        "struct_page": output.word(page.address),
        "flags": output.word(page.flags),
        "flag_names": list(page.flag_names),
        "refcount": page.refcount,
        "mapcount": page.mapcount,
        "page_type": page.page_type,
        "mapping": output.word(page.mapping),
        "mapping_kind": page.mapping_kind,
        "index": page.index,
        "private": output.word(page.private),
        "head": page.head,
        "order": page.order,
        "node": page.node,
        "zone": page.zone,
    }


def draw(frame: Frame, verbose: bool) -> None:
    """Print the frame for a person."""
    page = frame.page
    end = frame.phys + frame.page_size
    table = output.plain_table("", "")
    table.show_header = False
    for name, value in _rows(frame):
        table.add_row(Text(name, "dim"), output.guest_text(value))
    title = f"PFN {page.pfn} ({page.pfn:#x}), physical {frame.phys:#x} to {end - 1:#x}"
    output.show(Text(title, "bold"), table, *(_dump(frame.raw) if verbose else ()))


def _dump(raw: bytes) -> Iterator[Text]:
    words = [f"{int.from_bytes(raw[at : at + 8], 'little'):016x}" for at in range(0, len(raw), 8)]
    for row in range(0, len(words), _WORDS_A_LINE):
        yield Text.assemble((f"  +{row * 8:#04x}  ", "dim"), "  ".join(words[row : row + _WORDS_A_LINE]))


def _rows(frame: Frame) -> list[tuple[str, str]]:
    page = frame.page
    zone = f"zone {page.zone} of node {page.node}" if page.zone is not None else "in no zone"
    mapcount = f"{page.mapcount}: user page table entries that map this very page"
    if page.mapcount is None:
        mapcount = f"none: the word holds the page type {page.page_type}"
    block = f"order {page.order}: {format_size(frame.page_size << page.order)}"
    if page.is_tail:
        block += f", which begins at PFN {page.head} ({page.head:#x})"
    return [
        ("state", f"{frame.state.name.lower().replace('_', ' ')}, {zone}"),
        ("flags", f"{page.flags:#018x}  {' '.join(page.flag_names) or 'none that has a name'}"),
        ("refcount", str(page.refcount)),
        ("mapcount", mapcount),
        ("mapping", f"{page.mapping:#x}" + (f" ({page.mapping_kind})" if page.mapping_kind else "")),
        ("index", f"{page.index:#x}"),
        ("private", f"{page.private:#x}"),
        ("block", block),
        ("struct page", f"at {page.address:#x}, {len(frame.raw)} bytes"),
    ]
