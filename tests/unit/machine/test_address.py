from __future__ import annotations

import socket
from pathlib import Path

import pytest

from inspector.errors import UsageError
from inspector.machine.address import Address, dial, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/vm/qmp", Path("/run/vm/qmp")),
        ("qmp", Path("qmp")),
        (Path("a:1"), Path("a:1")),
        ("unix:/run/vm,1/qmp,server=on,wait=off", Path("/run/vm,1/qmp")),
        ("unix:/run/qmp,server,nowait", Path("/run/qmp")),
        ("/run/vm:1", Path("/run/vm:1")),
        ("localhost:1234", "localhost:1234"),
        (":1234", "localhost:1234"),
        ("tcp::1234,server=on", "localhost:1234"),
        ("tcp:192.0.2.7:4444,server,nowait", "192.0.2.7:4444"),
        ("[::1]:1234", "[::1]:1234"),
    ],
)
def test_as_qemu_writes_them(text: Path | str, address: Address) -> None:
    """QEMU's manual: -qmp dev, -gdb dev; the character devices unix: and tcp:."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "unix:", ",server=on"])
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="no socket"):
        parse_address(text)


def test_both_kinds_are_reached(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        dial(tmp_path / "s", 5).close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        dial(f"127.0.0.1:{server.getsockname()[1]}", 5).close()
    with pytest.raises(OSError, match="No such file"):
        dial(tmp_path / "none", 5)
