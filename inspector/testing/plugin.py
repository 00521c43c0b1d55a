"""The pytest plugin: guests as fixtures, put back between tests, and reports that show their memory.

Loaded by its entry point in every run of pytest: what costs is imported when a test wants a guest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from inspector.guest import Guest
    from inspector.testing.asked import Asked
    from inspector.testing.keeping import Kept
    from inspector.testing.pool import Pool
    from inspector.testing.spec import GuestSpec

_CONSOLE = 30  # lines
_ACCELS = ("auto", "kvm", "tcg")
_GUESTS: pytest.StashKey[list[tuple[GuestSpec, Guest]]] = pytest.StashKey()
_ASKED: pytest.StashKey[Asked] = pytest.StashKey()
_KEPT: pytest.StashKey[Kept] = pytest.StashKey()
_DEATH_TOLD: pytest.StashKey[bool] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, each with an ini setting of the same name."""
    group = parser.getgroup("kmi", "guests of the kernel memory inspector")
    for name, what in (
        ("kernel", "Kernel for tests that name none: of `kmi kernels`, or a path; several: on each of them."),
        ("initrd", "Initramfs of your own, instead of the one with the agent."),
        ("accel", "auto, kvm or tcg."),
    ):
        group.addoption(f"--kmi-{name}", metavar=name.upper(), help=what)
        parser.addini(f"kmi_{name}", what, default="")
    cold = "Boot each guest: no cached state, a new KASLR base."
    group.addoption("--kmi-cold", action="store_true", help=cold)
    keep = "Keep the guest of the first test that fails up, and say how to look into it."
    group.addoption("--kmi-keep", action="store_true", help=keep)
    parser.addini("kmi_keep", keep, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and refuse options that make no sense."""
    config.addinivalue_line(
        "markers",
        "guest(kernel=, memory=, cpus=, la57=, append=, modules=, files=, warnings=): the guest that a test "
        "has; several kernels: the test runs on each",
    )
    try:
        _setting(config, "keep")
    except (ValueError, pytest.UsageError) as error:  # the latter from pytest 9 on
        raise pytest.UsageError(f"kmi_keep: {error}") from None
    if (accel := _setting(config, "accel")) and accel not in _ACCELS:
        raise pytest.UsageError(f"kmi_accel: there is no accelerator {accel!r}: give {', '.join(_ACCELS)}")
    files = ("kernel", "initrd")
    said = any(config.getoption(f"--kmi-{name}") for name in files)
    # The workers of pytest-xdist cannot refuse: they collect, and that would be their crash.
    spread = getattr(config.option, "numprocesses", None)
    if said or (spread and any(config.getini(f"kmi_{name}") for name in files)):
        _check_files(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests want guests, settings are to make sense too."""
    if any("kmi_kernel" in getattr(item, "fixturenames", ()) for item in items):
        _check_files(config)


def _check_files(config: pytest.Config) -> None:
    from inspector.errors import InspectorError
    from inspector.testing.spec import check_kernel

    initrd = _setting(config, "initrd")
    if initrd and not Path(initrd).is_file():
        raise pytest.UsageError(f"kmi_initrd: there is no file {initrd}")
    try:
        for kernel in _kernels(config):
            check_kernel(kernel)
    except InspectorError as error:
        raise pytest.UsageError(f"kmi_kernel: {error}") from None


def _setting(config: pytest.Config, name: str) -> Any:
    said = config.getoption(f"--kmi-{name}")
    return said if said is not None and said is not False else config.getini(f"kmi_{name}")


def _kernels(config: pytest.Config) -> list[str]:
    said: str = _setting(config, "kernel") or "debian-6.1"
    return said.replace(",", " ").split()


def _said(item: Any) -> dict[str, Any]:
    """What the markers of a test say, the nearest last."""
    said: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("guest"))):
        said |= marker.kwargs
    return said


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that wants several kernels runs on each."""
    if "kmi_kernel" in metafunc.fixturenames:
        from inspector.testing.spec import kernels_of

        kernels = kernels_of(_said(metafunc.definition), _kernels(metafunc.config))
        if len(kernels) > 1:
            metafunc.parametrize("kmi_kernel", kernels, indirect=True, scope="function")


@pytest.fixture
def kmi_kernel(request: pytest.FixtureRequest) -> str:
    """The kernel that this test runs on."""
    from inspector.testing.spec import kernels_of

    chosen: str | None = getattr(request, "param", None)
    return chosen or kernels_of(_said(request.node), _kernels(request.config))[0]


@pytest.fixture(scope="session")
def kmi_guests(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """The guests of this run, or under pytest-xdist of this worker."""
    from inspector.testing.pool import Pool

    config = request.config
    options: dict[str, Any] = {"cold": config.getoption("--kmi-cold")}
    if accel := _setting(config, "accel"):
        options["accel"] = accel
    if initrd := _setting(config, "initrd"):
        options["initrd"] = Path(initrd)
    pool = Pool(options)
    yield pool
    pool.close()


@pytest.fixture
def guest(request: pytest.FixtureRequest, kmi_kernel: str, kmi_guests: Pool) -> Iterator[Guest]:
    """A booted guest that other tests have too, as it was when the first of them had it."""
    spec = _spec(request, kmi_kernel, {})
    with _lent(request, spec, _prepared(lambda: kmi_guests.shared(spec))) as booted:
        yield booted


@pytest.fixture
def guest_factory(
    request: pytest.FixtureRequest, kmi_kernel: str, kmi_guests: Pool
) -> Iterator[Callable[..., Guest]]:
    """For guests of the test's own: called with the marker's words, which go before the marker's."""
    with ExitStack() as stack:

        def boot(**said: Any) -> Guest:
            spec = _spec(request, said.pop("kernel", kmi_kernel), said)
            booted = _prepared(lambda: kmi_guests.boot(spec))
            stack.callback(_close, request, booted)
            return stack.enter_context(_lent(request, spec, booted))

        yield boot


