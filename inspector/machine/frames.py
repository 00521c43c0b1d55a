"""The frames that the in-guest agent speaks: qemu_images/agent.c draws them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"KM"
VERSION = 1
MAX_PAYLOAD = 65536
_HEAD = struct.Struct("<2sBBII")
_CHECK = struct.Struct("<I")
HEADER = _HEAD.size + _CHECK.size


class Kind(IntEnum):
    """What a frame is: below 64 from us, from 64 on from the agent."""

    PING = 1
    RUN = 2
    SPAWN = 3
    KILL = 4
    PUT = 5
    DATA = 6
    DONE = 7
    WINDOW = 8
    FREE = 9
    LOOK = 10
    WAKE = 11
    HELLO = 64
    PONG = 65
    STDOUT = 66
    STDERR = 67
    EXIT = 68
    SPAWNED = 69
    ACK = 70
    SHOWOUT = 71
    SHOWERR = 72


class Frame(NamedTuple):
    """One frame; `kind` is a Kind's number."""

    kind: int
    id: int
    payload: bytes


def _fnv1a(data: bytes | bytearray) -> int:
    value = 2166136261
    for byte in data:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def encode(kind: Kind, request: int, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    head = _HEAD.pack(MAGIC, kind, VERSION, request, len(payload))
    return head + _CHECK.pack(_fnv1a(head)) + payload


class Decoder:
    """Cuts a byte stream into frames, and skips what is none."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self.skipped = 0
        """Stray bytes seen so far."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes."""
        self._waiting += data
        at = 0
        while True:
            found = self._waiting.find(MAGIC, at)
            if found < 0:  # its first letter may be the last byte that came
                found = len(self._waiting) - self._waiting.endswith(MAGIC[:1])
            self.skipped += found - at
            at = found
            if len(self._waiting) - at < HEADER:
                break
            _, kind, version, request, length = _HEAD.unpack_from(self._waiting, at)
            (check,) = _CHECK.unpack_from(self._waiting, at + _HEAD.size)
            if (
                version != VERSION
                or length > MAX_PAYLOAD
                or check != _fnv1a(self._waiting[at : at + _HEAD.size])
            ):
                at += 1
                self.skipped += 1
                continue
            end = at + HEADER + length
            if len(self._waiting) < end:
                break
            yield Frame(kind, request, bytes(self._waiting[at + HEADER : end]))
            at = end
        del self._waiting[:at]
