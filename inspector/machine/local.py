"""A guest that this process owns, and takes with it when it ends; it can be put back to how it was."""

from __future__ import annotations

import atexit
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from inspector.errors import BootError, GuestDied, MachineError
from inspector.machine import accel as accelerators
from inspector.machine import devices, states
from inspector.machine.config import MachineConfig
from inspector.machine.console import Console
from inspector.machine.gdb import Gdb, Stop
from inspector.machine.model import Completed, CpuRegisters, DeathListener, RamRange, RunState, StateListener
from inspector.machine.monitor import Monitored
from inspector.machine.process import QemuProcess
from inspector.machine.qmp import Qmp
from inspector.machine.registers import parse_ram, parse_registers
from inspector.machine.runcontrol import RunControl
from inspector.machine.shell import Shell
from inspector.machine.states import State
from inspector.machine.stoploop import LocalStopLoop
from inspector.progress import SILENT, Reporter
from inspector.units import VirtAddr, format_size

# without an agent: how long the console must be quiet, once init runs, or where the log does not tell; and
# how long where the CPUs are not idle
_QUIET_INIT = 3.0
_QUIET = 15.0
_QUIET_BUSY = 60.0
_SILENT_KERNEL = 45.0
_PANIC_GRACE = 3.0
_RFLAGS_IF = 1 << 9
# when a guest that just came up has settled: its CPUs are found halted so often, or this long has passed
_IDLE_TIMES, _IDLE_TICK, _SETTLED = 4, 0.05, 2.0
_INITRAMFS = re.compile(r"Initramfs unpacking failed: .*")  # init/initramfs.c
_SHUTDOWNS = {"guest-reset": "the guest reset itself", "guest-shutdown": "the guest shut itself down"}


