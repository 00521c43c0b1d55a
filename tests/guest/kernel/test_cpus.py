"""CPUs, their roots, and page table isolation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from inspector import Guest
from inspector.arch import FaultKind
from inspector.errors import UsageError
from inspector.guest import Cpu
from inspector.kernel import cpus
from inspector.units import PhysAddr

pytestmark = pytest.mark.guest

_TRIES = 200


@pytest.fixture(scope="module")
def isolated_guest(boot_guest: Any) -> Iterator[Guest]:
    """A guest that isolates page tables though its CPU would not need it."""
    with boot_guest("debian-6.1", "512M", 1, cmdline="pti=on") as guest:
        yield guest


def test_current_task_and_root(guest: Guest, start: Any) -> None:
    """A busy task is seen on its CPU, with its mm's page tables in CR3."""
    pid = guest.spawn("/labs/burn")
    try:
        for _ in range(_TRIES):
            with guest.paused():
                found = {cpu.pid: cpu for cpu in guest.cpus()}
                task = guest.task(pid)
            if pid in found and found[pid].comm == "burn":
                break
        assert found[pid].comm == "burn"
        assert found[pid].root_kind == "kernel and user"
        assert task.mm
        assert found[pid].root == task.mm.pgd
        assert task.cpu == found[pid].number
    finally:
        guest.run(f"kill {pid}")


def test_isolated_roots(isolated_guest: Guest) -> None:
    """With KPTI a task has two roots, and user mode's maps no kernel data."""
    guest = isolated_guest
    assert "page tables isolation: enabled" in guest.run("dmesg").stdout
    assert guest.info().page_table_isolation
    pid = guest.spawn("/labs/burn")
    try:
        kinds: dict[str, Cpu] = {}
        for _ in range(_TRIES):
            with guest.paused():
                cpu, task = guest.cpus()[0], guest.task(pid)
            # On its way in, the kernel runs on the user's root for some instructions.
            entering = cpu.root_kind == "user" and cpu.registers.cpl == 0
            if cpu.pid == pid and cpu.comm == "burn" and not entering:
                kinds[cpu.root_kind] = cpu
            if len(kinds) == 2:
                break
        assert "user" in kinds, "a task that burns CPU time is nearly always in user mode"
        user = kinds["user"]
        assert task.mm
        assert user.registers.cpl == 3
        assert user.root == cpus.user_root(guest.kernel, task.mm.pgd)
        with guest.paused():
            code = user.registers.rip
            # The same user page through either root; the kernel's data only through its own.
            assert guest.walk(code, root=user.root).phys == task.walk(code).phys is not None
            data = guest.symbol("init_task")
            assert task.walk(data).phys is not None
            hidden = guest.walk(data, root=user.root)
        assert hidden.fault
        assert hidden.fault.kind is FaultKind.NOT_PRESENT
    finally:
        guest.run(f"kill {pid}")


def test_attach_from_user_mode(isolated_guest: Guest) -> None:
    """Names and types are found though the CPU's CR3 may name the user's root at that moment."""
    guest = isolated_guest
    pid = guest.spawn("/labs/burn")
    try:
        for _ in range(5):
            again = Guest(guest.machine)
            assert again.symbol("init_task") == guest.symbol("init_task")
            again.memory.close()
    finally:
        guest.run(f"kill {pid}")


def test_no_such_cpu(guest: Guest) -> None:
    with pytest.raises(UsageError, match="no CPU 7; this guest has 0 to 1"):
        guest.space(cpu=7)
    with pytest.raises(UsageError, match="not both"):
        guest.space(cpu=0, root=PhysAddr(0x1000))
