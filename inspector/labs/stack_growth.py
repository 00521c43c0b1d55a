"""The stack: how it grows, how far, and the gap that guards it."""

from __future__ import annotations

from inspector.errors import LabFailed
from inspector.kernel.vmas import Vma
from inspector.labs import checks
from inspector.labs.actor import Access
from inspector.labs.checks import equal, holds, kib
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import Check, EntryShown, Lab, Seen, Step, Story, VmaShown
from inspector.trace import FaultKind
from inspector.units import KIB, MIB, VirtAddr

_DEEP, _GAP = MIB, 256  # bytes below the stack that are touched; C: stack_guard_gap, in pages
_MAPERR = 1


def story(stage: Stage) -> Story:
    """Touch below the stack, below its limit, and near a neighbour."""
    actor, page = stage.actor, stage.page_size
    yield Step(
        "The stack as it is",
        "The kernel gave the program a stack of some pages. Below it nothing is mapped.",
        (),
        ("The mapping [stack] grows down: VM_GROWSDOWN.", "An address 1 MiB below it is in no mapping."),
    )
    stack = the_stack(stage)
    deep = VirtAddr(stack.start - _DEEP)
    before = stage.look(deep)
    flags = ", ".join(flag for flag in stack.flag_names if flag == "GROWSDOWN") or "not there"
    yield Seen(
        (VmaShown(stack), EntryShown(before)),
        (
            equal("Its flag", "GROWSDOWN", flags, "struct vm_area_struct"),
            holds("The address", stage.vma(deep) is None, "in no mapping", "in no mapping", "the VMAs"),
            checks.not_present(before),
        ),
    )

    yield Step(
        "Use 1 MiB more of it",
        "A deep call writes far below the stack. The CPU faults. The kernel finds no mapping there, but one "
        "above that grows down: it moves the start of the stack, and gives one page.",
        ("char deep[1 << 20];  deep[0] = 7;",),
        ("The mapping has grown by 1 MiB, and begins at the page that was touched.",
         "One page is present. The ones between are empty: they come when they are touched."),
    )  # fmt: skip
    seen = stage.watch(lambda: actor.write(deep, 7), deep)
    wrote = seen.access
    grown, after = the_stack(stage), stage.look(deep)
    between = stage.look(VirtAddr(deep + page))
    yield Seen(
        (
            *seen.shown,
            VmaShown(grown, stack),
            EntryShown(after, before),
            *frames_of(after),
            stage.pages(grown.start, 16),
        ),
        (
            checks.faults(wrote, 1, hint="is the limit of the stack lower (ulimit -s)?"),
            checks.kind(seen.faults, FaultKind.STACK_GROWTH),
            equal("The stack begins at", f"{deep & -page:#x}", f"{grown.start:#x}", "struct vm_area_struct"),
            checks.not_present(between),
            checks.pagemap(after, wrote.pagemap),
            kib("Size of [stack]", grown.size // KIB, actor.smaps(deep)["Size"], checks.SMAPS),
        ),
    )

    limit = stack_limit(stage)
    yield Step(
        "Beyond the limit",
        f"The limit of the stack (ulimit -s) is {limit // KIB:,} KiB. The program touches a page below that.",
        ("endless_recursion();",),
        ("SIGSEGV, with the address that was touched. The stack has not grown.",),
    )
    low = VirtAddr(grown.end - limit - 16 * page)
    wrote = actor.write(low, 7)
    now = the_stack(stage)
    yield Seen(
        (VmaShown(now),),
        (
            *segfault(wrote, low),
            equal("The stack begins at", f"{grown.start:#x}", f"{now.start:#x}", "struct vm_area_struct"),
        ),
    )

    yield Step(
        "The guard gap",
        f"The program maps a page {_GAP // 2} pages below the stack, and touches one between the two.",
        (f"mmap(stack - {_GAP // 2} * 4096, 4096, ..., MAP_FIXED_NOREPLACE, ...);",
         f"*(stack - {_GAP // 4} * 4096) = 7;"),
        (f"SIGSEGV, though the limit is far: the stack stays {_GAP} pages (1 MiB) away from any "
         "neighbour below, so that large arrays on it cannot reach over.",),
    )  # fmt: skip
    actor.map("neighbour", 1, f"at={grown.start - _GAP // 2 * page:#x}")
    near = VirtAddr(grown.start - _GAP // 4 * page)
    wrote = actor.write(near, 7)
    now = the_stack(stage)
    neighbour = stage.vma(VirtAddr(grown.start - _GAP // 2 * page))
    yield Seen(
        (*(() if neighbour is None else (VmaShown(neighbour),)), VmaShown(now)),
        (
            *segfault(wrote, near),
            equal("The stack begins at", f"{grown.start:#x}", f"{now.start:#x}", "struct vm_area_struct"),
        ),
    )


def the_stack(stage: Stage) -> Vma:
    """The mapping of the program's stack. Raises LabFailed."""
    found = next((vma for vma in stage.task().vmas() if vma.name == "[stack]"), None)
    if found is None:
        raise LabFailed("the program has no stack")
    return found


def stack_limit(stage: Stage) -> int:
    """The soft limit of the stack, in bytes, by /proc/PID/limits. Raises LabFailed where there is none."""
    said = stage.guest.run(f"grep 'Max stack size' /proc/{stage.actor.pid}/limits").stdout.split()
    if len(said) < 4 or not said[3].isdecimal():
        raise LabFailed("the program's stack has no limit (ulimit -s)")
    return int(said[3])


def segfault(access: Access, va: VirtAddr) -> tuple[Check, ...]:
    """The access ended in SIGSEGV, for want of a mapping there."""
    signal = f"signal {access.signal}, code {access.code}" if access.signal else "no signal"
    return (
        equal("What the program got", f"signal 11, code {_MAPERR}", signal, "its signal handler"),
        equal("si_addr", f"{va:#x}", f"{access.address:#x}", "its signal handler"),
    )


LAB = Lab(
    name="stack-growth",
    question="How does the stack grow, and why not for ever?",
    answer="A fault just below a mapping that grows down moves its start, as far as the limit and the guard "
    "gap let it.",
    story=story,
)
