"""Mirrors out of the machine's own apt, and what is asked of the private one."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspector.errors import ImageError, SetupError
from inspector.images import apt
from inspector.images.apt import Mirror, mirrors, sources

ARCHIVE = "http://mirror.example/debian/"
SECURITY = "http://mirror.example/debian-security/"
MACHINE = [
    Mirror("https://vendor.example/apt/", "bookworm"),
    Mirror(ARCHIVE, "bookworm-updates"),
    Mirror(ARCHIVE, "bookworm"),
    Mirror(SECURITY, "bookworm-security"),
]

# What `apt-get update --print-uris` says on a machine with a third party's repository beside Debian's.
PRINTED = f"""\
'{ARCHIVE}dists/bookworm/InRelease' mirror.example_debian_dists_bookworm_InRelease 0
'{ARCHIVE}dists/bookworm/main/binary-amd64/Packages.xz' mirror.example_debian_dists_b 0
'{ARCHIVE}dists/bookworm/main/binary-all/Packages.xz' mirror.example_debian_dists_b 0
'{ARCHIVE}dists/bookworm/main/i18n/Translation-en.xz' mirror.example_debian_dists_b 0
'file:/srv/mirror/dists/bookworm-security/main/binary-amd64/Packages' srv_mirror_dists 0
'https://vendor.example/linux/debian/dists/bookworm/stable/binary-amd64/Packages.bz2' vendor 0
"""


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an apt-get of our own before the machine's."""
    path = tmp_path / "bin" / "apt-get"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_mirrors_are_those_with_a_component_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, f"cat <<'E'\n{PRINTED}E")
    assert mirrors() == [Mirror(ARCHIVE, "bookworm"), Mirror("file:/srv/mirror/", "bookworm-security")]


def test_a_suite_that_the_machine_uses() -> None:
    text = sources(["bookworm-updates", "bookworm-security"], MACHINE, Path("/nowhere"))
    assert text == (
        f"deb [arch=amd64 target=Packages] {ARCHIVE} bookworm-updates main\n"
        f"deb [arch=amd64 target=Packages] {SECURITY} bookworm-security main\n"
    )


@pytest.mark.parametrize(
    ("suite", "uri"), [("bullseye", ARCHIVE), ("sid", ARCHIVE), ("bullseye-security", SECURITY)]
)
def test_a_suite_that_the_machine_does_not_use(suite: str, uri: str) -> None:
    assert f" {uri} {suite} main" in sources([suite], MACHINE)


def test_security_beside_the_archive_where_the_machine_has_none() -> None:
    assert f" {SECURITY} bookworm-security main" in sources(
        ["bookworm-security"], [Mirror(ARCHIVE, "bookworm")]
    )


def test_no_mirror_at_all() -> None:
    with pytest.raises(ImageError, match="no Debian mirror for bookworm"):
        sources(["bookworm"], [])


def test_the_keyring_of_the_machine(tmp_path: Path) -> None:
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    assert f"signed-by={keyring}]" in sources(["bookworm"], MACHINE, keyring)


def test_lists_past_their_valid_until_only_where_told() -> None:
    assert "check-valid-until" not in sources(["sid"], MACHINE)
    assert "check-valid-until=no]" in sources(["sid"], MACHINE, expired=True)


def test_progress_is_apts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(
        tmp_path,
        monkeypatch,
        "echo dlstatus:1:12.5000:Retrieving; echo hello; echo dlstatus:1:100.0:Retrieving",
    )
    seen: list[float] = []
    assert apt._run(["apt-get", "update"], seen.append) == "hello\n"
    assert seen == [12.5, 100.0]


def test_apts_first_complaint_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(
        tmp_path,
        monkeypatch,
        "echo 'W: hm' >&2; echo 'E: Could not resolve host' >&2; echo 'E: more' >&2; exit 100",
    )
    with pytest.raises(ImageError) as caught:
        apt._run(["apt-get", "update"])
    assert "Could not resolve host" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_up_while_apt_works(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, "echo 'E: Write error - write (28: No space left on device)' >&2; exit 100")
    cache.mkdir(parents=True)
    with pytest.raises(ImageError, match="set XDG_CACHE_HOME"):
        apt.Apt(["bookworm"], cache)._apt(["apt-get", "update"])


def test_a_machine_without_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SetupError, match="--kernel PATH"):
        mirrors()
