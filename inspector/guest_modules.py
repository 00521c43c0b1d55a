"""Modules of our own into a running guest and out again: built on the host where need be, then insmod."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Mapping
from pathlib import Path

from inspector import images
from inspector.errors import MachineError, UsageError
from inspector.machine import Machine
from inspector.progress import SILENT, Reporter
from inspector.units import printable

Parameter = int | str | bool
"""A module's parameter: a bool is Y or N, a list is a string with commas (kernel/params.c)."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_PLACE = "/modules"
# What the kernel says of every module that is not its own; no reason for anything.
_ALWAYS = ("loading out-of-tree module", "module verification failed", "taints kernel")


def load(
    machine: Machine,
    release: str,
    module: str | Path,
    parameters: Mapping[str, Parameter],
    reporter: Reporter = SILENT,
) -> str:
    """Load a module, see images.build_module(), into a guest whose kernel has that release; gives its name.

    Raises UsageError (no such module or parameter), SetupError (it cannot be built here), MachineError with
    the kernel's reason where it refuses.
    """
    built = images.build_module(images.cached_kernel(release), module, reporter)
    name, known = built.stem, images.parameters(built)
    for parameter in parameters:
        if parameter not in known:  # the kernel itself would only ignore it, in its log
            raise UsageError(f"{name} has no parameter {parameter!r}; it has {', '.join(known) or 'none'}")
    words = " ".join(shlex.quote(f"{key}={_value(value)}") for key, value in parameters.items())
    place = f"{_PLACE}/{name}.ko"
    mark = f"kmi loads {name} {uuid.uuid4().hex}"
    machine.put(built.read_bytes(), place, 0o644)
    # The file is gone afterwards: it would be page cache that belongs to no lab.
    done = machine.run(
        f"echo {mark} >/dev/kmsg; insmod {place} {words}; code=$?; rm {place}; "
        f"[ $code = 0 ] || dmesg | sed '1,/{mark}/d'; exit $code"
    )
    if done.returncode:
        raise MachineError(f"the guest's kernel refuses {name}: {_reason(done.stdout, done.stderr)}")
    return name.replace("-", "_")  # as the kernel calls it: modpost's KBUILD_MODNAME


def unload(machine: Machine, name: str) -> None:
    """Unload a module. Raises UsageError for what is no name, MachineError (in use, not loaded)."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a module's name: {name!r}")
    done = machine.run(
        f"rmmod {name} || {{ cd /sys/module/{name} && cat refcnt && ls holders; exit 1; }} 2>/dev/null"
    )
    if done.returncode:
        count, *holders = done.stdout.split() or [""]
        why = f"it is used by {', '.join(holders)}" if holders else f"its reference count is {count}"
        raise MachineError(f"{name} is not unloaded: {printable(why) if count else 'it is not loaded'}")


def _value(value: Parameter) -> str:
    return "NY"[value] if isinstance(value, bool) else str(value)


def _reason(log: str, complaint: str) -> str:
    """The first line of the kernel's log that says something, without its time; else what insmod said."""
    lines = (re.sub(r"^(<\d+>)?\[[ \d.]+\] ", "", line) for line in log.splitlines())
    told = next((line for line in lines if line and not any(known in line for known in _ALWAYS)), "")
    said = complaint.strip().rpartition(": ")[2] or "it gave no reason"
    return printable(told or said.replace("File exists", "it is loaded already"))
