"""The agent's frames: their bytes, and what becomes of a stream with noise in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inspector.machine.frames import MAX_PAYLOAD, Decoder, Frame, Kind, encode

# The checksum is what agent.c's fnv1a(), compiled by itself, gives for the twelve bytes before it.
RUN_TRUE = bytes.fromhex("4b4d0201 07000000 04000000 2f3750da") + b"true"


def decode(*pieces: bytes) -> list[Frame]:
    decoder = Decoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def test_the_bytes_of_a_frame() -> None:
    assert encode(Kind.RUN, 7, b"true") == RUN_TRUE
    assert decode(RUN_TRUE) == [Frame(Kind.RUN, 7, b"true")]


def test_byte_by_byte() -> None:
    assert decode(*(RUN_TRUE[i : i + 1] for i in range(len(RUN_TRUE)))) == [Frame(Kind.RUN, 7, b"true")]


def test_stray_bytes_are_skipped_and_counted() -> None:
    decoder = Decoder()
    noise = b"login: KMKM\x00"
    frames = list(decoder.feed(noise + RUN_TRUE + b"K" + RUN_TRUE))
    assert frames == [Frame(Kind.RUN, 7, b"true")] * 2
    assert decoder.skipped == len(noise) + 1


def test_a_header_that_does_not_check_is_no_frame() -> None:
    for place in range(16):
        broken = bytearray(RUN_TRUE)
        broken[place] ^= 0x40
        assert decode(bytes(broken) + RUN_TRUE) == [Frame(Kind.RUN, 7, b"true")], place


def test_a_length_beyond_the_limit_is_no_frame() -> None:
    too_long = encode(Kind.STDOUT, 1, b"x" * (MAX_PAYLOAD + 1))
    assert decode(too_long, RUN_TRUE) == [Frame(Kind.RUN, 7, b"true")]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=80)), max_size=8), st.data())
def test_any_cut_gives_the_same_frames(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode(Kind.STDOUT, number, payload) for number, payload in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*pieces) == [Frame(Kind.STDOUT, number, payload) for number, payload in messages]
