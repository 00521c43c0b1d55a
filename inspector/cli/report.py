"""`kmi report`: the whole state of a guest, as text or JSON."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from inspector.cli import output, report_view
from inspector.cli.options import GuestOptions, guest_options, opened
from inspector.guest import Cpu, Guest, GuestInfo
from inspector.kernel.devices import PciDevice
from inspector.kernel.dma_buffers import DmaBuffer
from inspector.kernel.frames import FrameState
from inspector.kernel.owners import Owners
from inspector.kernel.swiotlb import BounceBuffer
from inspector.kernel.tasks import Task
from inspector.kernel.zones import Zone
from inspector.linux import FreeCounts
from inspector.units import word


@dataclass(frozen=True, slots=True)
class Report:
    """What a guest held at one moment; `read_stopped` tells whether it stood still meanwhile.

    `states` is the FrameState of every PFN.
    """

    read_stopped: bool
    running: bool
    accel_reason: str
    page_size: int
    info: GuestInfo
    cpus: list[Cpu]
    cpu_symbols: list[str | None]
    zones: list[Zone]
    free: list[FreeCounts]
    states: NDArray[np.uint8]
    owners: Owners
    tasks: list[Task]
    devices: list[PciDevice]
    buffers: list[DmaBuffer]
    swiotlb: BounceBuffer | None

    @property
    def state_counts(self) -> dict[FrameState, int]:
        """How many frames are in each state."""
        counts = np.bincount(self.states, minlength=len(FrameState))
        return {state: int(counts[state]) for state in FrameState}


@click.command(epilog=output.examples("kmi report", "kmi report --guest lab --json | python3 -m json.tool"))
@click.option("--live", is_flag=True, help="Read the guest while it runs: parts may not fit together.")
@click.option("--all", "every", is_flag=True, help="List kernel threads one by one too.")
@output.json_option
@guest_options
def report(live: bool, every: bool, as_json: bool, options: GuestOptions) -> None:
    """Print what a guest holds: CPUs, zones, free lists, frames, tasks.

    The guest is stopped for some milliseconds, so that all numbers are of one moment.
    """
    with opened(options) as opening:
        found = gather(opening.guest, live=live)
    if as_json:
        output.emit_json(as_data(found))
    else:
        report_view.draw(found, every)


def gather(guest: Guest, live: bool = False) -> Report:
    """Read everything that the report shows, the guest standing still unless `live`."""
    was_live, guest.live = guest.live, live
    try:
        running = guest.running
        with nullcontext() if live else guest.paused():
            cpus = guest.cpus()
            owners = guest.owners()
            return Report(
                read_stopped=not live or not running,
                running=running,
                accel_reason=guest.machine.accel_reason,
                page_size=guest.kernel.space.format.page_size,
                info=guest.info(),
                cpus=cpus,
                cpu_symbols=[_where(guest, cpu) for cpu in cpus],
                zones=[zone for zone in guest.zones() if zone.populated],
                free=guest.buddy(),
                states=owners.rows["state"].copy(),
                owners=owners,
                tasks=guest.tasks(),
                devices=guest.pci_devices(),
                buffers=guest.dma_buffers(),
                swiotlb=guest.bounce_buffer(),
            )
    finally:
        guest.live = was_live


def _where(guest: Guest, cpu: Cpu) -> str | None:
    """The kernel symbol that a CPU executes in; None in user mode."""
    near = guest.symbol_at(cpu.registers.rip) if cpu.registers.cpl == 0 else None
    module = f" [{near[0].module}]" if near and near[0].module else ""
    return f"{near[0].name}+{near[1]:#x}{module}" if near else None


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON has it; units are in the keys."""
    page = report.page_size
    info = asdict(report.info)
    info["memory_bytes"] = info.pop("memory")
    info["kaslr_offset"] = word(report.info.kaslr_offset)
    info["running"] = report.running
    info["accel_reason"] = report.accel_reason
    return {
        "read_stopped": report.read_stopped,
        "page_size_bytes": page,
        "guest": info,
        "cpus": [_cpu(cpu, symbol) for cpu, symbol in zip(report.cpus, report.cpu_symbols, strict=True)],
        "zones": [_zone(zone) for zone in report.zones],
        "free_blocks": [
            {
                "node": free.node,
                "zone": free.zone,
                "by_migratetype_and_order": dict(zip(free.migratetypes, free.counts.tolist(), strict=True)),
            }
            for free in report.free
        ],
        "frames": {
            state.name.lower(): {"frames": count, "bytes": count * page}
            for state, count in report.state_counts.items()
        },
        "owners": {
            owner.name.lower(): {"frames": count, "bytes": count * page}
            for owner, count in report.owners.counts().items()
        },
        "tasks": [_task(task, page) for task in report.tasks],
        "dma": _dma(report),
    }


def _dma(report: Report) -> dict[str, Any]:
    """In short; `kmi devices` has the rest."""
    swiotlb = report.swiotlb
    return {
        "pci_devices": len(report.devices),
        "drivers": {each.address: each.driver for each in report.devices if each.driver is not None},
        "buffers": len(report.buffers),
        "buffers_bytes": sum(buffer.size for buffer in report.buffers),
        "swiotlb_bytes": swiotlb.end - swiotlb.start if swiotlb else None,
        "swiotlb_used_slots": swiotlb.used if swiotlb else None,
    }


def _cpu(cpu: Cpu, symbol: str | None) -> dict[str, Any]:
    registers = cpu.registers
    return {
        "number": cpu.number,
        "pid": cpu.pid,
        "comm": cpu.comm,
        "halted": registers.halted,
        "cpl": registers.cpl,
        "rip": word(registers.rip),
        "symbol": symbol,
        "cr3": word(registers.cr3),
        "root": word(cpu.root),
        "root_kind": cpu.root_kind,
    }


def _zone(zone: Zone) -> dict[str, Any]:
    marks = zone.watermarks
    return {
        "node": zone.node,
        "name": zone.name,
        "start_pfn": zone.start_pfn,
        "spanned_pages": zone.spanned,
        "present_pages": zone.present,
        "managed_pages": zone.managed,
        "free_pages": zone.free,
        "per_cpu_free_pages": zone.per_cpu_free,
        "watermark_min_pages": marks.min,
        "watermark_low_pages": marks.low,
        "watermark_high_pages": marks.high,
        "watermark_boost_pages": marks.boost,
        "free_blocks_by_order": list(zone.free_by_order),
    }


def _task(task: Task, page: int) -> dict[str, Any]:
    mm = task.mm
    return {
        "pid": task.pid,
        "tgid": task.tgid,
        "ppid": task.ppid,
        "comm": task.comm,
        "name": task.name,
        "state": task.state,
        "uid": task.uid,
        "cpu": task.cpu,
        "threads": task.threads,
        "kernel_thread": task.kernel_thread,
        "rss_bytes": mm.rss * page if mm else None,
        "vsz_bytes": mm.total_vm * page if mm else None,
        "page_tables_bytes": mm.pgtables_bytes if mm else None,
    }
