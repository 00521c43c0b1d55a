"""Which accelerator QEMU gets. /dev/kvm alone proves nothing: it may open and still hang the guest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inspector.errors import SetupError

AccelChoice = Literal["auto", "kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class Accel:
    """The accelerator taken and why, for a person."""

    name: Literal["KVM", "TCG"]
    reason: str


def cpu_flags(cpuinfo: str) -> set[str]:
    """The first CPU's flags out of /proc/cpuinfo's text."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return set(value.split())
    return set()


def choose(choice: AccelChoice, la57: bool, flags: set[str], kvm: str) -> Accel:
    """KVM where the host's CPU has vmx or svm and /dev/kvm opens (`kvm` empty, else why not); TCG otherwise.

    Raises SetupError where `choice` is kvm and it cannot work.
    """
    if choice == "tcg":
        return Accel("TCG", "TCG was asked for")
    problem = ""
    if not flags & {"vmx", "svm"}:
        problem = "the host's CPU shows neither vmx nor svm"
    elif kvm:
        problem = kvm
    elif la57 and "la57" not in flags:
        problem = "5-level paging was asked for and the host's CPU has no la57"
    if not problem:
        return Accel(
            "KVM", "the host's CPU has " + ("vmx" if "vmx" in flags else "svm") + " and /dev/kvm opens"
        )
    if choice == "kvm":
        raise SetupError(f"KVM cannot be used: {problem}; leave out --accel kvm to run under TCG")
    return Accel("TCG", problem)


def detect(choice: AccelChoice = "auto", la57: bool = False) -> Accel:
    """What `choose` says on this host. Raises SetupError as it does."""
    try:
        flags = cpu_flags(Path("/proc/cpuinfo").read_text())
    except OSError:
        flags = set()
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        kvm = ""
    except OSError as error:
        kvm = f"/dev/kvm does not open: {error.strerror}"
    return choose(choice, la57, flags, kvm)
