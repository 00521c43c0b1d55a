"""How a guest is started: from the state that it once had when it was up, or by a boot."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from pathlib import Path

from inspector.errors import GuestDied, MachineError
from inspector.machine import accel as accelerators
from inspector.machine.accel import Accel
from inspector.machine.config import MachineConfig, Wiring, check_kernel, qemu_command
from inspector.machine.local import LocalMachine
from inspector.machine.names import check_free
from inspector.machine.states import StateCache
from inspector.progress import SILENT, Reporter
from inspector.units import printable

_CLOCK_OFF = 3.0
_NOWHERE = Wiring(0, 1, 2, 3, 4, Path("/"))


def start(
    config: MachineConfig, reporter: Reporter = SILENT, *, states: Path | None = None, cold: bool = False
) -> LocalMachine:
    """Start a guest and wait until it is up.

    With `states`, a folder, it goes on from the state of such a guest there, or boots and leaves its state
    there; `cold`: it boots, and leaves nothing. Either way `restore` can put it back. Raises UsageError (the
    name is taken), SetupError (no QEMU), BootError. Whatever ends it early, Ctrl-C too, leaves nothing.
    """
    if config.name:
        check_free(config.name)  # before the boot: `serve` would say so after it
    check_kernel(config.kernel)
    if states is None:
        return _boot(config, reporter)
    cache = StateCache(states)
    if no_state := _why_not(config):
        machine = _boot(config, reporter)
        machine.no_state = no_state
        return machine
    if cold:
        return _boot(config, reporter, cache)
    key = state_key(config, accelerators.detect(config.accel, config.la57))
    if woken := _wake(config, reporter, cache, key):
        return woken
    with cache.making(key, config.boot_timeout, reporter):
        return _wake(config, reporter, cache, key) or _boot(config, reporter, cache, key)


def _why_not(config: MachineConfig) -> str:
    """Why the guest's state is not kept, if it is not."""
    if config.extra:
        return "it has QEMU arguments of its own, and not all that they may name would be put back"
    if not config.agent and not config.ready_text:
        return "its init is your own, and does not tell when it is up"
    return ""


def _boot(
    config: MachineConfig, reporter: Reporter, cache: StateCache | None = None, key: str = ""
) -> LocalMachine:
    """Boot, and keep the state where there is a cache, by name where there is a key."""
    machine = LocalMachine(config)
    try:
        machine.boot(reporter)
        if cache:
            machine.states_folder = cache.folder
            _keep(machine, reporter, cache, key)
        return machine
    except BaseException:
        machine.close()
        raise


def _keep(machine: LocalMachine, reporter: Reporter, cache: StateCache, key: str) -> None:
    """A guest whose state cannot be kept is as good; restore() says why it cannot."""
    try:
        with reporter.task("Keeping the booted state"):
            machine.settle()
            machine.first_state = machine.save(cache.folder)
            if key and _clock_is_right(machine):
                cache.keep(key, machine.first_state)
    except GuestDied:
        raise
    except (MachineError, OSError) as error:
        machine.no_state = printable(str(error))
        with reporter.task(f"The booted state is not kept: {machine.no_state}"):
            pass


def _clock_is_right(machine: LocalMachine) -> bool:
    """Whether its clock has kept up with ours: on a busy host Linux may mistake how fast its TSC counts.

    Then its clock runs at another speed for good, and so would that of every guest that began from its state.
    """
    if not machine.config.agent:
        return True
    return abs(int(machine.run("date +%s").check().stdout) - time.time()) < _CLOCK_OFF


def _wake(config: MachineConfig, reporter: Reporter, cache: StateCache, key: str) -> LocalMachine | None:
    """A guest from the cache; None where there is none, or it is damaged: then it is dropped."""
    machine: LocalMachine | None = None
    try:
        state = cache.find(key)
        if state is None:
            return None
        with reporter.task("Starting from the booted state"):
            try:
                machine = LocalMachine(config, state)
            except BaseException:
                state.close()
                raise
            machine.states_folder = cache.folder
            machine.wake()
        return machine
    except MachineError as error:
        if machine:
            machine.close()
        cache.drop(key)
        with reporter.task(f"The booted state is dropped, {printable(str(error))}: booting anew"):
            return None
    except BaseException:
        if machine:
            machine.close()
        raise


def state_key(config: MachineConfig, accel: Accel) -> str:
    """What a guest's state depends on, as a name: equal for guests that would boot alike.

    QEMU itself and its command line, with the content of kernel and initrd; under KVM also the host's CPU,
    which the guest sees.
    """
    content = {str(path): _digest(path, *_identity(path)) for path in (config.kernel, config.initrd)}
    command = [content.get(word, word) for word in qemu_command(config, accel, _NOWHERE)]
    program = Path(shutil.which(command[0]) or command[0]).resolve()
    made_by = [str(program), *(_identity(program) if program.exists() else ())]
    host = Path("/proc/cpuinfo").read_text().split("\n\n")[0] if accel.name == "KVM" else ""
    host = "\n".join(line for line in host.splitlines() if "MHz" not in line)
    text = json.dumps([command, made_by, host, config.agent, config.ready_text])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _identity(path: Path) -> tuple[int, ...]:
    """A file that somebody changed has another."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


@functools.lru_cache
def _digest(path: Path, *_identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
