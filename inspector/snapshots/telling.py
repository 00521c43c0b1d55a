"""A diff in words, for a person, and as plain data, for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from inspector.snapshots.leaks import pfn_runs
from inspector.snapshots.records import CacheChange, Holder, SpaceChange, TaskChange
from inspector.units import format_size, printable, word

if TYPE_CHECKING:
    from inspector.snapshots.diff import Diff

_MOST = 12  # lines of a part


def text(diff: Diff, most: int | None = _MOST) -> str:
    """What changed, part by part; of each part the `most` that matter, or all."""
    if not diff:
        return f"nothing changed hands in {diff.seconds:.2f} s"
    parts = [_title(diff)]
    for heading, lines in _parts(diff):
        if lines:
            shown = lines if most is None else lines[:most]
            rest = len(lines) - len(shown)
            parts += ["", heading, *shown, *([f"{'':10}and {rest} more"] if rest else [])]
    return "\n".join(map(printable, parts))


def _title(diff: Diff) -> str:
    size = format_size(abs(diff.net) * diff.page_size)
    sign = "more" if diff.net >= 0 else "less"
    free = sum(zone.after - zone.before for zone in diff.zones)
    words = [f"{len(diff.pfns):,} frames changed hands in {diff.seconds:.2f} s", f"{size} {sign} in use"]
    return "; ".join([*words, f"free pages {free:+,}"] if diff.zones else words)


def _parts(diff: Diff) -> Iterator[tuple[str, list[str]]]:
    size = diff.page_size
    yield (
        f"{'Frames':>8} {'Bytes':>10} {'Gained':>8} {'Lost':>8}  Owner",
        [
            f"{each.net:>+8,} {signed_size(each.net * size):>10} {each.gained:>8,} {each.lost:>8,}"
            f"  {each.holder}"
            for each in sorted(diff.balances, key=lambda each: (-abs(each.net), -each.gained))
        ],
    )
    yield (
        f"{'Frames':>8}  From -> to",
        [f"{len(each.pfns):>8,}  {each.was} -> {each.now}" for each in diff.handovers()],
    )
    yield "Tasks", [_task(each, size) for each in sorted(diff.tasks, key=lambda each: -abs(each.rss))]
    yield (
        "Slab caches",
        [_cache(each) for each in sorted(diff.caches, key=lambda each: -abs(each.objects * each.cache.size))],
    )
    yield (
        "Vmalloc areas",
        [
            f"  {'+-'[not each.came]} {format_size(each.area.size):>8}  {each.area.start:#x}"
            f"  {each.area.caller or 'nobody is noted'}"
            for each in diff.areas
        ],
    )
    yield (
        "Modules",
        [
            f"  {'+-'[not each.came]} {format_size(each.module.size):>8}  {each.module.base:#x}"
            f"  {each.module.name}"
            for each in diff.modules
        ],
    )
    yield "Mapped", [_space(each) for each in diff.spaces]


def _task(change: TaskChange, page_size: int) -> str:
    task, sign = change.task, "+-~"[_kind(change)]
    line = f"  {sign} {signed_size(change.rss * page_size):>10}  {task.pid:>6} {task.name}"
    if change.before and change.after and change.before.comm != task.comm:
        return f"{line}, was {change.before.comm}"
    return line


def _kind(change: TaskChange | CacheChange) -> int:
    """0 came, 1 went, 2 is another."""
    return 0 if change.before is None else 1 if change.after is None else 2


def _cache(change: CacheChange) -> str:
    cache, bytes_ = change.cache, change.objects * change.cache.size
    sign = "+-~"[_kind(change)]
    counts = ((change.objects, "object"), (change.slabs, "slab"))
    words = [f"{count:+,} {what}{'s' * (abs(count) != 1)}" for count, what in counts if count]
    return f"  {sign} {signed_size(bytes_):>10}  {cache.name}: {', '.join(words) or 'empty'}"


def _space(change: SpaceChange) -> str:
    gained, lost = change.gained_bytes, change.lost_bytes
    words = [
        f"{format_size(size)} {what} in {len(rows):,} entr{'y' if len(rows) == 1 else 'ies'}"
        for size, what, rows in ((gained, "gained", change.gained), (lost, "lost", change.lost))
        if size
    ]
    who = f"{change.task.pid:>6} {change.task.name}"
    return f"    {signed_size(gained - lost):>10}  {who}: {', '.join(words)}"


def signed_size(count: int) -> str:
    """A change of bytes: `+8 MiB`, `-4 KiB`, `0`."""
    return ("+" if count > 0 else "-" if count < 0 else "") + (format_size(abs(count)) if count else "0")


def as_data(diff: Diff) -> dict[str, Any]:
    """The diff as JSON has it: frames as runs, [first PFN, count]."""
    return {
        "seconds": diff.seconds,
        "page_size_bytes": diff.page_size,
        "frames_changed": len(diff.pfns),
        "in_use_frames": diff.net,
        "owners": [
            {
                **_holder(each.holder),
                "before": each.before,
                "after": each.after,
                "gained": each.gained,
                "lost": each.lost,
            }
            for each in diff.balances
        ],
        "handovers": [
            {
                "from": _holder(each.was),
                "to": _holder(each.now),
                "frames": len(each.pfns),
                "pfn_runs": [list(run) for run in pfn_runs(each.pfns)],
            }
            for each in diff.handovers()
        ],
        "tasks": [_pair(each, ("pid", "name", *_COUNTS)) for each in diff.tasks],
        "slab_caches": [
            _pair(each, ("name", "size", "slabs", "objects", "active", "allocated")) for each in diff.caches
        ],
        "vmalloc_areas": [
            {
                "change": _came(each.came),
                "start": word(each.area.start),
                "size_bytes": each.area.size,
                "pages": each.area.pages,
                "caller": printable(each.area.caller) or None,
            }
            for each in diff.areas
        ],
        "modules": [
            {"change": _came(each.came), "name": each.module.name, "size_bytes": each.module.size}
            for each in diff.modules
        ],
        "mappings": [
            {
                "pid": each.task.pid,
                "name": printable(each.task.name),
                "gained_bytes": each.gained_bytes,
                "lost_bytes": each.lost_bytes,
                "gained_entries": len(each.gained),
                "lost_entries": len(each.lost),
            }
            for each in diff.spaces
        ],
        "zones": [
            {"node": each.node, "name": each.name, "free_before": each.before, "free_after": each.after}
            for each in diff.zones
        ],
        "leaked": [
            {
                **_holder(each.holder),
                "unit": each.unit,
                "count": each.count,
                "bytes": each.count * each.size,
                "pfn_runs": [list(run) for run in pfn_runs(each.pfns)],
                "freed_pfn_runs": [list(run) for run in pfn_runs(each.freed)],
                "forgotten_pfn_runs": [list(run) for run in pfn_runs(each.forgotten)],
            }
            for each in diff.leaked().found
        ],
    }


_COUNTS = ("rss_anon", "rss_file", "rss_shmem", "swap_entries", "total_vm", "pgtables_bytes")


def _holder(holder: Holder) -> dict[str, Any]:
    return {"owner": holder.owner.name.lower(), "label": printable(holder.label) or None}


def _came(came: bool) -> str:
    return "came" if came else "went"


def _pair(change: TaskChange | CacheChange, names: Sequence[str]) -> dict[str, Any]:
    def side(thing: Any, members: Iterable[str]) -> dict[str, Any] | None:
        return {name: _plain(getattr(thing, name)) for name in members} if thing else None

    return {
        "change": ("came", "went", "changed")[_kind(change)],
        "before": side(change.before, names),
        "after": side(change.after, names),
    }


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
