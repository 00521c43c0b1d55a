"""The report as a drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inspector.cli import output
from inspector.cli.output import guest_text, heading
from inspector.kernel.frames import FrameState
from inspector.kernel.zones import Zone
from inspector.units import format_size

if TYPE_CHECKING:
    from inspector.cli.report import Report

_BAR = 20
_STRIP_LINES = 4
_NAMED = 3
_FIXED = 40  # columns before the names
# A letter and a colour a state: the letter alone must do where there is no colour.
STATES = {
    FrameState.HOLE: (" ", "", "no struct page"),
    FrameState.RESERVED: ("R", "black on bright_black", "reserved"),
    FrameState.FREE: (".", "green", "free"),
    FrameState.PER_CPU: (":", "bright_green", "free, per-CPU"),
    FrameState.SLAB: ("S", "black on magenta", "slab"),
    FrameState.PAGE_TABLE: ("T", "black on red", "page tables"),
    FrameState.ANON: ("A", "black on yellow", "anonymous"),
    FrameState.FILE: ("F", "black on blue", "page cache"),
    FrameState.KERNEL: ("K", "black on cyan", "kernel, other"),
}


def draw(report: Report, every: bool = False) -> None:
    """Print the report for a person; `every` kernel thread too."""
    cell = f"of {format_size(report.page_size)}; a cell shows the state that most of its frames have"
    output.show(
        _guest(report),
        heading("CPUs"),
        _cpus(report),
        heading("Zones", "the bar is free memory; | are the watermarks min, low and high"),
        _zones(report),
        heading("Free blocks", "by order: how many blocks of each size"),
        _free(report),
        heading("Frames", cell),
        _frames(report),
        heading("Owners", "of all frames, with those that have most of each kind"),
        _owners(report),
        heading("Tasks"),
        _tasks(report, every),
    )


def _guest(report: Report) -> RenderableType:
    info = report.info
    how = "stopped while it was read" if report.read_stopped else "read as it ran: parts may not fit together"
    cpus = f"{info.cpus} CPU{'s' * (info.cpus != 1)}"
    isolation = "on" if info.page_table_isolation else "off"
    rows = (
        ("kernel", f"Linux {info.release}, build {info.build_id[:12]}"),
        ("machine", f"{format_size(info.memory)}, {cpus}, {info.accel} ({report.accel_reason})"),
        ("paging", f"{info.paging}, KASLR offset {info.kaslr_offset:#x}, page table isolation {isolation}"),
        ("names", f"{info.profile}, found in {info.attach_seconds:.2f} s"),
        ("state", f"{'running' if report.running else 'paused'}, {how}"),
        ("devices", _devices(report)),
    )
    table = output.plain_table("", "")
    table.show_header = False
    table.columns[1].no_wrap = False
    for name, value in rows:
        table.add_row(Text(name, "dim"), guest_text(value))
    return Group(Text.assemble(("Guest ", "bold cyan"), (info.name, "bold")), table)


def _devices(report: Report) -> str:
    """PCI devices, and memory for their DMA."""
    drivers = sorted({device.driver for device in report.devices if device.driver is not None})
    parts = [f"{len(report.devices)} on PCI", f"driven by {', '.join(drivers)}" if drivers else "none driven"]
    size = format_size(sum(buffer.size for buffer in report.buffers))
    parts += [f"{len(report.buffers)} buffers known for DMA ({size})"] if report.buffers else []
    if report.swiotlb:
        parts += [f"swiotlb {format_size(report.swiotlb.end - report.swiotlb.start)}"]
    return ", ".join(parts)


def _cpus(report: Report) -> Table:
    table = output.plain_table("CPU", "PID", "Runs", "At", "Root (CR3)", right=("CPU", "PID"))
    for cpu, symbol in zip(report.cpus, report.cpu_symbols, strict=True):
        at = symbol or f"{cpu.registers.rip:#x} (CPL {cpu.registers.cpl})"
        table.add_row(
            str(cpu.number),
            str(cpu.pid),
            guest_text(cpu.comm + (" (halted)" if cpu.registers.halted else "")),
            guest_text(at),
            f"{cpu.root:#x}" + (f" ({cpu.root_kind})" if report.info.page_table_isolation else ""),
        )
    return table


def _zones(report: Report) -> Table:
    right = ("Node", "Managed", "Free")
    table = output.plain_table("Node", "Zone", "Managed", "Free", "", "Min/low/high", right=right)
    for zone in report.zones:
        marks = (zone.watermarks.min, zone.watermarks.low, zone.watermarks.high)
        table.add_row(
            str(zone.node),
            guest_text(zone.name),
            format_size(zone.managed * report.page_size),
            format_size(zone.free * report.page_size),
            zone_bar(zone),
            "/".join(_short_size(mark * report.page_size) for mark in marks),
        )
    return table


def zone_bar(zone: Zone, width: int = _BAR) -> Text:
    """Free memory of the managed, with the three watermarks; its colour says which of them it is above."""
    marks = (zone.watermarks.min, zone.watermarks.low, zone.watermarks.high)
    style = "red" if zone.free < marks[1] else "yellow" if zone.free < marks[2] else "green"
    per_cell = max(zone.managed, 1) / width
    filled = min(width, round(zone.free / per_cell))
    cells = ["█"] * filled + ["░"] * (width - filled)
    at = -1
    for mark in marks:
        at = max(min(int(mark / per_cell), width - 1), at + 1)  # close marks stand side by side
        if at < width:
            cells[at] = "|"
    return Text.assemble(*((cell, "bold" if cell == "|" else style) for cell in cells))


def _free(report: Report) -> RenderableType:
    tables: list[RenderableType] = []
    for free in report.free:
        sizes = [_short_size(report.page_size << order) for order in range(free.counts.shape[1])]
        table = output.plain_table(f"{free.zone}, node {free.node}", *sizes, right=tuple(sizes))
        table.padding = (0, 1, 0, 0)
        table.columns[0].min_width = max(map(len, free.migratetypes))  # so that the zones' columns line up
        for column in table.columns[1:]:
            column.min_width = 4
        for name, row in zip(free.migratetypes, free.counts.tolist(), strict=True):
            if any(row):
                table.add_row(guest_text(name), *map(_count, row))
        table.add_row("all", *map(_count, free.counts.sum(axis=0).tolist()), style="bold")
        tables += [table, Text("")]
    return Group(*tables[:-1])


def _short_size(size: int) -> str:
    return format_size(size).replace(" ", "").replace("iB", "")


def _count(count: int) -> Text:
    return Text(str(count) if count else "-", "" if count else "dim")


def _frames(report: Report) -> RenderableType:
    table = output.plain_table("", "State", "Frames", "Bytes", "", right=("Frames", "Bytes"))
    counts = report.state_counts
    most = max(counts.values())
    for state, count in counts.items():
        if count:
            letter, style, meaning = STATES[state]
            bar = Text("█" * max(1, round(count / most * _BAR)), style.rpartition(" ")[2])
            table.add_row(
                Text(letter, style), meaning, f"{count}", format_size(count * report.page_size), bar
            )
    width = output.width()
    cells = majority(report.states, width * _STRIP_LINES)
    per_cell = -(-report.states.size // (width * _STRIP_LINES))
    lines = [strip(cells[at : at + width]) for at in range(0, cells.size, width)]
    note = f"PFN 0 to {report.states.size - 1:#x}, a cell is {format_size(per_cell * report.page_size)}"
    return Group(*lines, Text(note, "dim"), Text(""), table)


def _owners(report: Report) -> RenderableType:
    table = output.plain_table("Owner", "Frames", "Bytes", "Mostly", right=("Frames", "Bytes"))
    table.columns[-1].overflow, table.columns[-1].max_width = "ellipsis", max(10, output.width() - _FIXED)
    for owner, count in report.owners.counts().items():
        if count:
            named = [(label, n) for label, n in report.owners.by_label(owner).items() if label]
            most = ", ".join(f"{label} {n}" for label, n in named[:_NAMED])
            size = format_size(count * report.page_size)
            table.add_row(owner.words, str(count), size, guest_text(most, "dim"))
    return table


def majority(states: NDArray[np.uint8], cells: int) -> NDArray[np.uint8]:
    """The commonest state in each of at most `cells` runs of frames of one length."""
    per_cell = max(1, -(-states.size // cells))
    used = -(-states.size // per_cell)
    kinds = len(FrameState)
    flat = np.arange(states.size) // per_cell * kinds + states
    counts = np.bincount(flat, minlength=used * kinds).reshape(used, kinds)
    commonest: NDArray[np.uint8] = counts.argmax(axis=1).astype(np.uint8)
    return commonest


def strip(states: NDArray[np.uint8]) -> Text:
    """Cells of a map of memory, a letter each."""
    text = Text(no_wrap=True, overflow="crop")
    for state in states.tolist():
        letter, style, _ = STATES[FrameState(state)]
        text.append(letter, style)
    return text


def _tasks(report: Report, every: bool) -> RenderableType:
    right = ("PID", "UID", "CPU", "Threads", "RSS", "VSZ", "Page tables")
    table = output.plain_table(
        "PID", "Name", "State", "UID", "CPU", "Threads", "RSS", "VSZ", "Page tables", right=right
    )
    hidden = 0
    for task in report.tasks:
        if task.mm is None and task.kernel_thread and not every:
            hidden += 1
            continue
        mm = task.mm
        sizes = (mm.rss * report.page_size, mm.total_vm * report.page_size, mm.pgtables_bytes) if mm else None
        table.add_row(
            str(task.pid),
            guest_text(task.name),
            task.state,
            str(task.uid),
            str(task.cpu),
            str(task.threads),
            *(map(format_size, sizes) if sizes else ("-", "-", "-")),
        )
    if not hidden:
        return table
    return Group(table, Text(f"and {hidden} kernel threads (--all lists them)", "dim"))
