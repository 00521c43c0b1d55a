"""The plugin, in a pytest inside this one, over guests that are only pretended: who gets which, and when."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import inspector
from inspector import kernlog
from inspector.errors import GuestDied, SetupError

# Before the inner pytest does, which forgets what it has imported.
from inspector.testing import keeping, pool, spec  # noqa: F401


class Machine:
    """What the plugin asks of one."""

    alive = True

    def console_tail(self, lines: int) -> str:
        """Its console."""
        return "the last words of the console"


class Died:
    """A guest's state."""

    reason = "dead: killed by signal 9"


class Pretended:
    """A guest that says what is done to it."""

    def __init__(self, did: list[str], number: int, kernel: str, options: dict[str, Any]) -> None:
        self.did, self.number, self.kernel_name, self.machine = did, number, kernel, Machine()
        self.complaint, self.broken = "", False
        said = {name: value for name, value in options.items() if value}
        did.append(f"boot {number} {kernel} {said}")

    def load_module(self, module: str | Path, **parameters: Any) -> None:
        """As Guest."""
        self.did.append(f"load {Path(module).name} {parameters}")

    def put(self, data: Path, place: str) -> None:
        """As Guest."""
        self.did.append(f"put {place} {data.read_text()}")

    def mark(self) -> None:
        """As Guest."""

    def restore(self) -> None:
        """As Guest."""
        if self.broken:
            raise GuestDied("it does not come back")
        self.complaint = ""
        self.did.append(f"restore {self.number}")

    def run(self, command: str) -> None:
        """As Guest: it dies of it."""
        self.machine.alive = False
        self.broken = True
        raise GuestDied("the guest is gone: killed by signal 9")

    def close(self) -> None:
        """As Guest."""
        self.did.append(f"close {self.number}")

    def state(self) -> type[Died]:
        """As Guest."""
        return Died

    def page(self, pfn: int, owners: None = None) -> None:
        """As Guest; nobody asks."""


class Log:
    """As KernelLog."""

    def __init__(self, guest: Pretended) -> None:
        self.guest = guest

    def complaint(self) -> str:
        """What the guest was told to complain of."""
        return self.guest.complaint


class Ran:
    """What a run of pytest came to; `did` are the doings of the pretended guests."""

    def __init__(self, result: pytest.RunResult, did: list[str]) -> None:
        self.text, self.errors, self.did, self.ret = str(result.stdout), str(result.stderr), did, result.ret
        # The plugin is imported before: pytest warns that it cannot rewrite its assertions.
        told = result.parseoutcomes() if result.ret != pytest.ExitCode.USAGE_ERROR else {}
        outcomes = {what.rstrip("s"): count for what, count in told.items()}
        self.counts = {what: count for what, count in outcomes.items() if what != "warning"}


