"""Which accelerator is taken, and that the reason is given."""

from __future__ import annotations

import pytest

from inspector.errors import SetupError
from inspector.machine.accel import choose, cpu_flags

INTEL = {"fpu", "vmx", "la57"}
AMD = {"fpu", "svm"}


def test_flags_come_from_the_first_cpu() -> None:
    cpuinfo = "processor\t: 0\nflags\t\t: fpu vmx sse\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert cpu_flags(cpuinfo) == {"fpu", "vmx", "sse"}


def test_cpuinfo_without_flags_has_none() -> None:
    assert cpu_flags("Processor : ARMv7\n") == set()


@pytest.mark.parametrize("flags", [INTEL, AMD])
def test_kvm_where_cpu_and_device_agree(flags: set[str]) -> None:
    assert choose("auto", False, flags, "").name == "KVM"


def test_an_open_device_is_not_enough() -> None:
    taken = choose("auto", False, {"fpu"}, "")
    assert taken.name == "TCG"
    assert "neither vmx nor svm" in taken.reason


def test_a_closed_device_gives_tcg_and_says_why() -> None:
    taken = choose("auto", False, INTEL, "/dev/kvm does not open: Permission denied")
    assert (taken.name, taken.reason) == ("TCG", "/dev/kvm does not open: Permission denied")


def test_la57_needs_the_hosts_la57_under_kvm() -> None:
    assert choose("auto", True, INTEL, "").name == "KVM"
    assert choose("auto", True, AMD, "").name == "TCG"


def test_tcg_on_request() -> None:
    assert choose("tcg", False, INTEL, "").name == "TCG"


def test_kvm_on_request_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(SetupError, match="neither vmx nor svm"):
        choose("kvm", False, set(), "")
