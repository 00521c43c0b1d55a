"""`kmi page`: all that is known of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from rich.console import RenderableType
from rich.text import Text

from inspector.cli import output
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.guest import Guest
from inspector.kernel.frames import FrameState
from inspector.kernel.memcg import ChargeKind
from inspector.kernel.pages import Page
from inspector.kernel.rmap import Alias
from inspector.units import Pfn, PhysAddr, format_size, parse_int, word

_WORDS_A_LINE = 2
_MOST_ALIASES = 50  # lines for a person, of a page that hundreds of tasks map


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: its struct page, decoded and raw, what it is in use for, whose it is and who maps it."""

    page: Page
    state: FrameState
    aliases: list[Alias]
    page_size: int
    raw: bytes
    read_stopped: bool

    @property
    def phys(self) -> PhysAddr:
        """Where the frame begins."""
        return PhysAddr(self.page.pfn * self.page_size)

    @property
    def cache_modes(self) -> list[str]:
        """The cache modes of its mappings; there should be no more than one."""
        return sorted({alias.cache_mode for alias in self.aliases})


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
        owners = guest.owners()
        found = guest.page(pfn, owners)
        state = FrameState(int(owners.rows["state"][pfn]))
        kernel = guest.kernel
        raw = kernel.space.read(found.address, kernel.types.sizeof("page"))
        aliases = guest.mapped_by(pfn)
        return Frame(found, state, aliases, kernel.space.format.page_size, raw, True)


def as_data(frame: Frame) -> dict[str, Any]:
    """The frame as JSON has it."""
    page = frame.page
    return {
        "read_stopped": frame.read_stopped,
        "pfn": page.pfn,
        "phys": word(frame.phys),
        "page_size_bytes": frame.page_size,
        "state": frame.state.name.lower(),
        "owner": page.owner.name.lower(),
        "owner_label": page.owner_label or None,
        "charge": page.charge.name.lower(),
        "memory_group": page.memory_group or None,
        "migratetype": page.migratetype,
        "mapped_by": [_alias(alias) for alias in frame.aliases],
        "cache_modes": frame.cache_modes,
        "struct_page": word(page.address),
        "flags": word(page.flags),
        "flag_names": list(page.flag_names),
        "refcount": page.refcount,
        "mapcount": page.mapcount,
        "page_type": page.page_type,
        "mapping": word(page.mapping),
        "mapping_kind": page.mapping_kind,
        "index": page.index,
        "private": word(page.private),
        "head": page.head,
        "order": page.order,
        "node": page.node,
        "zone": page.zone,
    }


def _alias(alias: Alias) -> dict[str, Any]:
    return {
        "pid": alias.task.pid if alias.task else None,
        "comm": alias.task.comm if alias.task else None,
        "region": alias.region,
        "va": word(alias.va),
        "count": alias.count,
        "stride_bytes": alias.stride,
        "entry": word(alias.entry),
        "flags": list(alias.flags),
        "page_size_bytes": alias.size,
        "memory_type": alias.memory_type,
        "cache_mode": alias.cache_mode,
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
    dump = _dump(frame.raw) if verbose else ()
    output.show(Text(title, "bold"), table, *_mapped_by(frame), *dump)


def _mapped_by(frame: Frame) -> Iterator[RenderableType]:
    """Every virtual address of the frame, and a warning where their cache attributes differ."""
    if not frame.aliases:
        return
    table = output.plain_table("By", "At", "Page", "Entry", "Flags", right=("Page",))
    for alias in frame.aliases[:_MOST_ALIASES]:
        whose = f"{alias.task.comm} ({alias.task.pid})" if alias.task else alias.region
        size = format_size(alias.size)
        flags = " ".join(alias.flags)
        table.add_row(output.guest_text(whose), f"{alias.va:#x}", size, f"{alias.entry:#x}", flags)
        if alias.count > 1:
            apart = f"{format_size(alias.stride)} apart"
            table.add_row("", f"to {alias.last:#x}", "", f"{alias.count:,} times", apart)
    yield output.heading("Mapped", "by page table entries, tasks' and the kernel's")
    yield table
    if len(frame.aliases) > _MOST_ALIASES:
        yield Text(f"and {len(frame.aliases) - _MOST_ALIASES} more, which --json has", "dim")
    if len(modes := frame.cache_modes) > 1:
        yield Text(
            f"Its mappings differ in their cache attributes (PAT, PCD, PWT): {', '.join(modes)}.", "yellow"
        )


def _charge(page: Page) -> str:
    match page.charge:
        case ChargeKind.NONE:
            return "no memory cgroup"
        case ChargeKind.OBJECTS:
            return "each object of the slab on its own"
        case kind:
            return f"{page.memory_group or 'a memory cgroup that is gone'}, as {kind.name.lower()} memory"


def _dump(raw: bytes) -> Iterator[Text]:
    words = [f"{int.from_bytes(raw[at : at + 8], 'little'):016x}" for at in range(0, len(raw), 8)]
    for row in range(0, len(words), _WORDS_A_LINE):
        yield Text.assemble((f"  +{row * 8:#04x}  ", "dim"), "  ".join(words[row : row + _WORDS_A_LINE]))


def _rows(frame: Frame) -> list[tuple[str, str]]:
    page = frame.page
    zone = f"zone {page.zone} of node {page.node}" if page.zone is not None else "in no zone"
    mapcount = f"{page.mapcount}: user page table entries that map it, those of huge pages too"
    if page.mapcount is None:
        mapcount = f"none: the word holds the page type {page.page_type}"
    label = f": {page.owner_label}" if page.owner_label else ""
    block = f"order {page.order}: {format_size(frame.page_size << page.order)}"
    if page.is_tail:
        block += f", which begins at PFN {page.head} ({page.head:#x})"
    return [
        ("state", f"{frame.state.name.lower().replace('_', ' ')}, {zone}"),
        ("owner", f"{page.owner.words}{label}"),
        ("charged to", _charge(page)),
        ("flags", f"{page.flags:#018x}  {' '.join(page.flag_names) or 'none that has a name'}"),
        ("refcount", str(page.refcount)),
        ("mapcount", mapcount),
        ("mapping", f"{page.mapping:#x}" + (f" ({page.mapping_kind})" if page.mapping_kind else "")),
        ("index", f"{page.index:#x}"),
        ("private", f"{page.private:#x}"),
        ("block", block),
        ("pageblock", f"{page.migratetype or 'of no known migratetype'}"),
        ("struct page", f"at {page.address:#x}, {len(frame.raw)} bytes"),
    ]
