"""SIGSEGV: three ways to earn it, and what tells them apart."""

from __future__ import annotations

import re

from inspector.labs import checks, prepare
from inspector.labs.checks import equal
from inspector.labs.stage import Stage, frames_of
from inspector.labs.story import Check, EntryShown, Exhibit, Lab, Look, QuoteShown, Seen, Step, Story
from inspector.units import VirtAddr, printable

_EXCEPTION_TRACE = "/proc/sys/debug/exception-trace"
_CODES = {1: "SEGV_MAPERR", 2: "SEGV_ACCERR"}
_P, _W, _U, _I = 1 << 0, 1 << 1, 1 << 2, 1 << 4  # SDM vol. 3, 4.7


def story(stage: Stage) -> Story:
    """Nothing there; a right is missing; not the user's."""
    actor = stage.actor
    yield Step(
        "Nothing is mapped there",
        "The program reads address 0, as code with a NULL pointer does. No mapping has it: the kernel keeps "
        "the first 64 KiB free.",
        ("char c = *(char *)NULL;",),
        ("Its code is SEGV_MAPERR: no mapping has the address.",
         "Error code 4: U (from user mode). P and W are clear: not present, a read."),
    )  # fmt: skip
    yield _died(stage, "read", VirtAddr(0), 1, _U)

    page = actor.map("page", 1)
    actor.write(page, 7)
    actor.ask(f"protect {page:#x} 1 r")
    yield Step(
        "A right is missing",
        "The program writes to a page that it may only read.",
        ("mprotect(page, 4096, PROT_READ);", "page[0] = 8;"),
        ("The page is there, RW is clear. The code is SEGV_ACCERR.",
         "Error code 7: P (it was present), W (a write), U."),
    )  # fmt: skip
    yield _died(stage, "write", page, 2, _P | _W | _U)

    yield Step(
        "Data is no code",
        "The same page: the program jumps to it. NX in its entry forbids to execute it.",
        ("((void (*)(void))page)();",),
        ("SEGV_ACCERR again. Error code 15 (hexadecimal): I (an instruction fetch), U, P.",),
    )
    yield _died(stage, "exec", page, 2, _I | _U | _P)

    kernel = stage.guest.symbol("init_task")
    yield Step(
        "It is not yours",
        "The program reads an address of the kernel: that of the first task. The kernel has it mapped, and "
        "US is clear in its own tables.",
        (f"char c = *(char *){kernel:#x};",),
        ("SEGV_MAPERR: for the program no such mapping exists.",
         "Error code 5: P is told as set for any address of the kernel, mapped or not, so that "
         "a program cannot find out where the kernel is."),
    )  # fmt: skip
    ours = stage.guest.walk(kernel)
    shown = EntryShown(Look("kernel", ours, "", None))
    rights = "kernel only" if ours.phys is not None and not ours.user else "another"
    mine = (equal("The kernel's own entry", "kernel only", rights, checks.TABLES),)
    yield _died(stage, "read", kernel, 1, _P | _U, (shown,), mine)


def _died(
    stage: Stage,
    how: str,
    va: VirtAddr,
    code: int,
    error: int,
    more: tuple[Exhibit, ...] = (),
    also: tuple[Check, ...] = (),
) -> Seen:
    """Do it in the program, which catches the signal; then in a child, which dies of it and is logged."""
    actor = stage.actor
    access = actor.read(va) if how == "read" else actor.write(va) if how == "write" else actor.execute(va)
    look = stage.look(va)
    perished = actor.ask(f"perish {how} {va:#x}")
    line = _logged(stage, int(perished["pid"]))
    found = re.search(r"error ([0-9a-f]+)", line)
    trace = stage.guest.run(f"cat {_EXCEPTION_TRACE}").stdout.strip()
    hint = f"does the kernel log it? {_EXCEPTION_TRACE} is {trace}"
    exhibits = more or (EntryShown(look), *frames_of(look))
    name = _CODES.get(access.code, str(access.code))
    return Seen(
        (*exhibits, QuoteShown("the kernel's log, of a child that did the same:", (line or "nothing",))),
        (
            equal("The signal's code", _CODES[code], name, "its signal handler"),
            equal("si_addr", f"{va:#x}", f"{access.address:#x}", "its signal handler"),
            equal("A child dies of signal", "11", perished["died"], "waitpid()"),
            equal("Error code", f"{error:x}", found[1] if found else "none", "the kernel's log", hint),
            *also,
        ),
    )


def _logged(stage: Stage, pid: int) -> str:
    """The line about a process in the kernel's log."""
    lines = stage.guest.run(f"dmesg | grep 'actor\\[{pid}\\]: segfault'").stdout.splitlines()
    return printable(re.sub(r"^\[[^]]*\] ", "", lines[-1])) if lines else ""


_PREPARE, _UNDO = prepare.setting(_EXCEPTION_TRACE, "1")
LAB = Lab(
    name="segfault",
    question="What earns a program its SIGSEGV?",
    answer="No mapping, a missing right, or an address that is not the user's: the error code tells which.",
    story=story,
    prepare=_PREPARE,
    undo=_UNDO,
)
