"""Packages through apt with a private state: its own sources, lists and cache; the system's are only read.

Mirrors are whatever the machine's own apt is set to; signatures are checked with the distribution's keyring.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inspector.errors import ImageError, SetupError
from inspector.images.cache import cache_dir, full_disk, locked, require_space
from inspector.progress import Reporter

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LISTS_SIZE = 64 << 20

_CONF = """\
#clear APT::Update;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::PDiffs "false";
Dir::State "{state}";
Dir::State::lists "lists";
Dir::State::status "/dev/null";
Dir::Cache "{state}";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{state}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


@dataclass(frozen=True, slots=True)
class Package:
    """What apt says of the newest version of a package. Sizes are in bytes."""

    name: str
    version: str
    depends: tuple[str, ...]
    """Names only, first alternative of each."""
    download_size: int
    installed_size: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """A repository that the machine's apt is set to, and one release there with a component `main`."""

    uri: str
    release: str


def mirrors() -> list[Mirror]:
    """The machine's own repositories, in apt's order; needs no downloaded lists. Raises SetupError."""
    # An empty lists folder makes apt spell out all that an update would fetch.
    state = ["-o", "Dir::State::lists=/nonexistent/kmi"]
    shown = _run(["apt-get", *state, "update", "--print-uris"])
    found = re.findall(r"'(\S+/)dists/(\S+)/main/binary-[^/]+/Packages[^']*'", shown)
    return [Mirror(*pair) for pair in dict.fromkeys(found)]


def sources(
    suites: Sequence[str], known: Sequence[Mirror], keyring: Path = KEYRING, *, expired: bool = False
) -> str:
    """A sources.list for these suites, at the mirrors that the machine uses. Raises ImageError.

    A suite that the machine does not use is looked for where it takes its other suites of that kind from.
    `expired` takes lists that are past their Valid-Until.
    """
    options = "arch=amd64 target=Packages"
    if keyring.exists():
        options += f" signed-by={keyring}"
    if expired:
        options += " check-valid-until=no"
    return "".join(f"deb [{options}] {_mirror_of(suite, known)} {suite} main\n" for suite in suites)


def _mirror_of(suite: str, known: Sequence[Mirror]) -> str:
    for mirror in known:
        if mirror.release == suite:
            return mirror.uri
    # A distribution's archive serves several releases (x and x-updates); a third party's has one.
    security = suite.endswith("-security")
    uris = [m.uri for m in known if m.release.endswith("-security") == security]
    if uris:
        return max(uris, key=uris.count)
    archives = [m.uri for m in known if m.uri.rstrip("/").endswith("/debian")]
    if security and archives:
        return archives[0].rstrip("/") + "-security/"
    raise ImageError(
        f"no Debian mirror for {suite} in this machine's apt sources; add one, or give --kernel PATH"
    )


class Apt:
    """Apt with its state in a private folder, for a set of suites."""

    def __init__(self, suites: Sequence[str], state: Path | None = None, *, expired: bool = False) -> None:
        self.state = state or cache_dir() / "apt" / "+".join(suites)
        self._suites = suites
        self._expired = expired

    @contextmanager
    def updated(self, reporter: Reporter) -> Iterator[Apt]:
        """Bring the lists of packages up to date; nobody else uses them meanwhile. Raises ImageError."""
        with locked(self.state, reporter):
            (self.state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            require_space(self.state, _LISTS_SIZE)
            (self.state / "apt.conf").write_text(_CONF.format(state=self.state))
            (self.state / "sources.list").write_text(sources(self._suites, mirrors(), expired=self._expired))
            with reporter.task("Reading the lists of packages", 100, "%") as progress:
                self._apt(["apt-get", "update", "--error-on=any"], progress.update)
            yield self

    def show(self, name: str, version: str | None = None) -> Package:
        """A package, its newest version unless told. Raises ImageError when there is none."""
        wanted = f"{name}={version}" if version else name
        try:
            text = self._apt(["apt-cache", "show", "--no-all-versions", wanted])
        except ImageError:
            text = ""
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.MULTILINE))
        if "Version" not in fields:  # for a version that is not there apt-cache does not even fail
            raise ImageError(f"no package {wanted} in {', '.join(self._suites)} of this machine's mirror")
        depends = [
            part.split("|")[0].split()[0] for part in fields.get("Depends", "").split(",") if part.strip()
        ]
        return Package(
            name,
            fields["Version"],
            tuple(depends),
            int(fields["Size"]),
            int(fields.get("Installed-Size", 0)) << 10,
        )

    def download(self, package: Package, folder: Path, reporter: Reporter) -> Path:
        """Fetch a package's .deb into a folder, its hash checked by apt. Raises ImageError."""
        require_space(folder, package.download_size)
        size = package.download_size
        with reporter.task(f"Fetching {package.name}", size, "B") as progress:
            self._apt(
                ["apt-get", "download", f"{package.name}={package.version}"],
                lambda percent: progress.update(size * percent / 100),
                folder,
            )
        return next(folder.glob(f"{package.name}_*.deb"))

    def _apt(
        self, command: list[str], progress: Callable[[float], None] | None = None, folder: Path | None = None
    ) -> str:
        command = [command[0], "-c", str(self.state / "apt.conf"), *command[1:], "-q"]
        try:
            return _run(command, progress, folder)
        except ImageError as error:
            if "No space left" in str(error):
                raise full_disk(folder or self.state) from None
            raise ImageError(
                f"{error} (a cached kernel needs no network; --kernel PATH takes your own)"
            ) from None


def fetch_package(name: str, suites: Sequence[str], reporter: Reporter, folder: Path) -> Path:
    """The newest .deb of a package in these suites, put into `folder`. Raises ImageError."""
    with Apt(suites).updated(reporter) as apt:
        return apt.download(apt.show(name), folder, reporter)


def _run(
    command: list[str], progress: Callable[[float], None] | None = None, folder: Path | None = None
) -> str:
    """Run an apt tool: percentages to `progress`, the rest returned. Raises ImageError in apt's words."""
    # One pipe for all three streams: status lines can be told apart, and nothing can dead-lock.
    command = [command[0], "-o", "APT::Status-Fd=1", *command[1:]]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            cwd=folder,
        )
    except OSError as error:
        raise SetupError(
            f"{command[0]} cannot be started ({error.strerror}): give your own kernel with --kernel PATH"
        ) from None
    output = []
    with process:
        assert process.stdout
        try:
            for line in process.stdout:
                if not line.startswith("dlstatus:"):
                    output.append(line)
                elif progress:
                    progress(float(line.split(":")[2]))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        complaints = [line[3:].strip() for line in output if line.startswith("E: ")]
        raise ImageError(f"apt failed: {complaints[0] if complaints else 'it gave no reason'}")
    return "".join(output)