@pytest.fixture
def fresh_guest(guest_factory: Callable[..., Guest]) -> Guest:
    """A guest that this test alone has."""
    return guest_factory()


def _spec(request: pytest.FixtureRequest, kernel: str, more: dict[str, Any]) -> GuestSpec:
    from inspector.errors import InspectorError
    from inspector.testing.spec import spec_of

    try:
        return spec_of(_said(request.node) | more, kernel, request.path.parent)
    except InspectorError as error:
        why = str(error)
    pytest.fail(why, pytrace=False)


def _prepared(boot: Callable[[], Guest]) -> Guest:
    """Boot; a tool that is missing skips the test, but fails it under CI."""
    from inspector.errors import InspectorError, SetupError

    missing = False
    try:
        return boot()
    except InspectorError as error:
        why, missing = str(error), isinstance(error, SetupError)
    if missing and not os.environ.get("CI"):
        pytest.skip(why)
    pytest.fail(why, pytrace=False)


@contextmanager
def _lent(request: pytest.FixtureRequest, spec: GuestSpec, guest: Guest) -> Iterator[Guest]:
    """The guest while a test has it: what it is asked is heard, and whether its kernel stays well is seen."""
    from inspector.kernlog import KernelLog
    from inspector.testing.asked import Asked

    item = request.node
    asked = item.stash.setdefault(_ASKED, Asked())
    item.stash.setdefault(_GUESTS, []).append((spec, guest))
    log = None if _setting(request.config, "initrd") else KernelLog(guest)
    with asked.listening(guest):
        yield guest
    if _is_kept(request, guest):
        return
    if not guest.machine.alive and not item.stash.get(_DEATH_TOLD, False):
        pytest.fail(f"the guest died during this test: {guest.state().reason}", pytrace=False)
    if log and not spec.warnings and (complaint := log.complaint()):
        pytest.fail(
            f"the guest's kernel complained during this test: {complaint}\n"
            "(where that is meant to be: @pytest.mark.guest(warnings=True))",
            pytrace=False,
        )


def _close(request: pytest.FixtureRequest, guest: Guest) -> None:
    if not _is_kept(request, guest):
        guest.close()


def _is_kept(request: pytest.FixtureRequest, guest: Guest) -> bool:
    kept = request.config.stash.get(_KEPT, None)
    return kept is not None and kept.guest is guest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A report of a failure has what its guests' consoles said, and the memory that was asked about."""
    guests = item.stash.get(_GUESTS, [])
    if call.excinfo and guests:
        from inspector.errors import GuestDied

        item.stash[_DEATH_TOLD] = isinstance(call.excinfo.value, GuestDied)
        _hide_our_frames()
    report = yield
    if not report.failed or not guests:
        return report
    for spec, guest in guests:
        title = f"console of the guest ({spec.kernel})"
        if guest.machine.alive or report.when == "call":
            report.sections.append((title, guest.machine.console_tail(_CONSOLE)))
    if report.when == "call":
        report.sections.extend(item.stash[_ASKED].sections())
        _keep(item, guests[-1][1], report)
    return report


def _hide_our_frames() -> None:
    """An error of ours says what is wrong: its traceback ends in the test. Any other is shown whole."""
    from inspector.errors import InspectorError

    def told(error: pytest.ExceptionInfo[BaseException]) -> bool:
        return isinstance(error.value, InspectorError)

    for name, module in list(sys.modules.items()):
        if name.startswith("inspector."):
            vars(module)["__tracebackhide__"] = told


def _keep(item: pytest.Item, guest: Guest, report: pytest.TestReport) -> None:
    """Set the guest of the first failure aside, where that was asked for."""
    config = item.config
    if not _setting(config, "keep") or _KEPT in config.stash or not guest.machine.alive:
        return
    from inspector.testing.keeping import Kept

    if hasattr(config, "workerinput"):
        report.sections.append(("guest", "not kept: give --kmi-keep without pytest-xdist's -n"))
        return
    if isinstance(item, pytest.Function):
        pool: Any = item.funcargs["kmi_guests"]
        pool.give_away(guest)
    kept = config.stash[_KEPT] = Kept(guest, item.nodeid)
    report.sections.append(("guest", kept.how))


def pytest_unconfigure(config: pytest.Config) -> None:
    """A guest that is kept is there until Ctrl-C."""
    kept = config.stash.get(_KEPT, None)
    if kept:
        kept.hold(config.get_terminal_writer().line)