class LocalMachine(Monitored):
    """A QEMU of ours: see the Machine protocol for what it answers. Made by `start`.

    With a `state` QEMU waits for `wake`; the machine then has the state, and closes it.
    """

    def __init__(self, config: MachineConfig, state: State | None = None) -> None:
        self.config = config
        self.name = config.name
        taken = accelerators.detect(config.accel, config.la57)
        self.accel: str = taken.name
        self.accel_reason = taken.reason
        self.memory_size = config.memory
        self.cpus = config.cpus
        self.kernel_path = config.kernel
        self.blocks: list[RamRange] = []
        self._closed = False
        self._owner = os.getpid()
        self._taken = taken
        self._qmp: Qmp | None = None
        self.first_state = state
        """What `restore` puts the guest back to; None: it cannot, and `no_state` says why."""
        self.no_state = "its state was not kept"
        self.states_folder: Path | None = None
        """Where there is room for states; None: where temporary files go."""
        self.ram_fd = os.memfd_create("kmi-ram")
        try:
            os.ftruncate(self.ram_fd, config.memory)
            self._process = QemuProcess(config, taken, self.ram_fd, self._exited, incoming=state is not None)
        except BaseException:
            os.close(self.ram_fd)
            raise
        self.control = RunControl(self._process.wiring.gdb_socket)
        self._connect()
        atexit.register(self.close)

    def _connect(self) -> None:
        """Take up the channels of the process that now is."""
        self.control.gdb_socket = self._process.wiring.gdb_socket
        self.console = Console(self._process.console, self.first_state.console if self.first_state else b"")
        self.shell = Shell(self._process.shell, lambda: self.control.state().running, self._process.window)

    def _open_monitor(self) -> Qmp:
        self._qmp = Qmp(self._process.qmp, self.control.on_qmp_event, self._gone)
        self.control.use_qmp(self._qmp)
        return self._qmp

    # coming up

    def boot(self, reporter: Reporter = SILENT) -> None:
        """Wait until the guest is up. Raises BootError, with the kernel's or QEMU's last words."""
        started = time.monotonic()
        with reporter.task(f"Booting Linux ({self.accel})", unit="s") as progress:
            try:
                self._open_monitor()
                while not self._is_up():
                    elapsed = time.monotonic() - started
                    progress.update(elapsed)
                    self._check_boot(elapsed)
                    self.shell.hello.wait(0.05)
                self.blocks = parse_ram(self.hmp("info mtree -f"))
            except GuestDied as error:
                self._process.exited.wait(5)
                raise self._boot_failed() from error

    def wake(self, *, check: bool = True) -> None:
        """Go on from the state that QEMU waits for; `check`: its RAM too. Raises MachineError, GuestDied."""
        state = self.first_state
        assert state
        with ThreadPoolExecutor(1) as other:
            checked = other.submit(state.check_ram) if check else None
            state.fill(self.ram_fd)
            qmp = self._open_monitor()
            devices.set_pci_config(qmp, state.guest.pci)
            devices.give(qmp, state.devices)
            self.blocks = parse_ram(self.hmp("info mtree -f"))
            if checked:
                checked.result()
        self.control.resume()
        if state.guest.agent_pid:
            self.shell.wake(state.guest.agent_pid, state.guest.window)

    def save(self, folder: Path) -> State:
        """The state as it is when nobody uses the guest, in a nameless file there. Raises MachineError."""
        if self.config.agent:
            self.shell.ping()  # its answer is the last on the line
        self.hold("saving its state")
        try:
            qmp = self._monitor()
            pci = devices.pci_config(qmp)
            taken = devices.take(qmp)
            about = states.Guest(self.shell.agent_pid, self.shell.window_shared, pci)
            return states.save(folder, self.ram_fd, taken, self.console.raw(), about)
        except OSError as error:
            raise MachineError(f"{error.strerror} in {folder}") from error
        finally:
            self.release()

    def mark(self) -> None:
        """From now on `restore` puts the guest back to what it is at this moment. Raises MachineError."""
        state = self.save(self.states_folder or Path(tempfile.gettempdir()))
        if self.first_state:
            self.first_state.close()
        self.first_state = state

    def settle(self) -> None:
        """Wait until a guest that just came up has nothing more to do, two seconds at most."""
        deadline, idle = time.monotonic() + _SETTLED, 0
        while idle < _IDLE_TIMES and time.monotonic() < deadline:
            idle = idle + 1 if self._idle() else 0
            time.sleep(_IDLE_TICK)

    def restore(self) -> None:
        """Put the guest back to its first state, running: a new QEMU, the same RAM file, folder, listeners.

        Whatever became of it: it may be paused, hung, panicked or killed. What others trace, and commands
        that run in it, end with an error. Raises MachineError (no state was kept; somebody holds it),
        GuestDied (closed).
        """
        if self._closed:
            raise GuestDied("the guest is closed")
        if self.first_state is None:
            raise MachineError(f"this guest cannot be put back: {self.no_state}")
        with self.control.renewed():
            try:
                before, shell, qmp = self._process, self.shell, self._qmp
                self._process = QemuProcess(
                    self.config, self._taken, self.ram_fd, self._exited, incoming=True, heir_of=before
                )
                before.leave()
                shell.fail(MachineError("the guest was put back to its first state meanwhile"))
                if qmp:
                    qmp.close()
                self._connect()
                self.wake(check=False)
            except BaseException as error:
                self._process.close()
                self.control.died(f"it could not be put back: {error}")
                raise

    def _is_up(self) -> bool:
        if self.shell.hello.is_set():
            return True
        if self.config.agent:
            return False
        if self.config.ready_text:
            return self.console.contains(self.config.ready_text)
        quiet = time.monotonic() - self.console.last_heard
        enough = _QUIET_INIT if self.console.contains(" as init process") else _QUIET
        if not self.console.total or quiet < enough:
            return False
        return quiet > _QUIET_BUSY or self._idle()

    def _check_boot(self, elapsed: float) -> None:
        if self._process.exited.is_set():
            raise self._boot_failed()
        quiet = time.monotonic() - self.console.last_heard
        if quiet > _PANIC_GRACE and (fatal := self.console.fatal()):
            raise BootError(f"the guest did not boot: {fatal}")
        if quiet > _PANIC_GRACE and self._halted():
            raise BootError(f"the guest did not boot: its CPUs halted for good{self._after()}")
        if quiet > _SILENT_KERNEL and not self.console.contains("Linux version"):
            raise BootError(
                f"the guest did not boot: the kernel said nothing for {_SILENT_KERNEL:g} s; is it whole, "
                "and has it a serial console (CONFIG_SERIAL_8250_CONSOLE)?"
            )
        if elapsed > self.config.boot_timeout:
            raise BootError(f"the guest was not up within {self.config.boot_timeout:g} s{self._after()}")

    def _boot_failed(self) -> BootError:
        why = self._last_words()
        if self.control.shutdown == "guest-reset" and not self.console.fatal():
            why += f"; is its image whole, and {format_size(self.memory_size)} enough for it?"
        return BootError(f"the guest did not boot: {why}")

    def _idle(self) -> bool:
        """Every CPU has nothing to do at this moment: a slow start on a busy host would keep one at work."""
        return all(cpu.halted for cpu in self.registers())

    def _halted(self) -> bool:
        """Every CPU sits in HLT and takes no interrupts: nothing will ever wake it (SDM vol. 2, HLT)."""
        return all(cpu.halted and not cpu.rflags & _RFLAGS_IF for cpu in self.registers())

    def _after(self) -> str:
        last = self.console.last_line()
        return f"; its last line was: {last}" if last else ", without a line of output"

    def _last_words(self) -> str:
        """Why QEMU ended, for a person: the kernel's panic where there was one, else QEMU's own words."""
        self.console.ended.wait(1)
        why = self._process.why or "QEMU does not answer"
        if fatal := self.console.fatal():
            found = _INITRAMFS.search(self.console.text())
            return f"{fatal} ({found[0]})" if found else fatal
        if "PVH ELF Note" in why:
            return f"{why} (this vmlinux has no PVH entry, CONFIG_PVH: give its bzImage)"
        if why == "QEMU exited 0":
            return _SHUTDOWNS.get(self.control.shutdown, why) + self._after()
        return why

    def _exited(self, process: QemuProcess) -> None:
        """QEMU is gone; on the watcher's thread."""
        if not hasattr(self, "shell") or process is not self._process:
            return
        why = self._last_words() if not self._closed else "closed"
        self.control.died(why)
        self.shell.fail(GuestDied(f"the guest is gone: {why}"))

    # what it answers

    def _monitor(self) -> Qmp:
        if self._closed:
            raise GuestDied("the guest is closed")
        if self._qmp is None:
            raise MachineError("the guest has not started yet")
        return self._qmp

    def _gone(self, otherwise: str) -> GuestDied:
        """The error for a QEMU that hung up, with the reason that its end gives moments later."""
        self._process.exited.wait(3)
        state = self.control.state()
        why = state.reason.removeprefix("dead: ")
        return GuestDied(f"the guest is gone: {why}" if state.kind == "dead" else otherwise)

    @property
    def qemu_pid(self) -> int | None:
        """QEMU's process id."""
        return self._process.pid

    @property
    def folder(self) -> Path:
        """The private folder, while QEMU runs: `qmp` and `gdb` are sockets for other tools."""
        return self._process.folder

    @property
    def alive(self) -> bool:
        """Whether QEMU is there."""
        return not self._closed and not self._process.exited.is_set()

    @property
    def running(self) -> bool:
        """Whether the guest's CPUs execute."""
        return self.state().running

    def state(self) -> RunState:
        """Running or not, and why."""
        return self.control.state()

    def pause(self, who: str = "user") -> None:
        """Stop the CPUs; nothing where they are stopped. Raises GuestDied."""
        self.control.pause(who)

    def resume(self) -> None:
        """Let the CPUs run, whoever stopped them. Raises GuestDied."""
        self.control.resume()

    def hold(self, who: str = "a reading") -> None:
        """Stop the CPUs for a moment; holds are counted. Raises GuestDied."""
        self.control.hold(who)

    def release(self) -> None:
        """End a hold; with the last one the CPUs run again, unless they were paused. Raises GuestDied."""
        self.control.release()

    @property
    def gdb(self) -> Gdb:
        """The gdb on this guest, attached at first use. Raises SetupError, GdbError."""
        return self.control.gdb()

    def insert_breakpoint(self, address: VirtAddr, *, hardware: bool = False, temporary: bool = False) -> int:
        """Break before the instruction at `address`; the breakpoint's number. The guest may run."""
        with self._held_for_gdb() as gdb:
            return gdb.insert_breakpoint(address, hardware=hardware, temporary=temporary)

    def remove_breakpoint(self, number: int) -> None:
        """Take a breakpoint out again. The guest may run."""
        with self._held_for_gdb() as gdb:
            gdb.remove_breakpoint(number)

    def step(self, cpu: int = 0) -> None:
        """Let one vCPU of a stopped guest execute one instruction: `wait_stop` tells when it has."""
        self.gdb.step(cpu)

    def wait_stop(self, timeout: float) -> RunState | None:
        """Wait until the CPUs stop, whoever stops them; None after `timeout` seconds. Raises GuestDied."""
        return self.control.wait_stop(timeout)

    def last_stop(self) -> Stop | None:
        """What gdb says of the stop that now is."""
        return self.control.last_stop()

    def stop_loop(self) -> LocalStopLoop:
        """Breakpoints for a loop of many short stops. Raises GdbError, GuestDied, MachineError."""
        return self.control.stop_loop()

    @contextmanager
    def _held_for_gdb(self) -> Iterator[Gdb]:
        gdb = self.gdb
        self.hold("gdb")
        try:
            yield gdb
        finally:
            self.release()

    def registers(self) -> list[CpuRegisters]:
        """Every vCPU's registers, as the monitor reads them: of running CPUs, at slightly different times."""
        return parse_registers(self.hmp("info registers -a"))

    def run(self, command: str, timeout: float = 30.0) -> Completed:
        """Run a /bin/sh command in the guest. Raises CommandTimeout, MachineError, GuestDied."""
        return self.shell.run(command, timeout)

    def spawn(self, command: str) -> int:
        """Leave a command running in the guest, detached; its PID."""
        return self.shell.spawn(command)

    def put(self, data: bytes, path: str, mode: int = 0o755) -> None:
        """Write a file in the guest."""
        self.shell.put(data, path, mode)

    def console_tail(self, lines: int = 40) -> str:
        """The last lines of the serial console."""
        return self.console.tail(lines)

    def on_state(self, listener: StateListener) -> None:
        """Call `listener(state)` at every change."""
        self.control.on_state(listener)

    def on_death(self, listener: DeathListener) -> None:
        """Call `listener(why)` once QEMU is gone."""
        self.control.on_death(listener)

    def close(self) -> None:
        """End the guest; idempotent. Returns when QEMU, its sockets, its folder and its RAM are gone."""
        if self._closed or os.getpid() != self._owner:  # a fork of ours ends: the guest is not its own
            return
        self._closed = True
        atexit.unregister(self.close)
        self.shell.fail(GuestDied("the guest is closed"))
        self.control.died("closed")
        self._process.close()
        if self._qmp:
            self._qmp.close()
        if self.first_state:
            self.first_state.close()
        os.close(self.ram_fd)

    def __enter__(self) -> LocalMachine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