Run = Callable[..., Ran]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest over a file of tests, with the plugin and nothing else."""
    did: list[str] = []
    booted: list[str] = []

    def boot(kernel: str, **options: Any) -> Pretended:
        if options["memory"] == "1T":
            raise SetupError("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
        booted.append(kernel)
        return Pretended(did, len(booted), kernel, options)

    monkeypatch.setattr(inspector, "boot", boot, raising=False)
    monkeypatch.setattr(kernlog, "KernelLog", Log)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("CI", raising=False)

    def ran(tests: str, *options: str, ini: str = "") -> Ran:
        did.clear()
        booted.clear()
        pytester.makepyfile(test_it=f"import pytest\n\n{tests}")
        pytester.makefile(".ini", pytest=f"[pytest]\naddopts = --strict-markers\n{ini}")
        result = pytester.runpytest_inprocess(
            "-p", "inspector.testing.plugin", "-p", "no:cacheprovider", "-rs", *options
        )
        return Ran(result, did)

    return ran


def test_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    """Neither numpy nor any of our own modules but the plugin's is imported."""
    test = tmp_path / "test_it.py"
    test.write_text(
        "def test_it():\n"
        "    import sys\n"
        "    ours = {name for name in sys.modules if name.startswith('inspector.')}\n"
        "    assert 'numpy' not in sys.modules\n"
        "    assert ours <= {'inspector.errors', 'inspector.testing', 'inspector.testing.plugin'}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "inspector.testing.plugin", str(test)]
    environment = {
        "PYTHONPATH": str(Path(inspector.__file__).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_one_guest_for_all_put_back_between(run: Run) -> None:
    there = run("def test_one(guest): pass\ndef test_two(guest): pass\ndef test_three(): pass\n")
    assert there.counts == {"passed": 3}
    assert there.did == ["boot 1 debian-6.1 {'memory': '512M', 'cpus': 1}", "restore 1", "close 1"]


def test_a_guest_for_each_kind(run: Run) -> None:
    there = run(
        "@pytest.mark.guest(memory='1G')\n"
        "def test_large(guest): pass\n"
        "def test_plain(guest): pass\n"
        "@pytest.mark.guest(memory='1G')\n"
        "def test_large_too(guest): pass\n"
    )
    assert there.counts == {"passed": 3}
    assert [line.split("{")[0] for line in there.did] == [
        "boot 1 debian-6.1 ", "boot 2 debian-6.1 ", "restore 1", "close 2", "close 1",
    ]  # fmt: skip


def test_a_guest_of_its_own(run: Run) -> None:
    there = run(
        "def test_fresh(fresh_guest): assert fresh_guest.number == 1\n"
        "@pytest.mark.guest(cpus=2)\n"
        "def test_two(guest_factory):\n"
        "    assert guest_factory().number == 2\n"
        "    assert guest_factory(kernel='debian-7.2', cpus=4).kernel_name == 'debian-7.2'\n"
    )
    assert there.counts == {"passed": 2}, there.text
    assert there.did == [
        "boot 1 debian-6.1 {'memory': '512M', 'cpus': 1}", "close 1",
        "boot 2 debian-6.1 {'memory': '512M', 'cpus': 2}",
        "boot 3 debian-7.2 {'memory': '512M', 'cpus': 4}", "close 3", "close 2",
    ]  # fmt: skip


def test_what_is_put_into_it(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path / "program").write_text("text")
    (pytester.path / "driver").mkdir()
    there = run(
        "@pytest.mark.guest(files={'/bin/program': 'program'},\n"
        "                   modules={'driver': {'most': 7}, 'lender': {}})\n"
        "def test_it(guest): pass\n"
    )
    assert there.counts == {"passed": 1}, there.text
    assert there.did[1:-1] == ["put /bin/program text", "load driver {'most': 7}", "load lender {}"]


@pytest.mark.parametrize(
    ("ini", "options", "mark", "kernels"),
    [
        ("", (), "", ["debian-6.1"]),
        ("kmi_kernel = debian-5.10", (), "", ["debian-5.10"]),
        ("kmi_kernel = debian-5.10 debian-7.2", (), "", ["debian-5.10", "debian-7.2"]),
        (
            "kmi_kernel = debian-5.10",
            ("--kmi-kernel=debian-6.12,debian-7.2",),
            "",
            ["debian-6.12", "debian-7.2"],
        ),
        ("", ("--kmi-kernel=debian-6.12",), "kernel='debian-7.2'", ["debian-7.2"]),
        ("", (), "kernel=['debian-5.10', 'debian-6.1']", ["debian-5.10", "debian-6.1"]),
    ],
)
def test_kernels(run: Run, ini: str, options: tuple[str, ...], mark: str, kernels: list[str]) -> None:
    """The marker's, else the option's, else the setting's."""
    there = run(f"@pytest.mark.guest({mark})\ndef test_it(guest): pass\n", "-v", *options, ini=ini)
    assert there.counts == {"passed": len(kernels)}, there.text
    assert [line.split()[2] for line in there.did if line.startswith("boot")] == kernels
    assert all(f"[{kernel}]" in there.text for kernel in kernels) or len(kernels) == 1


def test_a_kernel_that_complains_fails_the_test(run: Run) -> None:
    there = run(
        "def test_warns(guest): guest.complaint = 'WARNING: CPU: 0 at mm/slub.c'\n"
        "def test_after(guest): pass\n"
        "@pytest.mark.guest(warnings=True)\n"
        "def test_meant(guest): guest.complaint = 'WARNING: CPU: 0'\n"
    )
    assert there.counts == {"passed": 3, "error": 1}
    assert "the guest's kernel complained during this test: WARNING: CPU: 0 at mm/slub.c" in there.text


def test_a_guest_that_dies_fails_the_test_and_is_replaced(run: Run) -> None:
    there = run(
        "def test_dies(guest): guest.machine.alive, guest.broken = False, True\n"
        "def test_after(guest): assert guest.number == 2\n"
    )
    assert there.counts == {"passed": 2, "error": 1}, there.text
    assert "the guest died during this test: dead: killed by signal 9" in there.text


def test_a_death_is_told_once_and_the_report_ends_in_the_test(run: Run) -> None:
    there = run(
        "def test_dies(guest):\n    guest.run('reboot')\ndef test_after(guest): assert guest.number == 2\n"
    )
    assert there.counts == {"passed": 1, "failed": 1}, there.text
    assert "GuestDied: the guest is gone: killed by signal 9" in there.text
    assert "the guest died during this test" not in there.text


def test_an_error_of_ours_is_told_without_our_own_lines(run: Run) -> None:
    there = run(
        "from inspector.units import parse_size\n"
        "def test_it(guest):\n    parse_size('7 bananas')\n"
        "def test_bug(guest):\n    parse_size(None)\n"
    )
    assert there.counts == {"failed": 2}
    ours, bug = there.text.split("___ test_bug ___")
    assert "UsageError: " in ours
    assert "units.py" not in ours
    assert "units.py" in bug  # what is no error of ours is a bug, and shown whole


@pytest.mark.parametrize(
    ("options", "ini", "why"),
    [
        (
            ("--kmi-kernel=debian-9.9",),
            "",
            "kmi_kernel: no kernel named 'debian-9.9'; known are debian-5.10,",
        ),
        (("--kmi-kernel=debian-6.1,/no/bzImage",), "", "kmi_kernel: .*/no/bzImage"),
        ((), "kmi_kernel = debian-9.9", "kmi_kernel: no kernel named 'debian-9.9'"),
        (("--kmi-initrd=/no/initrd",), "", "kmi_initrd: there is no file /no/initrd"),
        (("--kmi-accel=fast",), "", "kmi_accel: there is no accelerator 'fast': give auto, kvm, tcg"),
        ((), "kmi_accel = fast", "kmi_accel: there is no accelerator 'fast': give auto, kvm, tcg"),
        ((), "kmi_keep = perhaps", "kmi_keep: .*perhaps"),
    ],
)
def test_options_that_make_no_sense(run: Run, options: tuple[str, ...], ini: str, why: str) -> None:
    """One line, before any test, and the exit code of a wrong command line."""
    there = run("def test_it(guest): pass\n", *options, ini=ini)
    assert there.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(f"^ERROR: {why}", there.errors, re.MULTILINE), there.errors
    assert "Traceback" not in there.errors + there.text
    assert not there.did


def test_a_setting_that_no_test_wants_is_not_looked_at(run: Run) -> None:
    there = run("def test_it(): pass\n", ini="kmi_kernel = debian-9.9")
    assert there.counts == {"passed": 1}


def test_a_kernel_of_the_markers_that_is_none(run: Run) -> None:
    there = run("@pytest.mark.guest(kernel='/no/bzImage')\ndef test_it(guest): pass\n")
    assert there.counts == {"error": 1}
    assert "/no/bzImage" in there.text


def test_a_failure_shows_the_console(run: Run) -> None:
    there = run("def test_it(guest): assert guest.number == 7\n")
    assert there.counts == {"failed": 1}
    assert "console of the guest (debian-6.1)" in there.text
    assert "the last words of the console" in there.text


def test_what_is_missing_skips_and_fails_under_ci(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = "@pytest.mark.guest(memory='1T')\ndef test_it(guest): pass\n"
    there = run(tests)
    assert there.counts == {"skipped": 1}
    assert "qemu-system-x86_64 is missing" in there.text
    monkeypatch.setenv("CI", "true")
    assert run(tests).counts == {"error": 1}


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("kernle='x'", "a guest has no kernle; the marker takes kernel, memory"),
        ("files={'/x': 'absent'}", "give a path from / in the guest, and a file here"),
    ],
)
def test_a_marker_that_makes_no_sense(run: Run, mark: str, words: str) -> None:
    there = run(f"@pytest.mark.guest({mark})\ndef test_it(guest): pass\n")
    assert there.counts == {"error": 1}
    assert words in there.text
    assert "Traceback" not in there.text
    assert not there.did
