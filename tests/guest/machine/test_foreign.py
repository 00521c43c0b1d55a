"""QEMUs that the test starts itself, or virtme-ng does; the witnesses are their guests' shells, and QMP."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import inspector
from inspector import Guest, images
from inspector.cli.report import as_data, gather
from inspector.errors import GuestDied, MachineError, SetupError, UsageError
from inspector.kernel.owners import Owner
from inspector.machine import ForeignMachine
from inspector.units import PhysAddr, VirtAddr

pytestmark = pytest.mark.guest

_PATIENCE = 120.0  # seconds; a bound for what must come
_MEMORY = 512 << 20
_TRIES = 20
_PAGE = 4096
_SHARED = f"-object memory-backend-memfd,id=mem,size={_MEMORY},share=on -machine q35,memory-backend=mem"


class ForeignQemu:
    """A QEMU with a shell as its guest's PID 1, on the serial line."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.qmp, self.gdb = folder / "qmp", folder / "gdb"
        self._heard = b""
        self._line, theirs = pty.openpty()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # vng starts virtme-run
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "PATH": path},
            cwd=folder,
        )
        os.close(theirs)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._await(lambda: re.search(rb"# (\x1b\[6n)?$", self._heard), "a shell")
            # One that reads lines as they are, without an editor.
            self._say(
                "exec /bin/busybox sh -c "
                "'busybox stty -echo; echo ready; while read -r l; do eval \"$l\"; done'"
            )
            self._await(lambda: b"\nready" in self._heard.replace(b"\r", b""), "a plain shell")
            self.ask("/bin/busybox mount -t proc proc /proc")
            self.ask("echo 1 >/proc/sys/kernel/printk")  # else the kernel's lines come among the answers
            self.ask("/bin/busybox mount -t devtmpfs dev /dev")  # a job in the background wants /dev/null
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        with suppress(OSError):
            while data := os.read(self._line, 1 << 16):
                self._heard += data

    def _await(self, met: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not met():
            assert self.process.poll() is None, f"QEMU ended: {self._heard.decode(errors='replace')[-2000:]}"
            assert time.monotonic() < deadline, (
                f"never came: {what}: {self._heard.decode(errors='replace')[-2000:]}"
            )
            time.sleep(0.02)

    def _say(self, text: str) -> None:
        os.write(self._line, text.encode() + b"\n")

    def ask(self, command: str) -> str:
        """What a line of shell prints in the guest; builtins do so without a page allocated."""
        self._heard = b""
        self._say(f"{command}; echo en''ded")
        self._await(
            lambda: b"ended" in self._heard and self._heard.endswith(b"\n"), f"an answer to {command!r}"
        )
        return self._heard.partition(b"ended")[0].decode(errors="replace").replace("\r", "")

    def lines_of(self, path: str) -> list[str]:
        """A file of the guest's, read by the shell itself."""
        return self.ask(f'while read -r x; do echo "$x"; done < {path}').splitlines()

    def status(self) -> str:
        """QEMU's state, from a connection of the test's own: nobody else may have the socket."""
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(_PATIENCE)
            connected.connect(str(self.qmp))
            with connected.makefile("rw") as channel:
                channel.readline()
                answers = []
                for command in ("qmp_capabilities", "query-status"):
                    channel.write(json.dumps({"execute": command}) + "\n")
                    channel.flush()
                    while "return" not in (answer := json.loads(channel.readline())):
                        assert "error" not in answer, answer
                    answers.append(answer["return"])
        return str(answers[1]["status"])

    def close(self) -> None:
        """End QEMU, and virtme-ng around it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._line)


def _command(kind: str, folder: Path) -> list[str]:
    kernel = images.fetch_kernel("debian-6.1")
    qmp = f"unix:{folder / 'qmp'},server=on,wait=off"
    if kind == "virtme-ng":
        vng = Path(sys.executable).parent / "vng"
        if not vng.exists():
            raise SetupError("virtme-ng is not installed: it is in the dependency group dev")
        return [
            *(str(vng), "--run", str(kernel.bzimage), "--disable-kvm", "--force-9p", "--force-initramfs"),
            *("--memory", "512M", "--cpus", "1", "--verbose"),
            *("--append", "rdinit=/bin/sh", "--append", "console=ttyS0", "--append", "no_timer_check"),
            f"--qemu-opts=-qmp {qmp}",
        ]
    if not shutil.which("qemu-system-x86_64"):
        raise SetupError("qemu-system-x86_64 is not installed")
    more = f"{_SHARED} -gdb unix:{folder / 'gdb'},server=on,wait=off" if kind == "shared" else ""
    return [
        *f"qemu-system-x86_64 -m 512M -display none -no-reboot -serial stdio -monitor none {more}".split(),
        *(
            "-kernel",
            str(kernel.bzimage),
            "-initrd",
            str(images.guest_image(kernel, inspector.progress.SILENT)),
        ),
        *("-append", "console=ttyS0 rdinit=/bin/sh panic=-1 no_timer_check", "-qmp", qmp),
    ]


@pytest.fixture(scope="module", params=["shared", "plain", "virtme-ng"])
def qemu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForeignQemu]:
    """Each of the three in turn."""
    folder = tmp_path_factory.mktemp("foreign")
    try:
        command = _command(request.param, folder)
    except SetupError as error:
        pytest.skip(str(error))
    running = ForeignQemu(command, folder)
    yield running
    running.close()


@pytest.fixture
def foreign(qemu: ForeignQemu) -> Iterator[Guest]:
    """Attached to it, and let go."""
    with inspector.attach(qmp=qemu.qmp, gdb=qemu.gdb if qemu.gdb.exists() else None) as guest:
        yield guest


def _agreed(read: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
    """A witness's reading, the same before and after ours, and ours."""
    for _ in range(_TRIES):
        before, answer, after = read(), ours(), read()
        if before == after:
            return before, answer
    raise AssertionError("the witness never agreed with itself")


def test_how_the_ram_is_read(foreign: Guest, qemu: ForeignQemu) -> None:
    shared = qemu.gdb.exists()
    assert (foreign.machine.ram_fd is not None) == shared
    how = "RAM read in place" if shared else "RAM copied from its process"
    assert foreign.machine.accel_reason.endswith(how)


def test_release_tasks_and_zones(foreign: Guest, qemu: ForeignQemu) -> None:
    (version,) = qemu.lines_of("/proc/version")
    assert foreign.info().release == version.split()[2]
    each = 'for p in /proc/[0-9]*; do read -r x < $p/stat; echo "$x"; done'

    def stated() -> set[tuple[int, str]]:
        found = re.findall(r"^(\d+) \((.*)\) ", qemu.ask(each), re.MULTILINE)
        return {(int(pid), comm[:15]) for pid, comm in found}  # C: TASK_COMM_LEN

    theirs, ours = _agreed(stated, lambda: {(task.pid, task.comm) for task in foreign.tasks() if task.pid})
    assert len(theirs) > 20
    assert {pid for pid, _ in ours} == {pid for pid, _ in theirs}
    # /proc shows a worker's work behind its name (kernel/workqueue.c, wq_worker_comm)
    workers = {pid for pid, comm in theirs if comm.startswith("kworker/")}
    assert {one for one in ours if one[0] not in workers} == {one for one in theirs if one[0] not in workers}

    zoneinfo = "\n".join(qemu.lines_of("/proc/zoneinfo"))
    stated_zones = {
        name: tuple(int(re.search(rf"{key}:? +(\d+)", text)[1]) for key in ("spanned", "present", "managed"))  # type: ignore[index]
        for name, text in re.findall(
            r"^Node 0, zone +(\w+)\n(.*?)(?=^Node|\Z)", zoneinfo, re.MULTILINE | re.DOTALL
        )
    }
    ours_zones = {
        zone.name: (zone.spanned, zone.present, zone.managed) for zone in foreign.zones() if zone.populated
    }
    assert ours_zones == {name: sizes for name, sizes in stated_zones.items() if sizes[1]}


def test_free_blocks(foreign: Guest, qemu: ForeignQemu) -> None:
    def free() -> dict[str, list[int]]:
        return {each.zone: each.counts.sum(axis=0).tolist() for each in foreign.buddy()}

    stated, ours = _agreed(lambda: qemu.lines_of("/proc/buddyinfo"), free)
    theirs = {line.split()[3]: [int(word) for word in line.split()[4:]] for line in stated}
    assert ours == theirs


def test_frames_have_owners(foreign: Guest) -> None:
    """Nearly what test_owners.py asks of our own guest: less is in use here, in an initramfs."""
    owners = foreign.owners()
    counts = owners.counts()
    in_use = sum(counts.values()) - counts[Owner.FREE] - counts[Owner.PER_CPU_FREE] - counts[Owner.NO_PAGE]
    nameless = owners.by_label(Owner.RESERVED).get("", 0)
    assert counts[Owner.UNMARKED] + nameless < 0.06 * in_use
    assert counts[Owner.MEMMAP] == _MEMORY // _PAGE * 64 // _PAGE


def test_kernel_addresses_lead_where_qemu_says(foreign: Guest) -> None:
    names = ("_stext", "linux_banner", "init_task", "jiffies", "_end")
    addresses = [foreign.symbol(name) for name in names]
    addresses += [foreign.task(1).address, *(area.start for area in foreign.vmalloc_areas()[:20])]
    with foreign.paused():
        for address in addresses:
            said = foreign.machine.hmp(f"gva2gpa {address:#x}")
            theirs = re.search(r"gpa: (0x[0-9a-f]+)", said)
            ours = foreign.walk(VirtAddr(address), cpu=0).phys
            assert ours == (int(theirs[1], 16) if theirs else None), f"{address:#x}: {said}"


def test_bytes_are_those_that_qemu_shows(foreign: Guest) -> None:
    with foreign.paused():
        for address in (0x0, 0x9F000, 0xF0000, 0x100000, foreign.walk(foreign.symbol("_stext")).phys or 0):
            shown = re.findall(r" 0x([0-9a-f]{2})\b", foreign.machine.hmp(f"xp /256bx {address:#x}"))
            assert foreign.read_phys(PhysAddr(address), 256) == bytes.fromhex("".join(shown))


def test_what_changes_in_the_guest_is_seen(foreign: Guest, qemu: ForeignQemu) -> None:
    """Copies are forgotten once the guest has run, and not before."""
    pid = int(qemu.ask("/bin/busybox sleep 1000 & echo $!"))
    assert foreign.task(pid).comm == "busybox"
    with foreign.paused():
        first, again = foreign.tasks(), foreign.tasks()
        assert [task.pid for task in first] == [task.pid for task in again]
    qemu.ask(f"kill -9 {pid}; wait")
    assert pid not in {task.pid for task in foreign.tasks()}


def _shape(data: Any) -> Any:
    """The keys of JSON, all the way down; a list is what its items have in common."""
    if isinstance(data, dict):
        return {key: _shape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_shape(data[0])] if data and isinstance(data[0], dict) else []
    return None


def test_the_report_is_that_of_our_own_guests(foreign: Guest, qemu: ForeignQemu, guest: Guest) -> None:
    foreign.close()
    command = [sys.executable, "-m", "inspector.cli.main", "report", "--json", "--qmp", str(qemu.qmp)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    ours = json.loads(json.dumps(as_data(gather(guest))))
    for part in set(told) | set(ours):
        if part not in ("devices", "buffers", "tasks", "free_blocks", "bounce_buffer", "swiotlb"):
            assert _shape(told[part]) == _shape(ours[part]), part
        assert type(told[part]) is type(ours[part]), part
    assert told["guest"]["release"] == ours["guest"]["release"]
    assert told["guest"]["memory_bytes"] == _MEMORY
    assert [task.keys() for task in told["tasks"][:1]] == [task.keys() for task in ours["tasks"][:1]]
    # what cannot be had is said once, with what to add
    assert done.stderr.count("\n") == 1
    assert "gdbserver unix:PATH" in done.stderr


def test_no_commands_run_in_it(foreign: Guest) -> None:
    for refused in (
        lambda: foreign.run("true"),
        lambda: foreign.spawn("true"),
        lambda: foreign.put(b"", "/x"),
    ):
        with pytest.raises(MachineError, match="was started by others: no agent of ours is in it"):
            refused()
    with pytest.raises(MachineError, match="only who booted a guest can put it back"):
        foreign.restore()


def _traced(guest: Guest, qemu: ForeignQemu) -> int:
    """Page faults of the shell, which forks: what it writes after is shared with its child."""
    shell = threading.Thread(target=qemu.ask, args=("/bin/busybox true",))
    with guest.trace_faults(1) as faults:
        shell.start()
        first = faults.next(timeout=_PATIENCE)
        shell.join(_PATIENCE)
    assert not shell.is_alive()
    records = [first, *faults]
    assert all(fault and fault.pid == 1 and fault.vma for fault in records)
    return len(records)


def test_faults_are_traced_with_a_gdbstub(foreign: Guest, qemu: ForeignQemu) -> None:
    def minor() -> int:
        return int(qemu.lines_of("/proc/1/stat")[0].split()[9])

    if not qemu.gdb.exists():
        with pytest.raises(MachineError, match=r"no gdbstub; start QEMU with `-gdb unix:PATH"):
            foreign.trace_faults(1).__enter__()
        foreign.machine.hmp(f"gdbserver unix:{qemu.gdb}-later,server=on,wait=off")
        foreign.close()
        with inspector.attach(qmp=qemu.qmp, gdb=f"unix:{qemu.gdb}-later") as again:
            before = minor()
            assert 0 < _traced(again, qemu) <= minor() - before
            again.machine.hmp("gdbserver none")
    else:
        before = minor()
        assert 0 < _traced(foreign, qemu) <= minor() - before
    assert qemu.ask("echo $((6*7))") == "42\n"


def test_letting_go_leaves_it_as_it_was(qemu: ForeignQemu) -> None:
    def descriptors() -> list[str]:
        return sorted(path.name for path in Path("/proc/self/fd").iterdir())

    def children() -> list[str]:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    before = descriptors(), children()
    guest = inspector.attach(qmp=str(qemu.qmp))
    assert len(children()) == len(before[1]) + 1  # the keeper
    guest.pause()
    guest.tasks()
    assert not guest.running
    guest.close()
    assert qemu.status() == "running"
    with inspector.attach(qmp=qemu.qmp) as guest:
        guest.snapshot()
    for _ in range(500):  # threads end in their own time
        if (descriptors(), children()) == before:
            break
        time.sleep(0.01)
    assert (descriptors(), children()) == before
    assert qemu.ask("echo $((6*7))") == "42\n"


def test_one_that_stood_still_stays_so(qemu: ForeignQemu) -> None:
    with inspector.attach(qmp=qemu.qmp) as guest:
        assert isinstance(guest.machine, ForeignMachine)
        guest.machine._qmp.execute("stop")  # as if others did
        guest.tasks()
        assert guest.state().reason == "paused by QEMU's monitor"
    assert qemu.status() == "paused"
    with inspector.attach(qmp=qemu.qmp) as guest:
        assert guest.tasks()
        assert not guest.running
    assert qemu.status() == "paused"
    with inspector.attach(qmp=qemu.qmp) as guest:
        guest.resume()
    assert qemu.status() == "running"


_HOLD = """
import inspector, time
guest = inspector.attach(qmp={qmp!r})
{stop}
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stop", ["guest.pause()", "guest.machine.hold()", "guest.tasks()"])
def test_it_runs_on_when_we_are_killed(qemu: ForeignQemu, stop: str) -> None:
    code = _HOLD.format(qmp=str(qemu.qmp), stop=stop)
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert killed.stdout
    assert killed.stdout.readline() == b"held\n"
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert qemu.ask("echo $((6*7))") == "42\n"
    assert qemu.status() == "running"


@pytest.mark.parametrize("qemu", ["shared"], indirect=True)  # the one with a gdbstub
def test_breakpoints_go_when_we_are_killed(qemu: ForeignQemu) -> None:
    code = (
        f"import inspector, time; guest = inspector.attach(qmp={str(qemu.qmp)!r}, gdb={str(qemu.gdb)!r})\n"
        "with guest.trace_faults(1, step=True) as faults:\n"
        "    print('traced', flush=True); print(faults.next().pid, flush=True); time.sleep(600)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert killed.stdout
    assert killed.stdout.readline() == b"traced\n"
    shell = threading.Thread(target=qemu.ask, args=("/bin/busybox true",))
    shell.start()
    assert killed.stdout.readline() == b"1\n"  # it stands at a breakpoint
    killed.kill()
    killed.wait()
    killed.stdout.close()
    shell.join(_PATIENCE)
    assert not shell.is_alive()
    assert qemu.ask("/bin/busybox true; echo $((6*7))") == "42\n"  # no breakpoint is left to stop it
    assert qemu.status() == "running"


@pytest.mark.parametrize("monitor", ["pmemsave", "xp"])
def test_without_rights_the_monitor_reads(
    qemu: ForeignQemu, monkeypatch: pytest.MonkeyPatch, monitor: str
) -> None:
    """As another user's process, or another host's."""
    real = os.open

    def refuse(path: Any, *more: Any, **named: Any) -> int:
        if re.match(r"/proc/\d+/(mem|map_files|fd)\b", str(path)):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **named)

    def lasting(guest: Guest) -> list[tuple[int, str]]:
        return [
            (task.pid, task.comm) for task in guest.tasks() if not task.comm.startswith("kworker/")
        ]  # those come and go

    with inspector.attach(qmp=qemu.qmp) as guest:
        tasks, states = lasting(guest), guest.owners().counts()
    monkeypatch.setattr(os, "open", refuse)
    if monitor == "xp":
        monkeypatch.setattr("tempfile.tempdir", "/proc")  # where nobody can write
        monkeypatch.setattr("inspector.machine.foreign_sources.tempfile.TemporaryDirectory", _Nowhere)
    with inspector.attach(qmp=qemu.qmp) as guest:
        assert guest.machine.accel_reason.endswith(f"RAM read slowly, by {monitor}")
        assert isinstance(guest.machine, ForeignMachine)
        assert "Permission denied" in guest.machine.lacks[0]
        assert lasting(guest) == tasks
        found = guest.owners().counts()
    assert abs(found[Owner.FREE] - states[Owner.FREE]) < 64
    assert found[Owner.MEMMAP] == states[Owner.MEMMAP]


class _Nowhere:
    """A folder that QEMU cannot write to."""

    name = "/nonexistent"

    def __init__(self, prefix: str) -> None:
        pass

    def cleanup(self) -> None:
        pass


def test_sockets_that_do_not_serve(qemu: ForeignQemu, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no QEMU can be reached at .*No such file.*-qmp unix:PATH"):
        inspector.attach(qmp=tmp_path / "none")
    with inspector.attach(qmp=qemu.qmp), pytest.raises(MachineError, match="another client"):
        inspector.attach(qmp=qemu.qmp)
    with pytest.raises(UsageError, match="attach to a name, or to a QMP socket"):
        inspector.attach("lab", qmp=qemu.qmp)
    with pytest.raises(UsageError, match="attach to a name, or to a QMP socket"):
        inspector.attach("lab", gdb=qemu.gdb)


def test_its_end_is_told(qemu: ForeignQemu) -> None:
    """The last of the tests: QEMU is gone after it."""
    told = threading.Event()
    with inspector.attach(qmp=qemu.qmp) as guest:
        guest.machine.on_death(lambda why: told.set())
        guest.machine.qmp("quit")
        assert told.wait(_PATIENCE)
        assert guest.state().kind == "dead"
        assert guest.machine.console_tail() == ""  # no last words: the console is not ours
        with pytest.raises(GuestDied, match="the guest is gone"):
            guest.tasks()


_NODES = (384 << 20, 128 << 20)


@pytest.fixture
def numa(tmp_path: Path) -> Iterator[ForeignQemu]:
    """Two nodes, whose RAM is a memfd's and a file's."""
    try:
        command = _command("plain", tmp_path)
    except SetupError as error:
        pytest.skip(str(error))
    backends = (
        f"memory-backend-memfd,id=one,size={_NODES[0]},share=on",
        f"memory-backend-file,id=two,size={_NODES[1]},mem-path={tmp_path / 'node1'},share=on",
    )
    command += ["-smp", "2"]
    for number, backend in enumerate(backends):
        name = ("one", "two")[number]
        command += ["-object", backend, "-numa", f"node,nodeid={number},cpus={number},memdev={name}"]
    running = ForeignQemu(command, tmp_path)
    yield running
    running.close()


def test_numa_nodes_are_read_in_place(numa: ForeignQemu) -> None:
    with inspector.attach(qmp=numa.qmp) as guest:
        assert guest.machine.accel_reason.endswith("RAM read in place")
        assert isinstance(guest.machine, ForeignMachine)
        assert sorted(file.size for file in guest.machine.ram_files) == sorted(_NODES)

        zoneinfo = "\n".join(numa.lines_of("/proc/zoneinfo"))
        present = {
            (int(node), name): int(re.search(r"present +(\d+)", text)[1])  # type: ignore[index]
            for node, name, text in re.findall(
                r"^Node (\d), zone +(\w+)\n(.*?)(?=^Node|\Z)", zoneinfo, re.MULTILINE | re.DOTALL
            )
        }
        assert {node for node, _ in present} == {0, 1}
        ours = {(zone.node, zone.name): zone.present for zone in guest.zones() if zone.populated}
        assert ours == {place: pages for place, pages in present.items() if pages}

        def free() -> dict[tuple[int, str], list[int]]:
            return {(each.node, each.zone): each.counts.sum(axis=0).tolist() for each in guest.buddy()}

        stated, found = _agreed(lambda: numa.lines_of("/proc/buddyinfo"), free)
        rows = [line.replace(",", "").split() for line in stated]
        assert found == {(int(row[1]), row[3]): [int(word) for word in row[4:]] for row in rows}

        with guest.paused():
            border = _NODES[0]
            for address in (0, 0xF0000, 1 << 20, border - 128, border, border + (1 << 20), 0x1FFF_F000):
                shown = re.findall(r" 0x([0-9a-f]{2})\b", guest.machine.hmp(f"xp /128bx {address:#x}"))
                assert guest.read_phys(PhysAddr(address), 128) == bytes.fromhex("".join(shown))
            across = guest.read_phys(PhysAddr(border - 64), 128)
            shown = re.findall(r" 0x([0-9a-f]{2})\b", guest.machine.hmp(f"xp /128bx {border - 64:#x}"))
            assert across == bytes.fromhex("".join(shown))
        pid = int(numa.ask("/bin/busybox sleep 1000 & echo $!"))
        assert guest.task(pid).comm == "busybox"  # what it writes is seen at once
    assert numa.status() == "running"


def test_without_rights_to_the_files_numa_nodes_are_copied(
    numa: ForeignQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, *more: Any, **named: Any) -> int:
        if re.match(r"/proc/\d+/(map_files|fd|root)\b", str(path)):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **named)

    with inspector.attach(qmp=numa.qmp) as guest:
        tasks = [task.pid for task in guest.tasks()]
    monkeypatch.setattr(os, "open", refuse)
    with inspector.attach(qmp=numa.qmp) as guest:
        assert guest.machine.accel_reason.endswith("RAM copied from its process")
        assert [task.pid for task in guest.tasks()] == tasks
