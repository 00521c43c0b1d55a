"""A small process that stands between us and QEMU, so that nothing is left whoever dies first, and however.

Run alone, `python -I -S supervisor.py SPEC`; imports nothing of ours. SPEC is JSON: `command` and `fds` for
QEMU, those of them (`hand_over`) that QEMU alone may hold, `folder` to remove at the end, `parent` (its pid),
`lifeline` (a pipe's read end: its EOF means the end), `status` (a pipe's write end for our JSON lines:
`{"qemu": pid}`, then `{"exit": code, "said": last lines of stderr}`).

- Our parent ends, even by SIGKILL, or closes the lifeline: QEMU is killed, the folder removed.
- Our parent writes to the lifeline: QEMU is killed, the folder stays for the next one.
- QEMU ends: its status is reported, the folder removed.
- We die by SIGKILL: QEMU dies with us (PR_SET_PDEATHSIG, prctl(2)); the parent removes the folder.
- All three at once: the folder's flock is free, and the next start sweeps it.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
SAID_LIMIT = 2000


def main() -> None:
    """Start QEMU, wait for the first of all ends, clean up."""
    spec = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.set_inheritable(spec["lifeline"], False)
    os.set_inheritable(spec["status"], False)
    folder = Path(spec["folder"])
    folder_stays = False
    qemu: subprocess.Popen[bytes] | None = None
    try:
        try:
            qemu = start(spec["command"], spec["fds"], folder)
        except OSError as error:
            report(
                spec["status"], {"exit": 127, "said": f"cannot start {spec['command'][0]}: {error.strerror}"}
            )
            return
        for fd in spec["hand_over"]:  # QEMU's alone from now on: their other ends must see it go
            os.close(fd)
        report(spec["status"], {"qemu": qemu.pid})
        folder_stays = wait(qemu, spec["parent"], spec["lifeline"])
        code = qemu.poll()
        if code is None:
            qemu.kill()
            code = qemu.wait()
        report(spec["status"], {"exit": code, "said": said(folder)})
    finally:
        if qemu and qemu.poll() is None:
            qemu.kill()
            qemu.wait()
        if not folder_stays:
            shutil.rmtree(folder, ignore_errors=True)


def start(command: list[str], fds: list[int], folder: Path) -> subprocess.Popen[bytes]:
    """QEMU, which the kernel kills when this thread (our only one) ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    us = os.getpid()

    def in_child() -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != us:  # we died before the prctl
            os._exit(1)

    with (folder / "stderr").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds, preexec_fn=in_child
        )


def wait(qemu: subprocess.Popen[bytes], parent: int, lifeline: int) -> bool:
    """Until QEMU, our parent or the lifeline ends, or our parent writes to it: then True.

    (A fork of our parent may hold the lifeline for ever.)
    """
    ends = [os.pidfd_open(qemu.pid), os.pidfd_open(os.getppid()), lifeline]
    if os.getppid() == parent:
        ready, _, _ = select.select(ends, [], [])
        return lifeline in ready and bool(os.read(lifeline, 1))
    return False


def said(folder: Path) -> str:
    """The end of what QEMU wrote to stderr."""
    try:
        with (folder / "stderr").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - SAID_LIMIT))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def report(status: int, what: dict[str, Any]) -> None:
    """A line to our parent, if it still is there."""
    with suppress(OSError):
        os.write(status, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
