"""Bodies are bounded while they come, and strict JSON of bounded depth."""

import asyncio

import pytest

from baleen.errors import InvalidRequest
from router.gateway.bodies import MAX_DEPTH, Gone, parse, read_object
from router.gateway.refusal import TooLarge, WrongMedia

JSON = [(b"content-type", b"application/json")]


def read(*messages, headers=JSON, max_bytes=100):
    left = [{"type": "http.request", "body": body, "more_body": True} for body in messages]

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    if left:
        left[-1]["more_body"] = False
    return asyncio.run(read_object({"headers": headers}, receive, max_bytes=max_bytes)), left


def test_a_body_in_pieces():
    assert read(b'{"a": ', '[1, 2.5, null, "é"]}'.encode())[0] == {"a": [1, 2.5, None, "é"]}
    assert read(b"{}", headers=[])[0] == {}
    assert read(b"{}", headers=[(b"content-type", b"Application/JSON; charset=utf-8")])[0] == {}


def test_a_large_body_is_refused_before_it_is_there():
    with pytest.raises(TooLarge, match="more than 100 bytes"):
        read(b"{" + b" " * 60, b" " * 60, b"never read")
    with pytest.raises(TooLarge):
        read(b"{}", headers=[*JSON, (b"content-length", b"101")])
    with pytest.raises(TooLarge):
        read(b"{}", headers=[*JSON, (b"content-length", b"9" * 5000)])
    assert read(b"{" + b" " * 98 + b"}", headers=[*JSON, (b"content-length", b"100")])[0] == {}


def test_what_is_no_json_object_is_refused():
    for raw in (b"", b"x", b"[]", b'"a"', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1', b"\xff{}", b"1" * 5000):
        with pytest.raises(InvalidRequest) as caught:
            parse(raw)
        assert caught.value.field == "body"
    with pytest.raises(WrongMedia, match="must be application/json"):
        read(b"{}", headers=[(b"content-type", b"text/plain")])


def test_depth_is_bounded():
    def nested(depth):
        return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)

    parse(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 200_000):
        with pytest.raises(InvalidRequest, match=r"too deep|more than 64"):
            parse(nested(depth))
    with pytest.raises(InvalidRequest, match=r"too deep|more than 64"):
        parse(b'{"a":' + b"[" * 70 + b"]" * 70 + b"}")


def test_a_client_that_leaves_in_the_middle():
    async def scenario():
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        with pytest.raises(Gone):
            await read_object({"headers": JSON}, receive, max_bytes=100)

    asyncio.run(scenario())
