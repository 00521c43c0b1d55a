"""Memory as plain text, for a test's report: walks, frames, who maps them."""

from __future__ import annotations

from collections.abc import Iterable

from inspector.arch import Walk
from inspector.kernel.pages import Page
from inspector.kernel.rmap import Alias
from inspector.units import format_size, printable

_MOST = 8  # lines of a list


def owner_name(page: Page) -> str:
    """`anonymous: touch (84)`."""
    name = page.owner.words
    return printable(f"{name}: {page.owner_label}" if page.owner_label else name)


def rights(walk: Walk) -> str:
    """What all levels together grant: `rw-`; `---` after a fault."""
    if walk.phys is None:
        return "---"
    return f"r{'w' if walk.writable else '-'}{'x' if walk.executable else '-'}"


def walk_text(walk: Walk) -> str:
    """Each level's entry, and where it all led."""
    digits = walk.format.entry_size * 2
    lines = [f"{walk.va:#x}, {walk.format.name}:"]
    for step in walk.steps:
        what = " ".join(step.flags) if step.flags else "not present"
        lines.append(f"  {step.level.name:<4}[{step.index:3}] = {step.entry:#0{digits + 2}x}  {what}")
    if walk.phys is not None:
        who = "user" if walk.user else "kernel"
        size = format_size(walk.page_size or 0)
        lines.append(f"  physical {walk.phys:#x} (PFN {walk.pfn:#x}), a page of {size}, {rights(walk)} {who}")
    elif walk.fault:
        lines.append(f"  {walk.fault.what}")
    return "\n".join(lines)


def page_text(page: Page) -> str:
    """A struct page in some lines."""
    lines = [
        f"PFN {page.pfn:#x}: {owner_name(page)}",
        f"  flags {' '.join(page.flag_names) or 'none'}",
        f"  refcount {page.refcount}, mapcount {'none' if page.mapcount is None else page.mapcount}, "
        f"order {page.order}",
        f"  zone {page.zone}, node {page.node}, pageblock {page.migratetype}",
    ]
    if page.memory_group:
        lines.append(f"  charged to {printable(page.memory_group)}")
    return "\n".join(lines)


def aliases_text(aliases: Iterable[Alias]) -> str:
    """Who maps a frame, a line each."""
    lines = [
        f"  {alias.va:#x}  {alias.cache_mode:<3} {' '.join(alias.flags)}  "
        + (printable(f"{alias.task.comm} ({alias.task.pid})") if alias.task else alias.region)
        for alias in aliases
    ]
    return "\n".join(["mapped at:", *_shortened(lines)]) if lines else "mapped nowhere"


def _shortened(parts: list[str]) -> list[str]:
    return parts if len(parts) <= _MOST else [*parts[: _MOST - 1], f"... {len(parts) - _MOST + 1} more"]
