"""A real gdb, spoken to in MI through pygdbmi, attached to QEMU's gdbstub."""

from __future__ import annotations

import select
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pygdbmi.gdbcontroller import GdbController
from pygdbmi.IoManager import IoManager

from inspector.errors import GdbError, SetupError
from inspector.machine.address import Address
from inspector.units import VirtAddr

# no init files, no scripts beside object files, no questions to servers on the net: gdb sees the guest alone
_COMMAND = [
    "gdb",
    "-nx",
    "-nh",
    "-q",
    "--interpreter=mi3",
    "-iex",
    "set auto-load off",
    "-iex",
    "set debuginfod enabled off",
]
_SETTINGS = (
    "mi-async on",  # commands are heard while the guest runs
    "confirm off",
    "pagination off",
    "architecture i386:x86-64",
    "breakpoint always-inserted off",
    "backtrace limit 1",  # a stop needs no unwinding, which reads guest memory
    "print frame-arguments none",
    "tcp connect-timeout 10",
    "remotetimeout 10",
)


@dataclass(frozen=True, slots=True)
class Stop:
    """Why gdb says that the guest stopped."""

    reason: str
    """MI's word: `breakpoint-hit`, `signal-received`, `end-stepping-range`."""
    address: VirtAddr | None
    cpu: int | None
    """The vCPU that stopped (QEMU's thread 1 is CPU 0)."""
    breakpoint: int | None

    def __str__(self) -> str:
        at = f" at {self.address:#x}" if self.address is not None else ""
        return f"breakpoint {self.breakpoint}{at}" if self.breakpoint is not None else f"{self.reason}{at}"


class _Controller(GdbController):
    """Pygdbmi's controller, in a session of its own: Ctrl-C in our terminal is not for gdb."""

    def spawn_new_gdb_subprocess(self) -> int:
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self.gdb_process = process
        self.io_manager = IoManager(
            process.stdin, process.stdout, None, self.time_to_check_for_additional_output_sec
        )
        return int(process.pid)


class _Answer:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.record: dict[str, Any] | None = None


class Gdb:
    """One gdb on one gdbstub. QEMU stops the guest as gdb connects; it stays stopped.

    `on_run()` and `on_stop(stop)` are called on the reader's thread, in gdb's order; `on_end()` at gdb's end.
    Raises SetupError where gdb is not installed, GdbError where it cannot attach. All but `interrupt` and
    `command` itself need a stopped guest, and are refused by gdb otherwise.
    """

    def __init__(
        self,
        socket: Address,
        on_run: Callable[[], None],
        on_stop: Callable[[Stop], None],
        on_end: Callable[[], None],
    ) -> None:
        if not shutil.which("gdb"):
            raise SetupError("gdb is not installed: `make run` does it, or install gdb")
        self._on_run, self._on_stop, self._on_end = on_run, on_stop, on_end
        self._answers: dict[int, _Answer] = {}
        self._token = 0
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._controller = _Controller(_COMMAND)
        assert self._controller.gdb_process is not None
        self._process: subprocess.Popen[bytes] = self._controller.gdb_process
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="kmi-gdb", daemon=True)
        self._reader.start()
        try:
            for setting in _SETTINGS:
                self.command(f"-gdb-set {setting}")
            self.command(f"-target-select remote {socket}")
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        process, io = self._process, self._controller.io_manager
        while process.poll() is None or select.select([io.stdout_fileno], [], [], 0)[0]:
            try:
                select.select([io.stdout_fileno], [], [], 0.5)
                records = io.get_gdb_response(timeout_sec=0, raise_error_on_timeout=False)
            except (OSError, ValueError):  # closed under us
                break
            if not records and process.poll() is not None:
                break
            for record in records:
                self._take(record)
        with self._lock:
            waiting = list(self._answers.values())
        for answer in waiting:
            answer.done.set()
        self._on_end()

    def _take(self, record: dict[str, Any]) -> None:
        if record["type"] == "result":
            if record["message"] == "running":
                self._on_run()
            with self._lock:
                answer = self._answers.pop(record["token"], None)
            if answer:
                answer.record = record
                answer.done.set()
        elif record["type"] == "notify" and record["message"] == "running":
            self._on_run()
        elif record["type"] == "notify" and record["message"] == "stopped":
            self._on_stop(_stop(record.get("payload") or {}))

    def command(self, mi: str, timeout: float = 15.0) -> dict[str, Any]:
        """The results of an MI command (`-break-list`), or of a console command's effect (`info threads`).

        Raises GdbError where gdb refuses, is gone, or does not answer within `timeout` seconds.
        """
        answer = _Answer()
        with self._lock:
            self._token += 1
            token = self._token
            self._answers[token] = answer
            try:
                # reading pygdbmi's way waits its time-out out: our reader finds the answer by its token
                self._controller.write(f"{token}{mi}", read_response=False)
            except OSError as error:
                raise GdbError(f"gdb is gone: {mi!r} cannot be sent") from error
        if not answer.done.wait(timeout):
            with self._lock:
                self._answers.pop(token, None)
            raise GdbError(f"gdb did not answer {mi!r} within {timeout:g} s")
        record = answer.record
        if record is None:
            raise GdbError(f"gdb is gone: it did not answer {mi!r}")
        payload = record.get("payload") or {}
        if record["message"] == "error":
            reason = " ".join(payload.get("msg", "no reason given").split())
            raise GdbError(f"gdb refused {mi!r}: {reason}")
        return dict(payload) if isinstance(payload, dict) else {"payload": payload}

    def continue_(self) -> None:
        """Let all CPUs run."""
        self.command("-exec-continue")

    def interrupt(self) -> None:
        """Ask for a stop; `on_stop` tells when it has come."""
        self.command("-exec-interrupt")

    def step(self, cpu: int = 0) -> None:
        """Let one CPU execute one instruction; `on_stop` tells when it has."""
        self.command(f"-exec-step-instruction --thread {cpu + 1}")

    def insert_breakpoint(self, address: VirtAddr, *, hardware: bool = False, temporary: bool = False) -> int:
        """Break before the instruction at `address` executes; the breakpoint's number.

        A software breakpoint is QEMU's own under TCG (no byte in the guest changes), an int3 under KVM.
        """
        options = ("-h " if hardware else "") + ("-t " if temporary else "")
        result = self.command(f"-break-insert {options}*{address:#x}")
        return int(result["bkpt"]["number"])

    def remove_breakpoint(self, number: int) -> None:
        """Take a breakpoint out again."""
        self.command(f"-break-delete {number}")

    def registers(self, cpu: int = 0) -> dict[str, int]:
        """One CPU's registers that are integers, by gdb's names (rax, rip, eflags, k_gs_base, cr3, ...)."""
        if not self._names:
            self._names = list(self.command("-data-list-register-names")["register-names"])
        values = self.command(f"-data-list-register-values --thread {cpu + 1} --skip-unavailable x")
        found: dict[str, int] = {}
        for item in values["register-values"]:
            with suppress(ValueError):  # vector registers come as {...}
                found[self._names[int(item["number"])]] = int(item["value"], 16)
        return found

    def close(self) -> None:
        """End gdb, wherever it stands. The stub keeps its breakpoints until the next gdb connects."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()


def _stop(payload: dict[str, Any]) -> Stop:
    address = payload.get("frame", {}).get("addr")
    thread, number = payload.get("thread-id", ""), payload.get("bkptno")
    return Stop(
        reason=payload.get("reason", "stopped"),
        address=VirtAddr(int(address, 16)) if address else None,
        cpu=int(thread) - 1 if thread.isdigit() else None,
        breakpoint=int(number) if number else None,
    )
