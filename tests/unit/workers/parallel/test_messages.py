"""Control messages survive the wire however it is cut, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.parallel.messages import (
    MAX_LINE_BYTES,
    Ended,
    Heartbeat,
    Hello,
    Leaving,
    MalformedMessage,
    Message,
    MessageReader,
    Reached,
    decode,
    encode,
)

finite = st.floats(min_value=0.0, allow_infinity=False, allow_nan=False)
messages = st.one_of(
    st.builds(Hello, st.text(), st.integers(), st.text(), st.text(), st.text()),
    st.builds(Heartbeat, st.integers(), st.text(), finite, st.integers()),
    st.builds(Reached, st.text()),
    st.builds(Ended, st.text()),
    st.builds(Leaving),
)


@given(st.lists(messages, max_size=6), st.integers(1, 50))
def test_any_messages_cut_anywhere(sent: list[Message], size: int) -> None:
    stream = b"".join(encode(message) for message in sent)
    reader = MessageReader()
    got = [message for at in range(0, len(stream), size) for message in reader.feed(stream[at : at + size])]
    assert got == sent


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1",
        b"[]",
        b"7",
        b'{"kind": "nonsense"}',
        b'{"kind": ["ended"]}',
        b'{"kind": "ended"}',
        b'{"kind": "ended", "cause": 7}',
        b'{"kind": "ended", "cause": "x", "more": 1}',
        b'{"kind": "heartbeat", "step": true, "phase": "run", "seconds_in_phase": 0.0, "collectives": 0}',
        b"\xff\xfe",
    ],
)
def test_what_no_rank_would_send(line: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(line)


def test_a_line_without_end_is_refused() -> None:
    reader = MessageReader()
    assert reader.feed(b"x" * MAX_LINE_BYTES) == []
    with pytest.raises(MalformedMessage, match="more than 65536 bytes"):
        reader.feed(b"x")
