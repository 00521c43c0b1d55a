"""QMP: qemu.qmp's asyncio client on one private loop thread, behind a synchronous face."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from inspector.errors import GuestDied, MachineError, QmpError

# what goes wrong reaches our caller as an exception: no second account of it on stderr
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

T = TypeVar("T")
EventCallback = Callable[[str, dict[str, Any]], None]


class _Listener(EventListener):
    """Hands an event on before the next message is read: an event of a command comes before its answer."""

    def __init__(self, callback: EventCallback) -> None:
        super().__init__()
        self._callback = callback

    async def put(self, event: Message) -> None:
        data = event.get("data")
        self._callback(str(event["event"]), data if isinstance(data, dict) else {})


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waits for any more was cancelled by us: a greeting that did not come in time."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


async def _await_end(client: QMPClient, on_end: Callable[[], None]) -> None:
    while client.runstate == Runstate.RUNNING:
        await client.runstate_changed()
    on_end()


class Qmp:
    """A QMP connection over a connected socket. `on_event(name, data)` runs on the loop's thread: be brief.

    `on_end()` is called there once QEMU has hung up, or we have.
    `gone(message)` makes the error for a QEMU that hung up: it may know why. Raises that.
    """

    def __init__(
        self,
        channel: socket.socket,
        on_event: EventCallback,
        gone: Callable[[str], GuestDied] = GuestDied,
        timeout: float = 30.0,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._gone = gone
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_complain)
        self._thread = threading.Thread(target=self._loop.run_forever, name="kmi-qmp", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self._client: QMPClient = self._do(
                self._connect(channel, on_event, on_end), timeout, "the QMP greeting"
            )
        except BaseException:
            self._stop()
            raise

    async def _connect(
        self, channel: socket.socket, on_event: EventCallback, on_end: Callable[[], None] | None
    ) -> QMPClient:
        client = QMPClient("kmi")
        client.register_listener(_Listener(on_event))
        await client.connect(channel)
        if on_end:
            self._watcher = asyncio.ensure_future(_await_end(client, on_end))
        return client

    def _do(self, work: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
        if self._closed:
            work.close()
            raise GuestDied("the guest is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise QmpError(f"QEMU did not answer {what} within {timeout:g} s") from None
        except ExecuteError as error:
            raise QmpError(f"QEMU refused {what}: {error}") from error
        except (ExecInterruptedError, ConnectError, StateError, concurrent.futures.CancelledError) as error:
            raise self._gone(f"QEMU is gone: it did not answer {what}") from error
        except QMPError as error:
            raise MachineError(f"QMP went wrong at {what}: {error}") from error

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = 30.0
    ) -> Any:
        """What the command returns. Raises QmpError (refused, or not answered in time), GuestDied."""
        return self._do(self._client.execute(command, arguments or {}), timeout, f"QMP {command!r}")

    def send_fd(self, name: str, fd: int) -> None:
        """Give QEMU a descriptor, for uses of `fd:NAME` (QMP getfd). Raises as `execute` does."""

        async def send() -> None:
            self._client.send_fd_scm(fd)
            await self._client.execute("getfd", {"fdname": name})

        self._do(send(), 30.0, "QMP 'getfd'")

    def hmp(self, command: str, timeout: float = 30.0) -> str:
        """What the human monitor answers (QMP human-monitor-command). Raises as `execute` does."""
        work = self._client.execute("human-monitor-command", {"command-line": command})
        return str(self._do(work, timeout, f"monitor command {command!r}")).replace("\r\n", "\n")

    def close(self) -> None:
        """Hang up and end the thread; idempotent."""
        if not self._closed:
            self._closed = True
            self._stop()

    def _stop(self) -> None:
        async def hang_up() -> None:
            client = getattr(self, "_client", None)
            if client:
                with suppress(Exception):  # the reader's error, which is that QEMU hung up
                    await client.disconnect()
            # What Ctrl-C left half done: a pending task would complain when it is thrown away.
            unfinished = asyncio.all_tasks() - {asyncio.current_task()}
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

        if threading.current_thread() is not self._thread:
            with suppress(concurrent.futures.TimeoutError):
                asyncio.run_coroutine_threadsafe(hang_up(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            if not self._thread.is_alive():
                self._loop.close()
