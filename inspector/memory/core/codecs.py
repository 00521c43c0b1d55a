"""How the pages of a kdump image are packed: zlib is Python's, the others are the system's own libraries."""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

from inspector.errors import BadFormat, SetupError

ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
"""Flags of a page (makedumpfile diskdump_mod.h)."""

NAMES = {0: "not packed", ZLIB: "zlib", LZO: "lzo", SNAPPY: "snappy", ZSTD: "zstd"}

Unpack: TypeAlias = Callable[[bytes, int], bytes]
"""(packed, size of what comes out) -> bytes. Raises BadFormat."""

_LIBRARIES = {LZO: "liblzo2.so.2", SNAPPY: "libsnappy.so.1", ZSTD: "libzstd.so.1"}


def unpacker(flag: int) -> Unpack:
    """What unpacks the pages with that flag. Raises SetupError where its library is missing."""
    return {0: _plain, ZLIB: _zlib, LZO: _lzo, SNAPPY: _snappy, ZSTD: _zstd}[flag]


def require(flag: int) -> None:
    """Raise SetupError where pages with that flag cannot be unpacked here."""
    if flag in _LIBRARIES:
        _library(flag)


def _plain(data: bytes, size: int) -> bytes:
    return data


def _zlib(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise BadFormat(f"a page of the image cannot be unpacked: {error}") from None


def _lzo(data: bytes, size: int) -> bytes:
    out, length = ctypes.create_string_buffer(size), ctypes.c_ulong(size)
    failed = _library(LZO).lzo1x_decompress_safe(
        data, ctypes.c_ulong(len(data)), out, ctypes.byref(length), None
    )
    return _checked(out, 0 if failed else length.value)


def _snappy(data: bytes, size: int) -> bytes:
    out, length = ctypes.create_string_buffer(size), ctypes.c_size_t(size)
    failed = _library(SNAPPY).snappy_uncompress(data, ctypes.c_size_t(len(data)), out, ctypes.byref(length))
    return _checked(out, 0 if failed else length.value)


def _zstd(data: bytes, size: int) -> bytes:
    out = ctypes.create_string_buffer(size)
    zstd = _library(ZSTD)
    length = zstd.ZSTD_decompress(out, ctypes.c_size_t(size), data, ctypes.c_size_t(len(data)))
    return _checked(out, 0 if zstd.ZSTD_isError(ctypes.c_size_t(length)) else length)


def _checked(out: Any, length: int) -> bytes:
    if not length:
        raise BadFormat("a page of the image cannot be unpacked: its bytes are corrupt")
    return bytes(out.raw[:length])


@functools.cache
def _library(flag: int) -> Any:
    try:
        library = ctypes.CDLL(_LIBRARIES[flag])
    except OSError:
        raise SetupError(
            f"the image is packed with {NAMES[flag]}, and this machine has no {_LIBRARIES[flag]}: install it"
        ) from None
    if flag == ZSTD:
        library.ZSTD_decompress.restype = ctypes.c_size_t
        library.ZSTD_isError.restype = ctypes.c_uint
    return library
